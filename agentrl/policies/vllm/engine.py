"""What `VllmPolicy` asks of one vLLM engine, be it in this process or behind HTTP: tokens in, tokens out.

Nothing here imports vllm.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from agentrl.errors import InfrastructureError, PolicyError
from agentrl.policies.core import Sampling, StopCause


class EngineLostError(InfrastructureError):
    """The engine is gone or does not answer; another one may take the request over."""


class EngineEndedError(EngineLostError):
    """The engine is gone for good: nobody will start it again."""


class BrokenModelError(PolicyError):
    """The engine sampled from NaN: its weights are broken, and no other engine has better ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One turn to sample.

    Example:
        Order(token_ids=[1, 40, 12], max_tokens=64, stop=("</tool_call>",), stop_token_ids=(2,), seed=8812,
              sampling=Sampling(), num_top=20, version=3)
    """

    token_ids: list[int]
    """Everything so far."""
    max_tokens: int
    """At least 1; with `token_ids` it fits into the model's context."""
    stop: tuple[str, ...]
    """Strings that end the turn; the tokens that complete one are kept."""
    stop_token_ids: tuple[int, ...]
    """Tokens that end the turn; kept too."""
    seed: int
    """64 bits of a random stream's name."""
    sampling: Sampling
    num_top: int
    """How many of the most probable tokens to report at each position."""
    version: int
    """Of the weights when the turn was asked for: what older weights have cached must not be used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """What an engine made of an order; lists have one entry per sampled token."""

    token_ids: list[int]
    logprobs: list[float]
    """Under the distribution drawn from: after temperature, top-k and top-p. Of greedy decoding those at temperature 1,
    as vLLM reports them."""
    top: list[list[float]]
    """Log-probabilities of the `num_top` most probable tokens under the same distribution, best first; shorter where
    the distribution has fewer."""
    cause: StopCause
    versions: tuple[int, int]
    """Of the weights that sampled the first and the last token; equal unless an update came in between."""
    num_cached: int
    """Tokens of the prompt that were not computed again."""


class Engine(Protocol):
    """One vLLM engine. All calls come from one event loop; any number of `generate` may be under way."""

    name: str
    """For messages: a URL, or "in process"."""
    max_in_flight: int
    """More requests than this are kept waiting on this side."""

    async def generate(self, order: Order) -> Sampled:
        """Samples one turn. Cancelling it cancels the request in the engine.

        Raises:
            EngineLostError: The engine is gone, or silent for too long.
            InfrastructureError: It cannot do this one: it is out of memory, or says no.
            BrokenModelError: It sampled from NaN.
        """
        ...

    async def load_weights(self, path: Path, version: int) -> None:
        """Exchanges the weights, and forgets everything computed with the old ones.

        Requests under way go on with the new weights, over keys and values that are computed again.

        Args:
            path: A safetensors file with all parameters by their names in the checkpoint, or the folder of a LoRA
                adapter. An engine in this process also takes a file of handles to the parameters (`handles`).
            version: What they are called from now on.

        Raises:
            EngineLostError: The engine is gone.
            PolicyError: The weights do not fit, or old keys and values could not be dropped.
        """
        ...

    async def sleep(self) -> None:
        """Gives the device's memory back, weights included; no request may be under way."""
        ...

    async def wake(self) -> None:
        """Takes the memory again. `load_weights` must follow before the next request."""
        ...

    async def is_healthy(self) -> bool:
        """Whether it can take requests.

        Raises:
            EngineEndedError: It is gone for good.
        """
        ...

    async def close(self) -> None:
        """Ends what belongs to this object: connections, and an engine that it started. Safe to call twice."""
        ...
