"""The list of attacks is well formed, and the check notices what goes wrong: tried with sessions that misbehave."""

import ast
import contextlib
import io
import os
import re
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import agentrl.sandbox.attacks
from agentrl.errors import InfrastructureError
from agentrl.sandbox import ExecResult, Limits
from agentrl.sandbox.attacks import ATTACKS, Attack, Bare, Cell, Expectation, Surroundings, run_attack, run_attacks
from agentrl.sandbox.attacks.attack import BUSY, CPU, RESET, ROOMY, died, error, fill, killed, ok
from agentrl.sandbox.core import SandboxFileError

GROUPS = {  # of the published list, by first id
    1: "time",
    12: "memory",
    16: "process",
    29: "output",
    40: "exit",
    50: "fs",
    60: "secrets",
    63: "net",
    67: "kernel",
    73: "state",
}
ODD_CODE = range(458, 472)
"""Attacks whose code is itself the attack; compiling it can end a process."""


@pytest.fixture(scope="module")
def surroundings() -> Iterator[Surroundings]:
    with Surroundings() as things:
        yield things


def test_ids_are_those_of_the_published_list_and_further_ones() -> None:
    ids = [attack.id for attack in ATTACKS]
    assert ids == sorted(set(ids))
    assert ids[:75] == list(range(1, 76))
    assert ids[75] >= 201
    for attack in ATTACKS[:75]:
        assert attack.group == GROUPS[max(first for first in GROUPS if first <= attack.id)]
    assert {attack.group for attack in ATTACKS} == set(GROUPS.values())
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS)


def test_every_mark_is_known_and_filled_and_what_comes_out_compiles(surroundings: Surroundings) -> None:
    values = {**surroundings.values, "MARK": "0123abcd"}
    used = set()
    for attack in ATTACKS:
        for code in attack.cells():
            marks = set(re.findall(r"@([A-Z_]+)@", code))
            assert marks <= set(values), attack.name
            used |= marks
            if attack.id not in ODD_CODE:
                compile(fill(code, values), attack.name, "exec")
    assert used == set(values), "nothing lies around for nobody"


def test_expectations_are_well_formed() -> None:
    for attack in ATTACKS:
        assert attack.expect.endings, attack.name
        for ending in attack.expect.endings:
            if ending.status == "timeout":
                assert (ending.state, set(ending.reasons) <= {"cpu", "wall"}) == ("rolled_back", True)
            elif ending.status == "killed":
                assert ending.state in ("rolled_back", "reset")
                assert None not in ending.reasons
            else:
                assert (ending.state, ending.reasons) == ("kept", (None,))


def test_a_program_that_may_get_out_must_report_what_came_of_it() -> None:
    """An ending that says nothing would also fit a program that did not even try."""
    for attack in ATTACKS:
        if attack.bare is Bare.REACHES or attack.group in ("secrets", "net", "kernel"):
            cells = "".join(attack.cells())
            assert "LEAKED" in cells, attack.name
            for ending in attack.expect.endings:
                told = ending.shows or attack.then or attack.neighbour or ending.status != "ok"
                assert told, attack.name


def test_the_attacks_need_nothing_but_the_standard_library() -> None:
    folder = Path(agentrl.sandbox.attacks.__file__).parent
    for file in folder.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert {name.split(".")[0] for name in names} <= {*sys.stdlib_module_names, "agentrl"}, file.name


RESULT = ExecResult(
    status="killed",
    output="a\nkilled",
    output_bytes=8,
    signal=9,
    reason="died",
    state="rolled_back",
    cpu_s=0.1,
    wall_s=0.1,
)


@pytest.mark.parametrize(
    ("expectation", "fault"),
    [
        (died(signal=9), None),
        (died("a\n"), None),
        (ok() | died(), None),
        (killed("memory", "died"), None),
        (killed("memory"), "reason died instead of memory"),
        (died(signal=11), "signal 9 instead of 11"),
        (died(exit_code=3), "exit_code None instead of 3"),
        (died("b"), "the output lacks 'b'"),
        (RESET, "killed/rolled_back instead of killed/reset"),
        (CPU | error(), "killed/rolled_back instead of timeout/rolled_back; killed/rolled_back instead of error/kept"),
    ],
)
def test_an_expectation_names_what_is_wrong(expectation: Expectation, fault: str | None) -> None:
    assert expectation.fault(RESULT) == fault


def test_a_leak_is_a_fault_whatever_else_is_expected() -> None:
    leak = ExecResult(status="ok", output="x\nLEAKED answer 42\n", output_bytes=19, cpu_s=0.1, wall_s=0.1)
    assert ok("x").fault(leak) == "it got out: LEAKED answer 42"


class FakeSession:
    """Runs cells here and now."""

    def __init__(self) -> None:
        self.names: dict[str, object] = {}
        self.is_closed = False

    def run(self, code: str) -> ExecResult:
        stream = io.StringIO()
        status = "ok"
        with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
            try:
                exec(code, self.names)
            except Exception:
                status = "error"
                print(traceback.format_exc())
        return self.answer(status, stream.getvalue())

    def answer(self, status: str, output: str, **fields: object) -> ExecResult:
        values = {"output_bytes": len(output), "cpu_s": 0.0, "wall_s": 0.0, **fields}
        return ExecResult(status=status, output=output, **values)  # type: ignore[arg-type]

    def fork(self) -> "FakeSession":
        copy = type(self)()
        copy.names = dict(self.names)
        return copy

    def read(self, path: str, max_bytes: int) -> bytes:
        raise SandboxFileError(f"There is no file {path!r}.")

    def write(self, path: str, data: bytes) -> None:
        raise SandboxFileError("There is no space.")

    def list_files(self) -> list[str]:
        return []

    def close(self) -> None:
        self.is_closed = True


class Scripted(FakeSession):
    """Does something else than run cells whose code holds the word."""

    def __init__(self, word: str, behave: Callable[["Scripted"], ExecResult | None], times: int = 1) -> None:
        super().__init__()
        self.word, self.behave, self.times = word, behave, times

    def run(self, code: str) -> ExecResult:
        if self.word in code and self.times > 0:
            self.times -= 1
            result = self.behave(self)
            if result is not None:
                return result
        return super().run(code)

    def fork(self) -> "FakeSession":
        return FakeSession()  # knows nothing of its original


def attack(code: str = "print('attack')", expect: Expectation | None = None, **fields: object) -> Attack:
    return Attack(999, "state", "test", code, expect or ok(), **fields)  # type: ignore[arg-type]


def hang_up(session: FakeSession) -> ExecResult:
    raise InfrastructureError("The sandbox failed: gone.")


def lose_names(session: FakeSession) -> None:
    session.names.clear()


def reset(session: FakeSession) -> ExecResult:
    session.names.clear()
    return say_reset(session)


def say_reset(session: FakeSession) -> ExecResult:
    return session.answer("killed", "killed: it ended; all names are lost\n", state="reset", reason="ended")


def roll_back_silently(session: FakeSession) -> ExecResult:
    return session.answer("killed", "killed\n", state="rolled_back", reason="died")


def print_the_secret(session: FakeSession) -> ExecResult:
    return session.answer("ok", os.environ["AGENTRL_ATTACKED_API_KEY"])


def flood(session: FakeSession) -> ExecResult:
    return session.answer("ok", "x" * (BUSY.output_bytes + 1))


def answer_wrongly(session: FakeSession) -> ExecResult:
    return session.answer("ok", "err\nout\n")


def fail_with_the_right_text(session: FakeSession) -> ExecResult:
    return session.answer("error", "out\nerr\n")


def test_a_session_that_behaves_passes(surroundings: Surroundings) -> None:
    harmless = attack(
        setup=("x = @PORT@",),
        then=(Cell("print(type(x).__name__)", "int\n"),),
        neighbour=Cell("print(1)", "1\n"),
        reads=("f",),
        fork=True,
    )
    outcome = run_attack(FakeSession(), FakeSession(), harmless, surroundings)
    assert outcome.passed, outcome.detail
    assert outcome.result is not None
    assert outcome.result.output == "attack\n"


@pytest.mark.parametrize(
    ("word", "behave", "fields", "detail"),
    [
        ("attack", hang_up, {}, "the session failed: InfrastructureError: The sandbox failed: gone."),
        ("err", hang_up, {}, "the session failed"),
        ("attack", lose_names, {}, "the session has lost its names without a word"),
        ("attack", reset, {}, "killed/reset instead of ok/kept"),
        ("attack", say_reset, {"expect": RESET}, "the session said that its names are lost, but answers"),
        ("attack", roll_back_silently, {"expect": died()}, "does not say that the names were rolled_back"),
        ("attack", print_the_secret, {}, "it got out: the output holds the secret"),
        ("attack", flood, {}, f"the output has {BUSY.output_bytes + 1} bytes instead of at most {BUSY.output_bytes}"),
        ("err", answer_wrongly, {}, "the session answers ok 'err\\nout\\n' instead of 'out\\nerr\\n'"),
        ("err", fail_with_the_right_text, {}, "the session answers error 'out\\nerr\\n'"),
        ("err", reset, {}, "the session answers killed"),
        ("hello", hang_up, {"setup": ("hello",)}, "the session failed"),
        ("nothing", hang_up, {"setup": ("1 / 0",)}, "the setup fails"),
        (
            "nothing",
            hang_up,
            {"then": (Cell("print(1)", "2\n"),)},
            "then the session answers ok '1\\n' instead",
        ),
        (
            "nothing",
            hang_up,
            {"neighbour": Cell("print(1)", "2\n")},
            "the neighbour answers ok '1\\n' instead",
        ),
        ("nothing", hang_up, {"fork": True}, "a copy of the session has lost its names"),
        ("nothing", hang_up, {"code": "print('LEAKED', 7)"}, "it got out: LEAKED 7"),
    ],
)
def test_a_session_that_misbehaves_is_noticed(
    surroundings: Surroundings,
    word: str,
    behave: Callable[[FakeSession], ExecResult | None],
    fields: dict[str, object],
    detail: str,
) -> None:
    outcome = run_attack(Scripted(word, behave), FakeSession(), attack(**fields), surroundings)  # type: ignore[arg-type]
    assert not outcome.passed
    assert detail in outcome.detail


def test_names_of_an_honest_reset_need_not_live(surroundings: Surroundings) -> None:
    assert run_attack(Scripted("attack", reset), FakeSession(), attack(expect=RESET), surroundings).passed


def test_a_program_may_delete_its_own_names_only_if_that_is_what_it_does(surroundings: Surroundings) -> None:
    forgetful = attack("globals().clear()", forgets=True)
    assert run_attack(FakeSession(), FakeSession(), forgetful, surroundings).passed
    assert not run_attack(FakeSession(), FakeSession(), attack(forgets=True), surroundings).passed


def test_aftershocks_end(surroundings: Surroundings) -> None:
    shaking = attack(aftershock=True)
    assert run_attack(Scripted("err", reset, times=3), FakeSession(), shaking, surroundings).passed
    outcome = run_attack(Scripted("err", reset, times=4), FakeSession(), shaking, surroundings)
    assert outcome.detail == "the session is killed again and again"


def test_a_neighbour_that_changes_is_noticed(surroundings: Surroundings) -> None:
    session, neighbour = FakeSession(), FakeSession()
    neighbour.names = session.names
    outcome = run_attack(session, neighbour, attack("agentrl_canary = 'mine'"), surroundings)
    assert "has lost its names" in outcome.detail
    outcome = run_attack(FakeSession(), Scripted("print(agentrl_canary)", lose_names), attack(), surroundings)
    assert "the neighbour answers error" in outcome.detail


def test_a_file_read_back_with_the_answer_in_it_is_noticed(surroundings: Surroundings) -> None:
    class Careless(FakeSession):
        def read(self, path: str, max_bytes: int) -> bytes:
            return Path(str(surroundings.values["CANARY"])).read_bytes()

    outcome = run_attack(Careless(), FakeSession(), attack(reads=("answer",)), surroundings)
    assert outcome.detail == "it got out: the file 'answer' holds the secret"


REACH = "import socket\nwith socket.socket({}, {}) as client: client.connect({}){}"


@pytest.mark.parametrize(
    ("code", "damage"),
    [
        (REACH.format(2, 1, "('127.0.0.1', @PORT@)", ""), "reached the host's tcp service"),
        (REACH.format(2, 2, "('127.0.0.1', @UDP_PORT@)", "; client.send(b'x')"), "reached the host's udp service"),
        (REACH.format(1, 1, "@SOCKET@", ""), "reached the host's unix service"),
        (REACH.format(1, 1, "chr(0) + @ABSTRACT@", ""), "reached the host's abstract service"),
        ("open(@FOLDER@ + '/planted', 'w').close()", "made ['planted'] beside the answer"),
        ("open(@CANARY@, 'a').write('x')", "changed the answer"),
        ("import os; os.remove(@CANARY@)", "changed the answer"),
    ],
)
def test_a_silent_program_that_reaches_the_host_is_noticed_once(
    surroundings: Surroundings, code: str, damage: str
) -> None:
    outcome = run_attack(FakeSession(), FakeSession(), attack(code), surroundings)
    assert outcome.detail == f"on the host it {damage}"
    assert surroundings.damage() is None


def processes_called(marker: str) -> list[int]:
    """Ids of the processes with a text in their command lines."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if marker.encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_signal_to_another_process_is_noticed_once(surroundings: Surroundings, number: signal.Signals) -> None:
    (pid,) = processes_called(str(surroundings.values["BYSTANDER"]))
    os.kill(pid, number)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WSTOPPED | os.WNOWAIT)
    assert surroundings.damage() == "signalled another process of the host"
    assert surroundings.damage() is None


LEAVES_A_PROCESS = """
import subprocess, sys
name = "import ctypes, sys; ctypes.CDLL(None).prctl(15, sys.argv[1].encode(), 0, 0, 0); print(); sys.stdin.read()"
child = subprocess.Popen([sys.executable, "-c", name, @MARK@], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
_ = child.stdout.readline()
"""


@pytest.mark.usefixtures("one_look")
def test_an_attack_that_leaves_a_process_is_noticed(surroundings: Surroundings) -> None:
    session = FakeSession()
    outcome = run_attack(session, FakeSession(), attack(LEAVES_A_PROCESS), surroundings)
    assert outcome.detail == "processes are left: 1"
    child = session.names["child"]
    assert isinstance(child, subprocess.Popen)
    child.communicate()


@pytest.mark.parametrize("before", [None, "the user's own"])
def test_surroundings_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch, before: str | None) -> None:
    monkeypatch.delenv("AGENTRL_ATTACKED_API_KEY", raising=False)
    if before is not None:
        monkeypatch.setenv("AGENTRL_ATTACKED_API_KEY", before)
    variables = dict(os.environ)
    with Surroundings() as things:
        values, secret = dict(things.values), things.secret
        assert os.environ[str(values["VARIABLE"])] == secret
        assert Path(str(values["CANARY"])).read_text() == secret
        services = list(things._sockets.values())
    assert dict(os.environ) == variables
    assert not Path(str(values["FOLDER"])).exists()
    assert {service.fileno() for service in services} == {-1}, "the ports may be somebody else's by now"
    with socket.socket(socket.AF_UNIX) as client, pytest.raises(ConnectionRefusedError):
        client.connect(f"\0{values['ABSTRACT']}")
    assert processes_called(str(values["BYSTANDER"])) == []


def test_sessions_are_used_again_until_something_fails() -> None:
    opened: list[FakeSession] = []

    def open_session(limits: Limits) -> FakeSession:
        opened.append(FakeSession())
        return opened[-1]

    def output_attack(id: int, code: str, limits: Limits = BUSY) -> Attack:
        return Attack(id, "output", str(id), code, ok(), limits)

    listed = [output_attack(1, "5"), output_attack(2, "6"), output_attack(3, "1 / 0"), output_attack(4, "7")]
    outcomes = run_attacks(open_session, [*listed, output_attack(5, "8", ROOMY), attack()])
    assert [next(outcomes).passed for _ in range(2)] == [True, True]
    assert len(opened) == 2, "one and its neighbour"
    assert not next(outcomes).passed
    assert [session.is_closed for session in opened] == [True, True]
    assert [outcome.passed for outcome in outcomes] == [True, True, True]
    # Both anew after the failure, and one for other limits; the last attack finds one that is healthy.
    assert len(opened) == 2 + 2 + 1
    assert all(session.is_closed for session in opened)


def test_a_session_that_an_attack_has_spoilt_is_not_used_again() -> None:
    opened: list[FakeSession] = []

    def open_session(limits: Limits) -> FakeSession:
        opened.append(FakeSession())
        return opened[-1]

    assert all(outcome.passed for outcome in run_attacks(open_session, [attack("json = None"), attack("json = 1")]))
    assert len(opened) == 3, "two for the attacks and a neighbour"


def test_sessions_are_closed_when_the_rest_of_the_list_is_not_wanted() -> None:
    opened: list[FakeSession] = []

    def open_session(limits: Limits) -> FakeSession:
        opened.append(FakeSession())
        return opened[-1]

    outcomes = run_attacks(open_session, [attack(), attack()])
    next(outcomes)
    outcomes.close()  # type: ignore[attr-defined]
    assert [session.is_closed for session in opened] == [True, True]
