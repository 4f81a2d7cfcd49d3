"""An MCP server as a program: its process, its pipes, its last words, and its end.

Imported only where MCP is used: the package `mcp` takes long to import.
"""

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import anyio
import mcp_types
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.client.stdio import get_default_environment
from mcp.shared.message import SessionMessage

from agentrl.errors import ConfigError
from agentrl.forking import fresh_after_fork
from agentrl.sandbox.runner.process_tree import kill_group
from agentrl.tools.mcp_spec import ServerSpec

MAX_MESSAGE_BYTES = 16 << 20
EXIT_GRACE_S = 2.0
"""How long a server may take to end after its standard input was closed."""
TERM_GRACE_S = 1.0
"""How long it may take after SIGTERM, before it is killed."""
_KILL_S = 2.0
_LAST_WORDS_S = 0.2
_POLL_S = 0.005
_KEPT_BYTES = 4096
_SHOWN_LINES = 8
_MAX_SHOWN = 200

Streams = tuple[MemoryObjectReceiveStream[SessionMessage | Exception], MemoryObjectSendStream[SessionMessage]]


class ServerProcess:
    """A started server. All of it runs in one event loop.

    The server sees the end of its standard input when this process ends, however that happens. It leads a process
    group of its own, so that Ctrl-C in the terminal reaches only this process, and children of the server end with it.

    Args:
        spec: With the command.

    Raises:
        ConfigError: There is no such program, or it may not be run.
    """

    def __init__(self, spec: ServerSpec) -> None:
        assert spec.command is not None
        environment = get_default_environment() | spec.environment()
        try:
            # Unbuffered, so that these file objects are the descriptors and nothing else.
            self._popen = subprocess.Popen(
                spec.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                env=environment,
                cwd=spec.cwd,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            raise ConfigError(f"The MCP server `{spec.label}` cannot be started: {error}.") from error
        self._is_over = False
        fresh_after_fork(self, ServerProcess.disown)
        self.how_it_ended = ""
        """For messages; empty while it runs, and when it had to be ended."""
        self._junk = ""
        self._ending = False
        self._stderr = _Tail()
        self._transports: list[asyncio.BaseTransport] = []

    @property
    def last_words(self) -> str:
        """What it wrote last: the end of its standard error, and a line on standard output that was no message."""
        text = ""
        if self._junk:
            text += f" It wrote {self._junk!r} on its standard output, which belongs to MCP alone."
        lines = [line.rstrip()[:_MAX_SHOWN] for line in self._stderr.kept.decode(errors="replace").splitlines()]
        if shown := [line for line in lines if line][-_SHOWN_LINES:]:
            text += "".join(["\nIts last lines on standard error:", *(f"\n  {line}" for line in shown)])
        return text

    @asynccontextmanager
    async def streams(self, on_end: Callable[[str], None]) -> AsyncIterator[Streams]:
        """The transport: what goes to the server and what comes from it. The process is ended at exit.

        Args:
            on_end: Called with the reason when the server, and not its client, has ended the connection.
        """
        incoming, messages = anyio.create_memory_object_stream[SessionMessage | Exception](0)
        outgoing, to_send = anyio.create_memory_object_stream[SessionMessage](0)
        try:
            reader, writer = await self._pipes()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._read, reader, incoming, on_end)
                tasks.start_soon(self._write, writer, to_send, incoming, on_end)
                try:
                    yield messages, outgoing
                finally:
                    self._ending = True
                    messages.close()  # so that reading goes on, into nothing, and the server can write its last words
                    if not writer.transport.is_closing():
                        writer.transport.abort()
                    await self._end()
                    tasks.cancel_scope.cancel()
        finally:
            await self._end()
            for stream in (incoming, messages, outgoing, to_send):
                stream.close()

    def disown(self) -> None:
        """Closes the pipes; in a forked process they would keep the server from seeing the end of its input."""
        self._is_over = True
        for pipe in (self._popen.stdin, self._popen.stdout, self._popen.stderr):
            if pipe is not None:
                pipe.close()

    async def _pipes(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=MAX_MESSAGE_BYTES)
        stdout, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), self._popen.stdout)
        stderr, _ = await loop.connect_read_pipe(lambda: self._stderr, self._popen.stderr)
        stdin, protocol = await loop.connect_write_pipe(
            lambda: asyncio.StreamReaderProtocol(asyncio.StreamReader()), self._popen.stdin
        )
        self._transports = [stdout, stderr, stdin]
        return reader, asyncio.StreamWriter(stdin, protocol, None, loop)

    async def _read(
        self,
        reader: asyncio.StreamReader,
        incoming: MemoryObjectSendStream[SessionMessage | Exception],
        on_end: Callable[[str], None],
    ) -> None:
        reason = "closed the connection"
        try:
            while line := await reader.readline():
                await self._deliver(line, incoming)
        except ValueError:
            reason = f"sent a message of more than {MAX_MESSAGE_BYTES >> 20} MiB"
        except OSError as error:
            reason = f"cannot be read from: {error}"
        finally:
            incoming.close()
            if not self._ending:
                on_end(reason)

    async def _deliver(self, line: bytes, incoming: MemoryObjectSendStream[SessionMessage | Exception]) -> None:
        try:
            message = mcp_types.jsonrpc_message_adapter.validate_json(line, by_name=False)
        except ValueError:
            self._junk = line.decode(errors="replace").strip()[:_MAX_SHOWN]
            return
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):  # the session is over
            await incoming.send(SessionMessage(message))

    async def _write(
        self,
        writer: asyncio.StreamWriter,
        to_send: MemoryObjectReceiveStream[SessionMessage],
        incoming: MemoryObjectSendStream[SessionMessage | Exception],
        on_end: Callable[[str], None],
    ) -> None:
        try:
            async for message in to_send:
                writer.write(message.message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n")
                await writer.drain()
        except OSError:
            incoming.close()  # whoever waits for an answer learns that none will come
            if not self._ending:
                on_end("closed the connection")

    async def _end(self) -> None:
        """Waits for the process, with more and more force, and closes what is left of the pipes."""
        if self._is_over:
            return
        with anyio.CancelScope(shield=True):
            if await self._ended_within(EXIT_GRACE_S):
                self.how_it_ended = _described(self._popen.returncode)
            else:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(self._popen.pid, signal.SIGTERM)
                await self._ended_within(TERM_GRACE_S)
            kill_group(self._popen.pid)  # its children, too
            await self._ended_within(_KILL_S)
            await self._stderr.wait_closed(_LAST_WORDS_S)
            for transport in self._transports:
                transport.close()
            await asyncio.sleep(0)  # the loop closes the descriptors in its next round
        self.disown()

    async def _ended_within(self, limit_s: float) -> bool:
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + limit_s
        while self._popen.poll() is None:
            if loop.time() >= ends_at:
                return False
            await asyncio.sleep(_POLL_S)
        return True


class _Tail(asyncio.Protocol):
    """Keeps the end of what comes."""

    def __init__(self) -> None:
        self.kept = b""
        self._closed = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self.kept = (self.kept + data)[-_KEPT_BYTES:]

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed.set()

    async def wait_closed(self, limit_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._closed.wait()


def _described(status: int) -> str:
    if status >= 0:
        return f"it exited with status {status}"
    with suppress(ValueError):
        return f"it was ended by {signal.Signals(-status).name}"
    return f"it was ended by signal {-status}"
