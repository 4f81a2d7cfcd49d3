"""A policy that plays a script: for tests, documentation and dry runs, without any model."""

from collections.abc import Callable
from dataclasses import dataclass

from agentrl.chat.template import Tokenizer
from agentrl.policies.core import Completion, Request, SequenceId, StopCause


@dataclass(frozen=True, slots=True)
class Reply:
    """What the script says in one turn.

    Example:
        Reply("The answer is 42.", entropy=0.5)
    """

    text: str
    entropy: float = 0.0
    """Reported for each of its tokens, in nats."""
    delay: int = 0
    """Polls that pass before it is finished."""


class ScriptedPolicy:
    """Says what a function of the conversation so far tells it to (see `policies.core.Policy`).

    Args:
        tokenizer: Turns replies into ids; replies are tokenised on their own, as a model would emit them.
        script: From a request and its decoded text to a reply. It sees the request's seed, so that a random script
            can be as reproducible as a model.
        end_of_turn_id: Appended to every reply that is not cut.
        context_length: Longest sequence.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        script: Callable[[Request, str], Reply],
        *,
        end_of_turn_id: int,
        context_length: int = 1_000_000,
    ) -> None:
        self.version = 0
        self.context_length = context_length
        self._tokenizer = tokenizer
        self._script = script
        self._end_of_turn_id = end_of_turn_id
        self._in_flight: dict[SequenceId, tuple[int, Completion]] = {}

    def submit(self, request: Request) -> None:
        """Plays the script at once; `poll` hands the reply out after its delay."""
        text = str(self._tokenizer.decode(request.token_ids, skip_special_tokens=False))
        reply = self._script(request, text)
        ids = list(self._tokenizer.encode(reply.text, add_special_tokens=False))
        cause: StopCause = "end_of_turn"
        if any(reply.text.endswith(stop) for stop in request.stop):
            cause = "stop_string"
        else:
            ids.append(self._end_of_turn_id)
        if len(ids) > request.max_tokens:
            ids, cause = ids[: request.max_tokens], "length"
        completion = Completion(
            sequence=request.sequence,
            token_ids=ids,
            logprobs=[-1.0] * len(ids),
            raw_logprobs=None,
            entropies=[reply.entropy] * len(ids),
            cause=cause,
            policy_version=self.version,
        )
        self._in_flight[request.sequence] = (reply.delay, completion)

    def poll(self) -> list[Completion]:
        """The replies whose delay is over."""
        finished = [completion for delay, completion in self._in_flight.values() if delay == 0]
        self._in_flight = {
            sequence: (delay - 1, completion) for sequence, (delay, completion) in self._in_flight.items() if delay
        }
        return finished

    def fork(self, parent: SequenceId, child: SequenceId, num_tokens: int) -> None:
        """Nothing is cached, so there is nothing to share."""

    def release(self, sequence: SequenceId) -> None:
        """Cancels a reply that was not handed out."""
        self._in_flight.pop(sequence, None)
