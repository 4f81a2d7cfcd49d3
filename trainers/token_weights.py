"""Factors on the loss of single tokens, orthogonal to the algorithm: they multiply what the aggregation says."""

from typing import Protocol

from torch import Tensor

from agentrl.trainers.batch import PathBatch


class TokenWeight(Protocol):
    """A part of a recipe: a factor for every token's loss. Inherit from it to get `needs_old_logprobs`."""

    @property
    def needs_old_logprobs(self) -> bool:
        """Whether the trainer has to compute log-probabilities of its own before the update (an extra forward pass).

        Otherwise those that the sampler reported serve as the old policy's.
        """
        return False

    def __call__(self, batch: PathBatch, old_logprobs: Tensor) -> Tensor:
        """Factors [B, L] without gradient; what they hold outside the mask does not matter.

        Args:
            batch: The whole mini-batch.
            old_logprobs: [B, L] under the trainer's policy before the update.
        """
        ...
