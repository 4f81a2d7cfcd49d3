"""GAPO's reward: a discriminator of (prompt, response) that learns in turn with the policy (arXiv:2503.20194)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agentrl.errors import ConfigError, DataError
from agentrl.policies.loading import LoadedModel
from agentrl.seeding import generator
from agentrl.trainers.reward_models.core import Completer, RewardModel, RewardSource
from agentrl.trainers.reward_models.ngrams import NgramClassifier, Passage
from agentrl.trajectory import Leaf, Tree, read_trees


@dataclass(frozen=True, slots=True, kw_only=True)
class Discriminator(RewardSource):
    """Judges whether a response is a good one for its prompt; its clipped logit is the reward.

    It learns by binary cross-entropy. Good: demonstrations, and episodes of the policy that the environment counts as
    solved, the latest `max_positives` of the run. Bad: the episodes of the update that were not solved; and good
    responses under the prompt of another task, the paper's "modified constraint": whoever only looks at the response
    cannot tell these. Both sides weigh the same. Where the environment cannot tell success, give demonstrations, and
    all episodes of the policy are bad.

    Once every `fit_every` updates it learns, after the policy has. It sits an update out when it already tells good
    from bad too well, since a reward that is the same for all that the policy does teaches nothing. The first fit is
    longer; until then, and that needs something good to learn from, the environment's rewards stand.

    The paper's is a Longformer that reads text; this one is small (`NgramNet`), sees what the policy sampled, not what
    tools said, and starts with the run.

    Raises:
        ConfigError: A number that makes no sense.
    """

    demonstrations: Path | None = None
    """Good episodes as `agentrl.trajectory.write_trees` writes them, with the tokens of this model; solved or not."""
    fit_every: int = 1
    """Updates of the policy for one of the discriminator."""
    warmup_steps: int = 100
    """Optimizer steps of the first fit."""
    fit_steps: int = 10
    """Optimizer steps of later fits."""
    learning_rate: float = 1e-3
    label_smoothing: float = 0.1
    """Targets are 1 minus this, and this."""
    logit_clip: float = 5.0
    freeze_above: float = 0.95
    """Accuracy, the mean of those on good and on bad episodes, above which it does not learn further."""
    whiten: bool = True
    """Whether scores are shifted and scaled to mean 0 and standard deviation 1 over an update, against their drift."""
    max_positives: int = 512

    def __post_init__(self) -> None:
        if min(self.fit_every, self.warmup_steps, self.fit_steps, self.max_positives) < 1:
            raise ConfigError("fit_every, warmup_steps, fit_steps and max_positives must be at least 1.")
        if not (self.learning_rate > 0 and self.logit_clip > 0):
            raise ConfigError("learning_rate and logit_clip of a discriminator must be positive.")
        if not (0.0 <= self.label_smoothing < 0.5 <= self.freeze_above):
            raise ConfigError(
                f"label_smoothing must be in [0, 0.5) and freeze_above at least 0.5, got {self.label_smoothing} and "
                f"{self.freeze_above}."
            )

    def build(self, policy: LoadedModel, complete: Completer, *, seed: int) -> "DiscriminatorRewards":
        """A discriminator that knows nothing yet.

        Raises:
            DataError: The file of demonstrations holds none, or cannot be read.
        """
        return DiscriminatorRewards(self, seed=seed)


class DiscriminatorRewards(RewardModel):
    """The discriminator of a run; see `Discriminator`.

    Args:
        settings: Of the discriminator.
        seed: Of the run.

    Raises:
        DataError: The file of demonstrations holds none, or cannot be read.
    """

    def __init__(self, settings: Discriminator, *, seed: int) -> None:
        self._settings = settings
        self._classifier = NgramClassifier(learning_rate=settings.learning_rate, seed=seed)
        self._demonstrations = _demonstrations(settings.demonstrations)
        self._solved: list[Passage] = []
        self.num_fits = 0
        """How often it has learned."""

    def score(self, trees: Sequence[Tree], *, seed: int) -> list[Tree]:
        """Clipped logits as returns, whitened over all valid trajectories if so set."""
        if not self.num_fits:
            return list(trees)
        scores = self._logits([passage_of(tree, leaf) for tree in trees for leaf in tree.valid_leaves])
        if self._settings.whiten:
            scores = whitened(scores)
        remaining = iter(scores.tolist())
        return [_rescored(tree, [next(remaining) for _ in tree.valid_leaves]) for tree in trees]

    def fit(self, trees: Sequence[Tree], *, number: int, seed: int) -> dict[str, float]:
        """Takes note of what is good, and learns if it is its turn.

        Returns:
            "discriminator/accuracy", on this update's episodes and before it learns from them, if there are good and
            bad ones; "discriminator/fits", so far; and "discriminator/loss" if it has learned.
        """
        settings = self._settings
        leaves = [(tree, leaf) for tree in trees for leaf in tree.valid_leaves]
        self._solved += [passage_of(tree, leaf) for tree, leaf in leaves if leaf.success]
        self._solved = self._solved[-settings.max_positives :]
        good = [*self._demonstrations, *self._solved]
        bad = [passage_of(tree, leaf) for tree, leaf in leaves if not leaf.success]
        metrics: dict[str, float] = {}
        if good and bad:
            metrics["discriminator/accuracy"] = self._accuracy(good, bad)
        frozen = self.num_fits > 0 and metrics.get("discriminator/accuracy", 0.0) > settings.freeze_above
        worse = bad + under_other_prompts(good, bad, seed=seed)
        if number % settings.fit_every == 0 and good and worse and not frozen:
            metrics["discriminator/loss"] = self._learn(good, worse)
        return {**metrics, "discriminator/fits": float(self.num_fits)}

    def state_dict(self) -> dict[str, Any]:
        """Weights, moments, and the good episodes that it remembers."""
        solved = [(list(passage.prompt), list(passage.response)) for passage in self._solved]
        return {"classifier": self._classifier.state_dict(), "solved": solved, "num_fits": self.num_fits}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what `state_dict` gave."""
        self._classifier.load_state_dict(state["classifier"])
        self._solved = [Passage(tuple(prompt), tuple(response)) for prompt, response in state["solved"]]
        self.num_fits = state["num_fits"]

    def _logits(self, passages: Sequence[Passage]) -> Tensor:
        return self._classifier.logits(passages).clamp(-self._settings.logit_clip, self._settings.logit_clip)

    def _accuracy(self, good: Sequence[Passage], bad: Sequence[Passage]) -> float:
        found, rejected = self._logits(good) > 0, self._logits(bad) <= 0
        return (found.float().mean() + rejected.float().mean()).item() / 2

    def _learn(self, good: Sequence[Passage], bad: Sequence[Passage]) -> float:
        settings, smooth = self._settings, self._settings.label_smoothing
        targets = torch.tensor([1.0 - smooth] * len(good) + [smooth] * len(bad))
        weights = torch.tensor([1.0 / len(good)] * len(good) + [1.0 / len(bad)] * len(bad))
        steps = settings.fit_steps if self.num_fits else settings.warmup_steps
        self.num_fits += 1
        return self._classifier.fit([*good, *bad], targets, weights, num_steps=steps)


def passage_of(tree: Tree, leaf: Leaf) -> Passage:
    """The prompt of a trajectory and the tokens that were sampled on it."""
    prompt, *rest = tree.path(leaf.segment)
    sampled = [t for s in rest for t, action in zip(s.token_ids, s.action_mask, strict=True) if action]
    return Passage(tuple(prompt.token_ids), tuple(sampled))


def under_other_prompts(good: Sequence[Passage], others: Sequence[Passage], *, seed: int) -> list[Passage]:
    """Every good response under a prompt drawn from the other ones: GAPO's main negatives.

    Args:
        good: Responses to keep.
        others: Prompts of these serve as well.
        seed: Of the draw.

    Returns:
        One for each in `good`; none if all prompts are equal.
    """
    prompts = sorted({passage.prompt for passage in (*good, *others)})
    if len(prompts) < 2:
        return []
    draw = generator(seed, "other-prompts")
    places = {prompt: place for place, prompt in enumerate(prompts)}
    shifts = draw.integers(1, len(prompts), size=len(good)).tolist()
    return [
        replace(passage, prompt=prompts[(places[passage.prompt] + shift) % len(prompts)])
        for passage, shift in zip(good, shifts, strict=True)
    ]


def whitened(scores: Tensor) -> Tensor:
    """[N]: (s - mean) / std; 0 where all are equal."""
    centered = scores - scores.mean()
    std = centered.square().mean().sqrt()
    return centered / std if std > 1e-6 else torch.zeros_like(scores)


def _rescored(tree: Tree, scores: list[float]) -> Tree:
    remaining = iter(scores)
    leaves = [
        replace(leaf, reward=next(remaining), turn_rewards=[], reward_parts={}) if leaf.valid else leaf
        for leaf in tree.leaves
    ]
    return replace(tree, leaves=leaves)


def _demonstrations(path: Path | None) -> list[Passage]:
    if path is None:
        return []
    try:
        found = [passage_of(tree, leaf) for tree in read_trees(path) for leaf in tree.valid_leaves]
    except OSError as error:
        raise DataError(f"The demonstrations {path} cannot be read: {error}.") from error
    if not found:
        raise DataError(f"{path} holds no valid episode to learn from.")
    return found
