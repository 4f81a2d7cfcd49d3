"""Running one cell of Python as a notebook would: names persist, the value of a last expression is shown.

Standard library only: the runner has this file without agentrl.
"""

import __future__

import ast
import io
import linecache
import os
import sys
import traceback
import types
from contextlib import suppress
from typing import Any, NamedTuple

CELL_PREFIX = "<cell "
_FUTURE_FLAGS = sum(getattr(__future__, name).compiler_flag for name in __future__.all_feature_names)
_MAX_CHAINED_ERRORS = 50


class CellOutcome(NamedTuple):
    """How a cell that was not killed ended."""

    succeeded: bool
    exit_code: int | None = None
    """Of a cell that called `sys.exit`."""


class Namespace:
    """The names that a session's cells define, in a module of its own called `__main__`.

    A real module, because pickling, dataclasses and `typing` look classes up through `sys.modules`.
    """

    def __init__(self) -> None:
        self.module = types.ModuleType("__main__")
        self.module.__dict__["__builtins__"] = __builtins__

    def run(self, code: str, number: int, streams: "StandardStreams") -> CellOutcome:
        """Runs a cell; never raises."""
        filename = f"{CELL_PREFIX}{number}>"
        remember_source(code, filename)
        sys.modules["__main__"] = self.module
        try:
            body, last = compile_cell(code, filename)
            exec(body, self.module.__dict__)
            value = None if last is None else eval(last, self.module.__dict__)
            if value is not None:
                streams.write(f"{value!r}\n")
        except SystemExit as error:
            return _exit_outcome(error.code, streams)
        except BaseException as error:
            streams.write(describe_exception(error))
            return CellOutcome(succeeded=False)
        return CellOutcome(succeeded=True)


class StandardStreams:
    """Fresh `sys.stdin`, `sys.stdout` and `sys.stderr` over descriptors 0, 1 and 2 for one cell.

    Both output streams share one buffer, so their order is kept, and are flushed at every line, so a killed cell
    still shows how far it came.

    Args:
        output_fd: Where the cell's output goes; closed here after it was duplicated.
    """

    def __init__(self, output_fd: int) -> None:
        _point_to_null(0)
        for fd in (1, 2):
            os.dup2(output_fd, fd)
        os.close(output_fd)
        self._sink = _Sink(1)
        self._buffer = io.BufferedWriter(self._sink)
        nothing = io.BufferedReader(io.FileIO(0, "rb", closefd=False))
        sys.stdin = sys.__stdin__ = io.TextIOWrapper(nothing, encoding="utf-8")  # type: ignore[misc]
        sys.stdout = sys.__stdout__ = self._text()  # type: ignore[misc]
        sys.stderr = sys.__stderr__ = self._text()  # type: ignore[misc]

    def _text(self) -> io.TextIOWrapper:
        return io.TextIOWrapper(
            self._buffer, encoding="utf-8", errors="backslashreplace", line_buffering=True, write_through=True
        )

    def write(self, text: str) -> None:
        """Writes after all that was printed, whatever the cell has done to `sys.stdout`."""
        for stream in (sys.stdout, self._buffer):
            with suppress(BaseException):
                stream.flush()
        data = text.encode("utf-8", "backslashreplace")
        with suppress(OSError):  # the cell closed its own output
            while data:
                data = data[os.write(1, data) :]

    def detach(self) -> None:
        """Flushes what is left and points the descriptors to nowhere: what still runs can no longer be heard."""
        with suppress(Exception):
            self._buffer.flush()
        self._sink.fd = None
        _point_to_null(0, 1, 2)


class _Sink(io.RawIOBase):
    """Writes to a descriptor until that is taken away: what a cell could not write must not appear in the next."""

    def __init__(self, fd: int) -> None:
        self.fd: int | None = fd

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        if self.fd is None:
            raise OSError("this stream belonged to an earlier cell")
        return self.fd

    def write(self, data: Any) -> int | None:
        if self.fd is None:
            return len(data)
        try:
            return os.write(self.fd, data)
        except BlockingIOError:
            return None


def remember_source(code: str, filename: str) -> None:
    """Lets tracebacks quote the lines of a cell."""
    lines = io.StringIO(f"{code}\n", newline=None).readlines()  # every line must end for markers to be placed right
    linecache.cache[filename] = (len(code), None, lines, filename)  # None: there is no file that could have changed


def compile_cell(code: str, filename: str) -> tuple[types.CodeType, types.CodeType | None]:
    """The statements of a cell, and apart from them its last one if that is an expression.

    Raises:
        SyntaxError: And ValueError, RecursionError or MemoryError, as `compile` does.
    """
    tree = ast.parse(code, filename)
    final = tree.body[-1] if tree.body else None
    if not isinstance(final, ast.Expr):
        return compile(tree, filename, "exec", dont_inherit=True), None
    tree.body.pop()
    body = compile(tree, filename, "exec", dont_inherit=True)
    flags = body.co_flags & _FUTURE_FLAGS  # `from __future__ import annotations` holds for the whole cell
    return body, compile(ast.Expression(final.value), filename, "eval", flags=flags, dont_inherit=True)


def describe_exception(error: BaseException) -> str:
    """The traceback with the frames and source lines of cells alone, causes and contexts included."""
    try:
        report = traceback.TracebackException.from_exception(error)
        has_frames = _keep_cell_frames(report)
        if isinstance(error, SyntaxError) and not has_frames and report.__context__ is None:
            return "".join(report.format_exception_only())  # did not compile: there is nothing to trace
        return "".join(report.format())
    except BaseException:  # an exception class can do anything in __str__, memory can be used up
        return f"{type(error).__name__}\n"


def _keep_cell_frames(report: traceback.TracebackException, _depth: int = 0) -> bool:
    """Removes foreign frames from a report and all it refers to; whether any frame is left in the report itself."""
    kept = [frame for frame in report.stack if frame.filename.startswith(CELL_PREFIX)]
    report.stack[:] = kept
    related = [report.__cause__, report.__context__, *(report.exceptions or [])]
    for other in related:
        if other is not None and _depth < _MAX_CHAINED_ERRORS:
            _keep_cell_frames(other, _depth + 1)
    return bool(kept)


def _exit_outcome(code: Any, streams: StandardStreams) -> CellOutcome:
    """What `sys.exit(code)` means: None and 0 succeed, a number is an exit code, all else is an error message."""
    if code is None:
        return CellOutcome(succeeded=True, exit_code=0)
    if isinstance(code, int):
        return CellOutcome(succeeded=code == 0, exit_code=int(code) & 0xFF)  # as the system would report it
    with suppress(BaseException):  # its __str__ is the cell's code
        streams.write(f"{code}\n")
    return CellOutcome(succeeded=False, exit_code=1)


def _point_to_null(*fds: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for fd in fds:
        if null != fd:
            os.dup2(null, fd)
    if null not in fds:
        os.close(null)
