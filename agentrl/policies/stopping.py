"""Recognising the end of a turn in sampled tokens without decoding the text at every step."""

from collections.abc import Sequence

import torch
from torch import Tensor

from agentrl.chat.template import Tokenizer


class StopMatcher:
    """Finds stop strings at the end of a token sequence.

    Only a token whose own text holds the last character of a stop string can complete it, so only after such a token
    is the tail decoded.

    Args:
        tokenizer: Of the model that samples.
        stop: Strings that end a turn.
        vocab_size: Number of rows of the model's output.
    """

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...], vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._window = 2 * max((len(text) for text in stop), default=0)  # a token is at least half a character here
        endings = {text[-1] for text in stop}
        self.candidates: Tensor = torch.tensor(
            [bool(endings & set(str(tokenizer.decode([i], skip_special_tokens=False)))) for i in range(vocab_size)]
            if stop
            else [False] * vocab_size
        )
        """[V] bool: tokens after which `matches` must be asked."""

    def matches(self, token_ids: Sequence[int]) -> bool:
        """Whether the text of the last token reaches the end of a stop string."""
        if not self._stop:
            return False
        tail = list(token_ids[-self._window :])
        text = str(self._tokenizer.decode(tail, skip_special_tokens=False))
        before = str(self._tokenizer.decode(tail[:-1], skip_special_tokens=False))
        return any(text.count(stop) > before.count(stop) for stop in self._stop)
