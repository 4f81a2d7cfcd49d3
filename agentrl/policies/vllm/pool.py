"""Several vLLM engines as one: requests are spread and taken over, lost engines are looked after."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from agentrl.errors import AgentRLError, ConfigError, InfrastructureError, PolicyError
from agentrl.policies.core import SequenceId
from agentrl.policies.vllm.counters import Counters
from agentrl.policies.vllm.engine import Engine, EngineEndedError, EngineLostError, Order, Sampled
from agentrl.policies.vllm.seats import Seat, Seating


class EnginePool:
    """Engines with the same model. All calls come from one event loop.

    Args:
        engines: At least one.
        max_attempts: Engines that a turn may lose before its episode is given up.
        probe_s: Time between attempts to get a lost engine back.
        grace_s: How long there may be no engine at all.

    Raises:
        ConfigError: There is no engine.
    """

    def __init__(
        self, engines: Sequence[Engine], *, max_attempts: int = 4, probe_s: float = 1.0, grace_s: float = 60.0
    ) -> None:
        if not engines:
            raise ConfigError("A vLLM policy needs at least one engine. Give policy.servers at least one URL.")
        self.counters = Counters()
        self._seating = Seating(engines)
        self._seats = self._seating.seats
        self._max_attempts = max_attempts
        self._probe_s = probe_s
        self._grace_s = grace_s
        self._weights: tuple[Path, int] | None = None
        self._probes: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        """Runs while there is no engine."""
        self._is_given_up = False
        self._awake = asyncio.Event()
        self._awake.set()

    @property
    def num_live(self) -> int:
        """Engines that take requests now."""
        return sum(not seat.is_out for seat in self._seats)

    # Turns -----------------------------------------------------------------------------------------------------------

    async def generate(self, sequence: SequenceId, order: Order) -> Sampled:
        """Samples one turn, at another engine if one is lost: the seed makes it the same turn wherever it is sampled.

        Raises:
            InfrastructureError: It failed for a reason of its own, or lost too many engines.
            BrokenModelError: An engine sampled from NaN.
            PolicyError: There is no engine any more.
        """
        self.counters.requests += 1
        attempt = 0
        while True:
            attempt += 1
            seat = await self._take(sequence)
            try:
                sampled = await self._call(seat, order)
            except EngineLostError as error:
                self._take_out(seat, error)
                if attempt >= self._max_attempts:
                    raise InfrastructureError(f"A turn lost {attempt} vLLM engines, at last: {error}") from error
                self.counters.retried += 1
                continue
            finally:
                self._seating.leave(seat)
            self.counters.cached_tokens += sampled.num_cached
            self.counters.prefilled_tokens += len(order.token_ids) - sampled.num_cached
            self.counters.sampled_tokens += len(sampled.token_ids)
            return sampled

    def fork(self, parent: SequenceId, child: SequenceId) -> None:
        """Has the child go where the parent is, whose tokens are cached there."""
        self._seating.fork(parent, child)

    def forget(self, sequence: SequenceId) -> None:
        """Forgets where a sequence was."""
        self._seating.forget(sequence)

    # All engines -----------------------------------------------------------------------------------------------------

    async def load_weights(self, path: Path, version: int) -> None:
        """Loads weights into all engines at the same time; one that fails is out until it has got them.

        Args:
            path: See `Engine.load_weights`; it must stay until the next version has been loaded.
            version: See there.

        Raises:
            PolicyError: No engine has got them. One that comes back gets those before.
        """
        before, self._weights = self._weights, (path, version)
        try:
            while all(seat.is_out for seat in self._seats):
                self._seating.leave(await self._take(None))  # when one has come back
            if not await self._with_all(lambda engine: engine.load_weights(path, version)):
                raise PolicyError(f"No vLLM engine took the weights of version {version}. {self._errors()}")
        except BaseException:
            self._weights = before
            raise

    async def sleep(self) -> None:
        """Gives the devices' memory back.

        Raises:
            PolicyError: No engine could.
        """
        self._awake.clear()
        if not await self._with_all(lambda engine: engine.sleep()):
            raise PolicyError(f"No vLLM engine could sleep. {self._errors()}")

    async def wake(self) -> None:
        """Takes it again; `load_weights` must follow.

        Raises:
            PolicyError: No engine could.
        """
        any_awake = await self._with_all(lambda engine: engine.wake())
        self._awake.set()
        if not any_awake:
            raise PolicyError(f"No vLLM engine could wake up. {self._errors()}")

    async def close(self) -> None:
        """Closes all engines. Safe to call twice."""
        for probe in self._probes:
            probe.cancel()
        if self._timer is not None:
            self._timer.cancel()
        await asyncio.gather(*(seat.engine.close() for seat in self._seats), return_exceptions=True)

    async def _with_all(self, act: Callable[[Engine], Awaitable[None]]) -> bool:
        """Whether any engine that is not out could do it; the others are out from now on."""
        seats = [seat for seat in self._seats if not seat.is_out]
        outcomes = await asyncio.gather(*(act(seat.engine) for seat in seats), return_exceptions=True)
        for seat, outcome in zip(seats, outcomes, strict=True):
            if isinstance(outcome, AgentRLError):
                self._take_out(seat, outcome)
                for call in seat.calls:  # nobody knows what they are sampled with
                    call.cancel()
            elif outcome is not None:
                raise outcome
        return None in outcomes

    # Losing engines and getting them back ----------------------------------------------------------------------------

    async def _take(self, sequence: SequenceId | None) -> Seat:
        if self._is_given_up:
            raise self._nobody()
        return await self._seating.take(sequence)

    async def _call(self, seat: Seat, order: Order) -> Sampled:
        call = asyncio.ensure_future(seat.engine.generate(order))
        seat.calls.add(call)
        self.counters.change(+1)
        try:
            return await call
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise EngineLostError(f"{seat.engine.name} was taken out: {seat.last_error}") from None
        finally:
            seat.calls.discard(call)
            self.counters.change(-1)

    def _take_out(self, seat: Seat, error: Exception) -> None:
        if not seat.is_out:
            seat.last_error = str(error)
            seat.is_out = True
            self.counters.lost_engines += 1
            probe = asyncio.ensure_future(self._bring_back(seat))
            self._probes.add(probe)
            probe.add_done_callback(self._probes.discard)
        if isinstance(error, EngineEndedError):
            seat.last_error = str(error)
            seat.has_ended = True
        if all(other.has_ended for other in self._seats):
            self._give_up()
        elif self._timer is None and not self._is_given_up and all(other.is_out for other in self._seats):
            self._timer = asyncio.get_running_loop().call_later(self._grace_s, self._give_up)

    async def _bring_back(self, seat: Seat) -> None:
        """Asks again and again, and lets the engine in when it is healthy and has the current weights."""
        while not seat.has_ended:
            await asyncio.sleep(self._probe_s)
            await self._awake.wait()
            weights = self._weights
            try:
                if not await seat.engine.is_healthy():
                    continue
                if weights is not None:
                    await seat.engine.load_weights(*weights)
            except Exception as error:  # of any kind: nobody else would hear of it, nor ask the engine again
                seat.last_error = str(error) if isinstance(error, AgentRLError) else f"{type(error).__name__} {error}"
                self._take_out(seat, error)
                continue
            if weights is self._weights and self._awake.is_set():
                self._let_in(seat)
                return

    def _let_in(self, seat: Seat) -> None:
        seat.is_out = False
        self._is_given_up = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._seating.admit()

    def _give_up(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._is_given_up = True
        self._seating.give_up(self._nobody())

    def _nobody(self) -> PolicyError:
        if all(seat.has_ended for seat in self._seats):
            return PolicyError(f"The vLLM engine has ended and cannot come back. {self._errors()}")
        return PolicyError(f"No vLLM engine answers, and none has come back in {self._grace_s:g} s. {self._errors()}")

    def _errors(self) -> str:
        return " ".join(f"{seat.engine.name}: {seat.last_error}" for seat in self._seats)
