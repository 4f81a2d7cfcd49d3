"""The system-call filter: its table against libseccomp's, both of its forms against the rules in words, and real loads.

The program is loaded under bubblewrap here, the profile into a container in test_docker_hardening.py.
"""

import ctypes
import ctypes.util
import errno
import itertools
import json
import platform
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from engines import require_bubblewrap
from hypothesis import given
from hypothesis import strategies as st
from syscall_probe import PROBE, PROBE_ANSWERS

from agentrl.errors import ConfigError
from agentrl.sandbox.linux.seccomp import ARGUMENT_RULES, Machine, bpf_program, docker_profile
from agentrl.sandbox.linux.syscalls import ABSENT, ALLOWED, ALLOWED_BY_ARGUMENT, REFUSED, Syscall

EVERY_CALL = (*ALLOWED, *ALLOWED_BY_ARGUMENT, *REFUSED, *ABSENT)
AUDIT: Mapping[Machine, int] = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
AUDIT_I386, AUDIT_ARM = 0x40000003, 0x40000028
KILL, ALLOW = "kill", "allow"


def run_bpf(program: bytes, *, number: int, arch: int, arguments: Sequence[int] = ()) -> str | int:
    """What a filter answers, by an interpreter of classic BPF: kill, allow or an error number.

    It is strict where the kernel's checker is: jumps go forward into the program, and the program ends with a return.
    """
    data = struct.pack("<iIQ6Q", number - (1 << 32) * (number >= 1 << 31), arch, 0, *[*arguments, *[0] * 6][:6])
    instructions = list(struct.iter_unpack("<HBBI", program))
    accumulator, position = 0, 0
    while True:
        code, if_true, if_false, operand = instructions[position]
        position += 1
        match code:
            case 0x20:
                assert operand % 4 == 0  # the kernel takes whole words only
                (accumulator,) = struct.unpack_from("<I", data, operand)
            case 0x54:
                accumulator &= operand
            case 0x15:
                position += if_true if accumulator == operand else if_false
            case 0x25:
                position += if_true if accumulator > operand else if_false
            case 0x06:
                if operand >> 16 == 0x0005:
                    return operand & 0xFFFF
                return {0x7FFF0000: ALLOW, 0x80000000: KILL}[operand]
            case _:
                raise AssertionError(f"unknown instruction {code:#x}")


def evaluate_profile(profile: Mapping[str, Any], name: str, arguments: Sequence[int] = ()) -> str | int:
    """What libseccomp answers by a profile of Docker: any entry that matches, else the default action."""
    answers = set()
    for entry in profile["syscalls"]:
        # runc makes alternatives of two conditions on one argument; no entry here has more than one condition
        conditions = entry.get("args", [])
        assert len(conditions) <= 1
        if name in entry["names"] and all(
            c["op"] == "SCMP_CMP_MASKED_EQ" and arguments[c["index"]] & c["value"] == c["valueTwo"] for c in conditions
        ):
            answers.add(_action(entry["action"], entry.get("errnoRet")))
    assert len(answers) <= 1, f"two answers to {name}"
    return answers.pop() if answers else _action(profile["defaultAction"], profile["defaultErrnoRet"])


def _action(action: str, error: int | None) -> str | int:
    if action == "SCMP_ACT_ALLOW":
        return ALLOW
    assert action == "SCMP_ACT_ERRNO"
    assert error is not None
    return error


def expected(call: Syscall, arguments: Sequence[int]) -> str | int:
    """The rules in words."""
    if call in ALLOWED:
        return ALLOW
    if call in ABSENT:
        return errno.ENOSYS
    if call in REFUSED:
        return errno.EPERM
    match call.name:
        case "clone":
            new_namespaces = (0x20000, 1 << 25, 1 << 26, 1 << 27, 1 << 28, 1 << 29, 1 << 30)
            allowed = not any(arguments[0] & flag for flag in new_namespaces)
        case "socket" | "socketpair":
            allowed = arguments[0] % (1 << 32) == 1
        case "prlimit64" | "sched_setparam" | "sched_setscheduler" | "sched_setaffinity" | "sched_setattr":
            allowed = arguments[0] % (1 << 32) == 0
        case "setpriority" | "ioprio_set":
            allowed = arguments[1] % (1 << 32) == 0
        case "ioctl":
            import termios  # names, where the filter has numbers

            requests = ("TCGETS", "TIOCGWINSZ", "FIONREAD", "FIONBIO", "FIONCLEX", "FIOCLEX")
            allowed = arguments[1] % (1 << 32) in [getattr(termios, request) for request in requests]
        case _:
            raise AssertionError(call)
    return ALLOW if allowed else errno.EPERM


def number_of(call: Syscall, machine: Machine) -> int | None:
    return call.x86_64 if machine == "x86_64" else call.aarch64


INTERESTING = st.sampled_from(
    [0, 1, 2, 16, 40, 0x5401, 0x5412, 0x5413, 0x541B, 0x541C, 0x5421, 0x5450, 0x5451, 0x01200011, 0x003D0F00, 1 << 30]
)
ARGUMENT = st.one_of(INTERESTING, st.integers(0, (1 << 64) - 1), st.builds(lambda low: low | 1 << 32, INTERESTING))


PROFILE = json.loads(docker_profile())
PROGRAMS: Mapping[Machine, bytes] = {machine: bpf_program(machine) for machine in AUDIT}


def check_both_forms(call: Syscall, arguments: Sequence[int]) -> None:
    answer = expected(call, arguments)
    assert evaluate_profile(PROFILE, call.name, arguments) == answer
    for machine, audit in AUDIT.items():
        if (number := number_of(call, machine)) is not None:
            assert run_bpf(PROGRAMS[machine], number=number, arch=audit, arguments=arguments) == answer


@pytest.mark.parametrize("call", ALLOWED_BY_ARGUMENT, ids=lambda call: call.name)
@given(arguments=st.lists(ARGUMENT, min_size=6, max_size=6))
def test_both_forms_check_arguments_as_the_rules_say(call: Syscall, arguments: list[int]) -> None:
    check_both_forms(call, arguments)


@pytest.mark.parametrize("call", ALLOWED_BY_ARGUMENT, ids=lambda call: call.name)
def test_both_forms_check_every_bit(call: Syscall) -> None:
    for value in (0, 1, 17, 0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451):
        for bit, position in itertools.product(range(64), range(3)):
            arguments = [0xABCDEF] * 6
            arguments[position] = value ^ 1 << bit
            check_both_forms(call, arguments)


def test_other_calls_are_answered_without_a_look_at_their_arguments() -> None:
    for call in (*ALLOWED, *REFUSED, *ABSENT):
        for value in (0, 1, (1 << 64) - 1):
            check_both_forms(call, [value] * 6)


@pytest.mark.parametrize("machine", AUDIT)
def test_every_number_is_answered_as_its_call_and_others_do_not_exist(machine: Machine) -> None:
    program, zeros = bpf_program(machine), [0] * 6
    by_number = {number_of(call, machine): call for call in EVERY_CALL}
    for number in itertools.chain(range(700), [0x3FFFFFFF]):
        known = by_number.get(number)
        answer = expected(known, zeros) if known else errno.ENOSYS
        assert run_bpf(program, number=number, arch=AUDIT[machine]) == answer, number


@pytest.mark.parametrize("machine", AUDIT)
@pytest.mark.parametrize("number", [0, 1, 20, 0x40000000, (1 << 32) - 1])
def test_another_calling_convention_is_killed(machine: Machine, number: int) -> None:
    for audit in (AUDIT_I386, AUDIT_ARM, *(value for name, value in AUDIT.items() if name != machine)):
        assert run_bpf(bpf_program(machine), number=number, arch=audit) == KILL


def test_x32_numbers_are_killed_and_do_not_pass_for_calls_of_x86_64() -> None:
    for number in (0x40000000, 0x40000000 + 39, 0x40000000 + 512, 0x7FFFFFFF, (1 << 32) - 1):
        assert run_bpf(bpf_program("x86_64"), number=number, arch=AUDIT["x86_64"]) == KILL


@given(st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 32) - 1))
def test_nothing_but_listed_numbers_is_ever_allowed(number: int, arch: int) -> None:
    for machine, audit in AUDIT.items():
        if run_bpf(bpf_program(machine), number=number, arch=arch) == ALLOW:
            assert arch == audit
            assert number in {number_of(call, machine) for call in (*ALLOWED, *ALLOWED_BY_ARGUMENT)}


@pytest.mark.parametrize("machine", AUDIT)
def test_the_program_is_one_that_the_kernel_takes(machine: Machine) -> None:
    instructions = list(struct.iter_unpack("<HBBI", bpf_program(machine)))
    assert len(instructions) < 4096  # BPF_MAXINSNS
    assert instructions[-1][0] == 0x06
    for position, (code, if_true, if_false, _) in enumerate(instructions):
        if code in (0x15, 0x25):
            assert position + 1 + max(if_true, if_false) < len(instructions)


def test_no_call_stands_twice_and_rules_are_those_of_the_table() -> None:
    names = [call.name for call in EVERY_CALL]
    assert len(names) == len(set(names))
    for machine in AUDIT:
        numbers = [number for call in EVERY_CALL if (number := number_of(call, machine)) is not None]
        assert len(numbers) == len(set(numbers))
    assert set(ARGUMENT_RULES) == {call.name for call in ALLOWED_BY_ARGUMENT}


def test_what_escapes_were_built_on_is_refused() -> None:
    assert {call.name for call in (*REFUSED, *ABSENT)} >= {
        *("ptrace", "process_vm_readv", "process_vm_writev", "unshare", "setns", "mount", "umount2", "pivot_root"),
        *("chroot", "bpf", "perf_event_open", "keyctl", "add_key", "request_key", "userfaultfd", "io_uring_setup"),
        *("io_uring_enter", "io_uring_register", "open_by_handle_at", "name_to_handle_at", "kcmp", "pidfd_getfd"),
        *("clock_settime", "settimeofday", "personality", "clone3"),
    }


def test_numbers_agree_with_libseccomp() -> None:
    library = ctypes.util.find_library("seccomp")
    if library is None:
        pytest.skip("libseccomp is not installed: apt-get install libseccomp2")
    resolve = ctypes.CDLL(library).seccomp_syscall_resolve_name_arch
    resolve.argtypes, resolve.restype = (ctypes.c_uint32, ctypes.c_char_p), ctypes.c_int
    unknown = 0
    for call, (machine, audit) in itertools.product(EVERY_CALL, AUDIT.items()):
        number = resolve(audit, call.name.encode())
        if number == -1:  # younger than the library
            unknown += 1
        else:  # below zero: not on this architecture
            assert number_of(call, machine) == (number if number >= 0 else None), (call, machine)
    assert unknown < 40, "so few calls were compared that this proves nothing"


def test_other_machines_have_no_program() -> None:
    with pytest.raises(ConfigError, match="'riscv64', only for x86_64 and aarch64"):
        bpf_program("riscv64")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the probe has numbers of x86_64")
def test_the_kernel_takes_the_program_and_keeps_to_it(tmp_path: Path) -> None:
    bwrap = require_bubblewrap()
    (tmp_path / "filter").write_bytes(bpf_program())
    walls = [bwrap, "--unshare-user", "--unshare-ipc", "--bind", "/", "/", "--dev", "/dev", "--proc", "/proc"]
    program = [sys.executable, "-I", "-c", PROBE]
    outcomes = {}
    with (tmp_path / "filter").open("rb") as file:
        for name, option in {"filtered": ["--seccomp", str(file.fileno())], "free": []}.items():
            ended = subprocess.run(
                [*walls, *option, *program], pass_fds=[file.fileno()], capture_output=True, text=True, check=False
            )
            outcomes[name] = ended.stdout or ended.stderr
    assert eval(outcomes["filtered"]) == PROBE_ANSWERS
    assert "'inet': 0" in outcomes["free"]  # without the filter the same program does get its socket
