"""The back end `http`: programs run by a remote service that takes the requests of SandboxFusion (`POST /run_code`).

For trainers that run in containers themselves, or on machines that must not run foreign code. What protects whom is
the service's affair. It keeps nothing between two calls, so every cell is a program of its own.
"""

import base64
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agentrl.errors import InfrastructureError
from agentrl.json_service import AnswerTooLongError, JsonService, Patience, RefusedError
from agentrl.sandbox.core import ExecResult, Limits, SecurityLevel
from agentrl.sandbox.result import died_result, to_result, too_long_result
from agentrl.sandbox.session import check_files
from agentrl.sandbox.stateless import StatelessSession

_RAISED = 250
"""Exit code of a program that ended by an exception, which other programs hardly use."""
_GRACE_S = 30.0
_ANSWER_BYTES = 16 << 20
_BYTES_PER_BYTE = 12
"""A control character takes six in JSON, and head and tail are kept."""
_TOO_LARGE = 413
_PROGRAM = """{cells}
_streams = StandardStreams(os.dup(1))
_outcome = Namespace().run({code}, 1, _streams)
_streams.detach()
os._exit({raised} if _outcome.exit_code is None and not _outcome.succeeded else _outcome.exit_code or 0)
"""


class HttpSandbox:
    """Sends every cell to a service, wrapped so that it prints what a cell prints here, the last value included.

    Args:
        url: Of the service, `http://host:port` or with the path of its end point.
        api_key: Sent as a bearer token, if the service wants one.
        security_level: What the service is known to hold against; it is not asked and cannot be trusted to say.

    Raises:
        ConfigError: The URL cannot be used.
    """

    name = "http"
    keeps_state = False

    def __init__(
        self, url: str, *, api_key: str | None = None, security_level: SecurityLevel = SecurityLevel.NONE
    ) -> None:
        self.url = url if "/" in url.partition("://")[2].rstrip("/") else f"{url.rstrip('/')}/run_code"
        self.security_level = security_level
        self._api_key = api_key

    def open(self, *, limits: Limits, files: Mapping[str, bytes] | None = None) -> StatelessSession:
        """A session that remembers nothing but `files`, which every cell finds in its working directory.

        Raises:
            ConfigError: A path in `files` leaves the working directory.
        """
        return StatelessSession(self, limits, check_files(files or {}))

    def run_program(self, code: str, limits: Limits, files: Mapping[str, bytes]) -> ExecResult:
        """Runs one program; once, unless the service is known to isolate programs.

        Raises:
            InfrastructureError: The service cannot be reached, refuses, fails, or answers something else.
        """
        if too_long := too_long_result(code, limits, keeps_state=False):
            return too_long
        body = {
            "code": wrap(code),
            "language": "python",
            "compile_timeout": limits.wall_s,
            "run_timeout": limits.wall_s,
            "memory_limit_MB": limits.memory_mb,
            "files": {path: base64.b64encode(data).decode() for path, data in files.items()},
            "fetch_files": [],
        }
        begun = time.monotonic()
        service = self._service(limits)
        try:
            answer = service.post(body, repeat=self.security_level > SecurityLevel.NONE)
            fields = _parse(answer)
        except AnswerTooLongError:  # the program's doing, as only its output has no bound
            return died_result("output", limits, time.monotonic() - begun, keeps_state=False)
        except RefusedError as error:
            if error.status == _TOO_LARGE:
                return died_result("request", limits, time.monotonic() - begun, keeps_state=False)
            raise InfrastructureError(f"{error} Check the address and what the service expects.") from error
        except ValueError as error:
            raise InfrastructureError(
                f"{service.name} does not speak the protocol of SandboxFusion: {error}."
            ) from error
        output = fields.pop("output").encode("utf-8", "replace")
        head, tail = output[: limits.output_bytes], output[limits.output_bytes :][-int(limits.output_bytes) :]
        ends = {"head": head.decode("latin-1"), "tail": tail.decode("latin-1"), "num_bytes": len(output)}
        wall_s = time.monotonic() - begun
        return to_result({**ends, **fields, "state": "reset", "wall_s": wall_s}, limits, keeps_state=False)

    def _service(self, limits: Limits) -> JsonService:
        silence_s = limits.wall_s + _GRACE_S
        patience = Patience(read_s=silence_s, deadline_s=3 * silence_s)
        return JsonService(
            self.url,
            what="sandbox service",
            patience=patience,
            api_key=self._api_key,
            max_response_bytes=_ANSWER_BYTES + _BYTES_PER_BYTE * int(limits.output_bytes),
        )


def wrap(code: str) -> str:
    """A program that runs `code` as a cell."""
    cells = (Path(__file__).with_name("runner") / "cells.py").read_text(encoding="utf-8")
    return _PROGRAM.format(cells=cells, code=ascii(code), raised=_RAISED)


def _parse(answer: Any) -> dict[str, Any]:
    """Output, status, reason, exit code, signal and time in the answer of a service.

    Raises:
        ValueError: It is no such answer.
        InfrastructureError: It says that the service itself has failed.
    """
    if not isinstance(answer, dict) or "status" not in answer:
        raise ValueError('an object with "status" was expected')
    run = answer.get("run_result")
    if answer["status"] == "SandboxError" or not isinstance(run, dict):
        raise InfrastructureError(f"The sandbox service failed: {answer.get('message') or answer['status']!r}.")
    output = f"{run.get('stdout') or ''}{run.get('stderr') or ''}"
    cpu_s = run.get("execution_time")
    fields = {
        "output": output,
        "reason": None,
        "exit_code": None,
        "signal": None,
        "cpu_s": float(cpu_s) if isinstance(cpu_s, int | float) else 0.0,
    }
    if run.get("status") == "TimeLimitExceeded":
        return {**fields, "status": "timeout", "reason": "wall"}
    code = run.get("return_code")
    if run.get("status") not in ("Finished", "Error") or not isinstance(code, int):
        raise ValueError(f"a run_result that has ended was expected, got {run.get('status')!r} with code {code!r}")
    if code < 0 or (code > 128 and code != _RAISED):  # a shell reports a signal as 128 and its number
        return {**fields, "status": "killed", "reason": "died", "signal": -code if code < 0 else code - 128}
    if code in (0, _RAISED):
        return {**fields, "status": "ok" if code == 0 else "error"}
    return {**fields, "status": "error", "exit_code": code}
