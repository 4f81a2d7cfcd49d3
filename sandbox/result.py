"""From what a runner answers to the result that callers see."""

import signal
from collections.abc import Mapping
from typing import Any, get_args

from agentrl.errors import InfrastructureError
from agentrl.sandbox.core import ExecResult, ExecStatus, Limits, StateAfter
from agentrl.text import clip_ends

_TYPES: dict[str, tuple[type, ...]] = {
    "head": (str,),
    "tail": (str,),
    "num_bytes": (int,),
    "exit_code": (int, type(None)),
    "signal": (int, type(None)),
    "reason": (str, type(None)),
    "cpu_s": (float, int),
    "wall_s": (float, int),
}


def to_result(answer: Mapping[str, Any], limits: Limits, *, keeps_state: bool = True) -> ExecResult:
    """The answer of a runner as the result that callers see.

    Args:
        answer: Of the runner.
        limits: Of the session.
        keeps_state: Whether names live from cell to cell.

    Raises:
        InfrastructureError: It is not what a runner answers.
    """
    _check(answer)
    head, tail = (answer[part].encode("latin-1") for part in ("head", "tail"))
    notice = _notice(answer, limits, keeps_state)
    room = max(0, int(limits.output_bytes) - len(notice.encode()) - 1)
    clipped = clip_ends(head, tail, answer["num_bytes"], room)
    separator = "\n" if notice and clipped.text and not clipped.text.endswith("\n") else ""
    fields = ("status", "exit_code", "signal", "reason", "cpu_s", "wall_s")
    return ExecResult(
        output=clipped.text + separator + notice,
        output_bytes=clipped.num_bytes,
        truncated=clipped.truncated,
        state=answer["state"] if keeps_state else "reset",
        **{name: answer[name] for name in fields},
    )


def died_result(reason: str, limits: Limits, wall_s: float, *, keeps_state: bool = True) -> ExecResult:
    """The result of a cell whose program brought down the sandbox, for a session that starts again."""
    status = "timeout" if reason == "wall" else "killed"
    answer = {"head": "", "tail": "", "num_bytes": 0, "exit_code": None, "signal": None, "cpu_s": 0.0, "wall_s": wall_s}
    return to_result({**answer, "status": status, "reason": reason, "state": "reset"}, limits, keeps_state=keeps_state)


def too_long_result(code: str, limits: Limits, *, keeps_state: bool = True) -> ExecResult | None:
    """The result of a cell with more code than a session accepts, which is not run; None for every other cell."""
    num_bytes = len(code.encode("utf-8", "surrogatepass"))
    if num_bytes <= limits.code_bytes:
        return None
    text = f"The code has {num_bytes:,} bytes; at most {limits.code_bytes:,} are accepted.\n"
    state: StateAfter = "kept" if keeps_state else "reset"
    return ExecResult(status="error", output=text, output_bytes=len(text), state=state, cpu_s=0.0, wall_s=0.0)


def _check(answer: Mapping[str, Any]) -> None:
    wrong = [name for name, types in _TYPES.items() if not isinstance(answer.get(name), types)]
    if answer.get("status") not in get_args(ExecStatus) or answer.get("state") not in get_args(StateAfter):
        wrong.append("status")
    if wrong:
        raise InfrastructureError(f"The sandbox's runner answered without a proper {wrong[0]!r}.")


def _notice(answer: Mapping[str, Any], limits: Limits, keeps_state: bool) -> str:
    """One line for the model: why a cell was killed and what became of its names, or its exit code."""
    if answer["reason"] is None:
        return f"exit code {answer['exit_code']}\n" if answer["exit_code"] else ""
    if not keeps_state:
        return f"killed: {_cause(answer, limits)}\n"
    names = "all names are lost" if answer["state"] == "reset" else "names from before this cell are kept"
    return f"killed: {_cause(answer, limits)}; {names}\n"


def _cause(answer: Mapping[str, Any], limits: Limits) -> str:
    reasons = {
        "cpu": f"{limits.cpu_s:g} s CPU limit",
        "wall": f"{limits.wall_s:g} s time limit",
        "memory": f"{limits.memory_mb} MB memory limit",
        "files": f"limit of {limits.inodes:,} files, all of which were removed",
        "pids": f"limit of {limits.pids} processes and threads",
        "protocol": "the cell wrote to a file descriptor of the interpreter",
        "sandbox": "what the cell left could not be ended, so that the sandbox was",
        "ended": "the interpreter had ended since the last cell",
        "cancelled": "the call was cancelled",
        "output": "the output was too large",
        "request": "the code and the files of the session are larger than the sandbox service accepts",
    }
    if answer["reason"] in reasons:
        return reasons[answer["reason"]]
    if answer["signal"] is not None:
        return f"the interpreter died by {_signal_name(answer['signal'])}"
    if answer["exit_code"] is not None:
        return f"the interpreter exited with code {answer['exit_code']}"
    return "the interpreter ended"  # not the runner's child: only Linux lets it adopt a checkpoint


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
