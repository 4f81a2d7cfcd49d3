"""The policy on vLLM engines: `submit` and `poll` over an event loop in which every turn is a task of its own."""

import asyncio
import contextlib
import gc
import itertools
import queue
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import torch

from agentrl.chat.template import Tokenizer
from agentrl.errors import AgentRLError, InfrastructureError, PolicyError
from agentrl.policies.core import Completion, Failure, Request, SequenceId
from agentrl.policies.vllm.counters import Counters
from agentrl.policies.vllm.engine import Engine, Order
from agentrl.policies.vllm.loop import LoopThread
from agentrl.policies.vllm.orders import OrderDesk
from agentrl.policies.vllm.pool import EnginePool

_POLL_S = 0.005
"""How long a tool's answer may lie before it is looked at."""


class Weights(Protocol):
    """Where engines get the weights from that are trained (see `weights.WeightFiles`)."""

    def write(self, version: int) -> AbstractContextManager[Path]:
        """Writes them, to be loaded in the `with` block; what was loaded last stays (see `Engine.load_weights`)."""
        ...

    def close(self) -> None:
        """Removes what was written. Safe to call twice."""
        ...


class VllmPolicy:
    """A language model that vLLM samples from, in one or several engines (see `policies.core.Policy`).

    `submit`, `poll`, `fork` and `release` come from one thread; `weights_changed` may come from another one at any
    time. What vLLM cannot do as `TransformersPolicy` does is told at `OrderDesk.completion`.

    Args:
        open_engines: Makes the engines, in the event loop in which they will be used.
        tokenizer: Of the model.
        end_of_turn_ids: Tokens that end a turn.
        vocab_size: Width of the model's output.
        context_length: Longest sequence in tokens.
        weights: Of the model. They are closed together with the policy.
        num_top: How many of the most probable tokens are asked for at each position, to estimate the entropy.
        version: Weight updates so far; the first request, or update, brings the weights to the engines.
        sleeps: Whether `yield_memory` does anything.
        max_attempts: Engines that a turn may lose before its episode is given up.
        probe_s: Time between attempts to get a lost engine back.
        grace_s: How long there may be no engine at all.

    Raises:
        AgentRLError: The engines cannot be opened.
    """

    def __init__(
        self,
        open_engines: Callable[[], Awaitable[Sequence[Engine]]],
        *,
        tokenizer: Tokenizer,
        end_of_turn_ids: Iterable[int],
        vocab_size: int,
        context_length: int,
        weights: Weights,
        num_top: int = 20,
        version: int = 0,
        sleeps: bool = False,
        max_attempts: int = 4,
        probe_s: float = 1.0,
        grace_s: float = 60.0,
    ) -> None:
        self.version = version
        self.context_length = context_length
        self._desk = OrderDesk(
            tokenizer, end_of_turn_ids, vocab_size=vocab_size, context_length=context_length, num_top=num_top
        )
        self._weights = weights
        self._exchange = threading.Lock()
        self._sleeps = sleeps
        self._is_asleep = self._is_closed = False
        self._is_blank = True
        """Whether the engines may have other weights than those of `version`."""
        self._tickets = itertools.count()
        self._in_flight: dict[SequenceId, int] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        """By ticket; touched in the loop only, as is the pool."""
        self._outcomes: queue.SimpleQueue[tuple[SequenceId, int, Completion | Failure | Exception]]
        self._outcomes = queue.SimpleQueue()
        self._loop = LoopThread("agentrl-vllm")

        async def open_pool() -> EnginePool:
            engines = await open_engines()
            return EnginePool(engines, max_attempts=max_attempts, probe_s=probe_s, grace_s=grace_s)

        try:
            self._pool = self._loop.run(open_pool())
        except BaseException:
            self._loop.stop()
            raise
        self._reported = replace(self._pool.counters)

    @property
    def counters(self) -> Counters:
        """What the engines have done."""
        return self._pool.counters

    def metrics(self) -> dict[str, float]:
        """What the engines have done since the last call, and how many there are now."""
        before, self._reported = self._reported, replace(self._pool.counters)
        return {**self._reported.since(before).metrics(), "engine_live_engines": float(self._pool.num_live)}

    # Policy protocol -------------------------------------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        """Has a turn sampled.

        Raises:
            PolicyError: The sequence would be longer than the model's context, has a request in flight, or the engines
                are asleep or closed.
            ConfigError: A temperature that vLLM cannot sample at.
        """
        if request.sequence in self._in_flight:
            raise PolicyError(f"Sequence {request.sequence} has a request in flight already.")
        self._require_awake()
        if self._is_blank:
            self._load()
        order = self._desk.order(request, self.version)
        ticket = next(self._tickets)
        self._loop.post(self._begin, ticket, request, order)
        self._in_flight[request.sequence] = ticket

    def poll(self) -> list[Completion | Failure]:
        """Waits a moment for a turn to end, and returns all that have.

        Raises:
            PolicyError: The engines cannot go on.
        """
        self._loop.check()
        finished: list[Completion | Failure] = []
        wait = bool(self._in_flight)
        while True:
            try:
                sequence, ticket, outcome = self._outcomes.get(wait, _POLL_S)
            except queue.Empty:
                return finished
            if self._in_flight.get(sequence) != ticket:
                continue  # released in the meantime
            del self._in_flight[sequence]
            if isinstance(outcome, AgentRLError):
                raise outcome
            if isinstance(outcome, Exception):
                raise PolicyError(f"A vLLM engine failed: {type(outcome).__name__} {outcome}") from outcome
            finished.append(outcome)
            wait = False

    def fork(self, parent: SequenceId, child: SequenceId, num_tokens: int) -> None:
        """Has the child go to the engine where the parent is, whose prefix cache holds the shared tokens."""
        self._loop.post(self._pool.fork, parent, child)

    def release(self, sequence: SequenceId) -> None:
        """Forgets a sequence, cancelling its request if one is in flight."""
        ticket = self._in_flight.pop(sequence, None)
        with contextlib.suppress(PolicyError):  # nothing is left to be forgotten in a loop that has ended
            self._loop.post(self._end, sequence, ticket)

    # Weights and memory ----------------------------------------------------------------------------------------------

    def weights_changed(self) -> None:
        """Counts a weight update and has all engines sample with the new weights; returns when they do.

        Turns that are being sampled go on, and are stamped with the older version.

        Raises:
            PolicyError: No engine took them, or the engines are asleep.
        """
        self._require_awake()
        self._load(updates=1)

    def sleep(self) -> None:
        """Gives the memory of the engines' devices back, until `wake`.

        Raises:
            PolicyError: Turns are being sampled, or no engine can.
        """
        if self._in_flight:
            raise PolicyError(f"vLLM cannot sleep while {len(self._in_flight)} turns are being sampled.")
        with self._exchange:
            self._is_asleep = True
            self._loop.run(self._pool.sleep())

    def wake(self) -> None:
        """Takes the memory again. The weights are loaded with the next update, or else with the next request.

        Raises:
            PolicyError: No engine can.
        """
        with self._exchange:
            self._loop.run(self._pool.wake())
            self._is_asleep, self._is_blank = False, True

    @contextlib.contextmanager
    def yield_memory(self) -> Iterator[None]:
        """Sleeps as long as the block runs: the trainer has the device for itself. Does nothing without `sleeps`."""
        if not self._sleeps:
            yield
            return
        self.sleep()
        try:
            yield
        finally:
            gc.collect()
            torch.cuda.empty_cache()  # or PyTorch keeps what the block has freed, and the engine needs it
            self.wake()

    def _load(self, updates: int = 0) -> None:
        with self._exchange:
            if not updates and not self._is_blank:
                return  # another thread has loaded newer ones
            version = self.version + updates
            with self._weights.write(version) as path:
                self._loop.run(self._pool.load_weights(path, version))
            self.version = version
            self._is_blank = False

    # Life ------------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Cancels what is under way and closes the engines. Safe to call twice; without effect in a forked process."""
        if self._is_closed or not self._loop.is_mine:
            return
        self._is_closed = True
        with contextlib.suppress(PolicyError):  # the loop has ended by itself
            self._loop.run(self._close())
        self._loop.stop()
        self._weights.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _require_awake(self) -> None:
        self._loop.check()
        if self._is_asleep:
            raise PolicyError("The vLLM engines are asleep. Call wake() first, or end the yield_memory() block.")

    # In the loop -----------------------------------------------------------------------------------------------------

    def _begin(self, ticket: int, request: Request, order: Order) -> None:
        task = self._tasks[ticket] = asyncio.ensure_future(self._sample(ticket, request, order))
        task.add_done_callback(lambda _: self._tasks.pop(ticket))

    def _end(self, sequence: SequenceId, ticket: int | None) -> None:
        if ticket is not None and ticket in self._tasks:
            self._tasks[ticket].cancel()
        self._pool.forget(sequence)

    async def _sample(self, ticket: int, request: Request, order: Order) -> None:
        outcome: Completion | Failure | Exception
        try:
            sampled = await self._pool.generate(request.sequence, order)
            outcome = self._desk.completion(request, sampled)
        except InfrastructureError as error:
            outcome = Failure(sequence=request.sequence, error=error)
        except Exception as error:  # whatever it is, `poll` raises it: nobody else would hear of it
            outcome = error
        self._outcomes.put((request.sequence, ticket, outcome))

    async def _close(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._pool.close()
