"""A classifier that is small enough to learn beside any policy: bags of hashed n-grams of token ids, and two layers.

Legend: N examples, D width of an embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from agentrl.seeding import derive

NUM_BUCKETS = 2**13
"""Rows of the table that n-grams are hashed into; two that collide look the same."""
MAX_ORDER = 3
"""Single tokens, pairs and triples."""
_WIDTH = 16
_HIDDEN = 32


@dataclass(frozen=True, slots=True)
class Passage:
    """What is judged: a prompt, and what came after it.

    Example:
        Passage(prompt=(5, 17, 3), response=(9, 2))
    """

    prompt: tuple[int, ...]
    response: tuple[int, ...]


def ngram_buckets(token_ids: Sequence[int]) -> NDArray[np.int64]:
    """The rows of all n-grams of a text, orders 1 to `MAX_ORDER`, equal in every process."""
    tokens = np.asarray(token_ids, dtype=np.uint64)
    hashes = np.zeros(len(tokens) + 1, dtype=np.uint64)
    found = []
    for order in range(MAX_ORDER):
        hashes = _mixed(hashes[:-1] + tokens[order:] + np.uint64(1))
        found.append(hashes % np.uint64(NUM_BUCKETS))
    return np.concatenate(found).astype(np.int64)


def _mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64: neighbors become strangers."""
    numbers = numbers + np.uint64(0x9E3779B97F4A7C15)
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


class NgramNet(nn.Module):
    """Logit = MLP([p, r, p * r]), where p and r are mean embeddings of the n-grams of prompt and response.

    The product lets it judge whether the two belong together.
    """

    def __init__(self) -> None:
        super().__init__()
        self.prompt = nn.EmbeddingBag(NUM_BUCKETS, _WIDTH, mode="mean")
        self.response = nn.EmbeddingBag(NUM_BUCKETS, _WIDTH, mode="mean")
        self.head = nn.Sequential(nn.Linear(3 * _WIDTH, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, 1))

    def forward(self, bags: "Bags") -> Tensor:
        """[N] logits."""
        p, r = self.prompt(*bags.prompts), self.response(*bags.responses)
        logits: Tensor = self.head(torch.cat([p, r, p * r], dim=1))
        return logits[:, 0]


class Bags:
    """Passages as the network takes them: for prompts and responses, all buckets in a row, and where each begins."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        self.prompts = _bag([passage.prompt for passage in passages])
        self.responses = _bag([passage.response for passage in passages])


def _bag(texts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    known: dict[Sequence[int], NDArray[np.int64]] = {}  # the episodes of a group have one prompt
    buckets = [known.setdefault(text, ngram_buckets(text)) if text not in known else known[text] for text in texts]
    starts = np.cumsum([0, *(len(found) for found in buckets)])[:-1]
    return torch.from_numpy(np.concatenate(buckets)), torch.from_numpy(starts)


class NgramClassifier:
    """The network with its optimizer, on the CPU: a batch is some thousand n-grams.

    Args:
        learning_rate: Of AdamW.
        seed: Of the first weights.
    """

    def __init__(self, *, learning_rate: float, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "ngram-classifier"))
            self.network = NgramNet()
        self._optimizer = torch.optim.AdamW(self.network.parameters(), lr=learning_rate)

    @torch.no_grad()
    def logits(self, passages: Sequence[Passage]) -> Tensor:
        """[N], without gradient."""
        return self.network(Bags(passages)) if passages else torch.zeros(0)

    def fit(self, passages: Sequence[Passage], targets: Tensor, weights: Tensor, *, num_steps: int) -> float:
        """Steps on the weighted binary cross-entropy of all examples at once.

        Args:
            passages: N of them, at least one.
            targets: [N] in [0, 1].
            weights: [N], positive.
            num_steps: Optimizer steps.

        Returns:
            The weighted mean loss at the last step, before it; 0 without a step.
        """
        bags, last = Bags(passages), 0.0
        for _ in range(num_steps):
            self._optimizer.zero_grad()
            losses = nn.functional.binary_cross_entropy_with_logits(self.network(bags), targets, reduction="none")
            loss = (weights * losses).sum() / weights.sum()
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            last = loss.item()
        return last

    def state_dict(self) -> dict[str, Any]:
        """Weights and moments."""
        return {"network": self.network.state_dict(), "optimizer": self._optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what `state_dict` gave."""
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
