"""Learning by imitation: supervised fine-tuning, and STaR, which fits the base model to what the policy got right."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from agentrl.errors import ConfigError
from agentrl.seeding import generator
from agentrl.trainers.algorithm import Algorithm
from agentrl.trainers.examples import RowKind
from agentrl.trainers.forward import TokenScorer
from agentrl.trainers.learner import Learner, average_steps, schedule
from agentrl.trainers.mini_batches import mini_batches
from agentrl.trainers.optimizer import MasterAdamW
from agentrl.trainers.settings import OptimizerSettings
from agentrl.trainers.supervised import imitation_step
from agentrl.trajectory import Tree


@dataclass(frozen=True, slots=True, kw_only=True)
class ImitationRecipe(Algorithm):
    """Supervised fine-tuning on rows of a file, or on what the environment's oracle does."""

    @property
    def row_kinds(self) -> frozenset[RowKind]:
        """Everything: of pairs the chosen one is imitated, of labelled trajectories the good ones."""
        return frozenset(RowKind)

    @property
    def needs(self) -> tuple[str, ...]:
        """What it takes beside the policy and its episodes."""
        return (*super(ImitationRecipe, self).needs, "demonstrations")


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfTaughtRecipe(Algorithm):
    """STaR, arXiv:2203.14465: an update is one iteration of its outer loop.

    Raises:
        ConfigError: A hint without a place for the answer, or a number out of range.
    """

    hint: str | None = "Hint: the answer is {answer}."
    """Told to the policy, and to nobody else, where it failed; {answer} is the task's. None: no second attempt."""
    giveaways: tuple[str, ...] = ("hint", "given answer", "answer is given", "answer was given")
    """By these words an agent shows that it was told. Such a solution is not imitated, unless the task has them too."""
    max_per_task: int = 4
    """Different solutions of one task that are imitated; without a bound the easy tasks would dominate."""
    steps: int = 40
    """Optimizer steps of the fit in the first update."""
    growth: float = 1.2
    """Factor on the steps from one update to the next."""
    max_steps: int = 1000
    """Where they stop growing, so that no run grows without end; with the numbers above after 18 updates."""
    batch: int = 8
    """Trajectories per optimizer step."""

    def __post_init__(self) -> None:
        if self.hint is not None and "{answer}" not in self.hint:
            raise ConfigError(f"hint needs a place {{answer}} for the task's answer, got {self.hint!r}.")
        for name in ("max_per_task", "steps", "batch", "growth"):
            if not 1 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} must be at least 1 and finite, got {getattr(self, name)}.")
        if self.max_steps < self.steps:
            raise ConfigError(f"max_steps must be at least steps={self.steps}, got {self.max_steps}.")

    @property
    def needs(self) -> tuple[str, ...]:
        """What it takes beside the policy and its episodes."""
        told = () if self.hint is None else ("answers", "extra samples")
        return (*super(SelfTaughtRecipe, self).needs, *told)

    def steps_of(self, number: int) -> int:
        """Optimizer steps of update `number`, from 0.

        >>> from agentrl.rollout.plan import GroupPlan
        >>> recipe = SelfTaughtRecipe(name="x", paper="", idea="", sampling=GroupPlan(size=1))
        >>> [recipe.steps_of(number) for number in range(4)]
        [40, 48, 58, 69]
        """
        steps = float(self.steps)
        for _ in range(number):
            steps = min(steps * self.growth, self.max_steps)
        return round(steps)


class ImitationLearner(Learner):
    """Minimises -mean log p over the sampled tokens of successful trajectories.

    Args:
        settings: Optimizer, mini-batches, memory bound.
        scorer: Forward pass of the policy that is trained.
        total_updates: Length of the schedule.
    """

    def __init__(self, settings: OptimizerSettings, scorer: TokenScorer, *, total_updates: int) -> None:
        self._settings = settings
        self._scorer = scorer
        self._total_updates = total_updates
        self.optimizer = MasterAdamW([p for p in scorer.model.parameters() if p.requires_grad], settings)

    def update(self, trees: Sequence[Tree], *, number: int, seed: int) -> dict[str, float]:
        """Trains on the successful trajectories; see `Learner`."""
        good = list(filter(None, map(solutions, trees)))
        factor = schedule(self._settings, number, self._total_updates)
        self.optimizer.learning_rate = self._settings.learning_rate * factor
        steps = [
            imitation_step(self._scorer, self.optimizer, [good[i] for i in chosen], self._settings)
            for chosen in (mini_batches(len(good), self._settings, seed) if good else ())
        ]
        metrics = {
            "demonstrations": float(sum(len(tree.leaves) for tree in good)),
            "learning_rate": self.optimizer.learning_rate,
        }
        return {**metrics, **average_steps(steps)} if steps else metrics

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state."""
        return {"optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what `state_dict` gave."""
        self.optimizer.load_state_dict(state["optimizer"])


class SelfTaughtLearner(Learner):
    """Fits the base model to the trajectories of an update, however much earlier updates had changed the policy.

    A fit is a run of its own: it begins with the weights before training and a new optimizer, and the learning-rate
    schedule is that of its steps. Without a trajectory there is no fit, and the policy stays as it is.

    Args:
        recipe: How long a fit is.
        settings: Optimizer and memory bound; epochs and mini-batches do not apply.
        scorer: Forward pass of the policy that is trained.
        base: The trainable weights before training, in the order of the model's parameters.
    """

    def __init__(
        self, recipe: SelfTaughtRecipe, settings: OptimizerSettings, scorer: TokenScorer, *, base: Sequence[Tensor]
    ) -> None:
        self._recipe = recipe
        self._settings = settings
        self._scorer = scorer
        self._parameters = [p for p in scorer.model.parameters() if p.requires_grad]
        self._base = base

    def update(self, trees: Sequence[Tree], *, number: int, seed: int) -> dict[str, float]:
        """Fits the base model; see `Learner`."""
        examples = [
            replace(tree, leaves=[leaf]) for tree in filter(None, map(solutions, trees)) for leaf in tree.leaves
        ]
        if not examples:
            return {"fit_steps": 0.0}
        self._restore()
        optimizer = MasterAdamW(self._parameters, self._settings)
        total = self._recipe.steps_of(number)
        steps = []
        for step, chosen in zip(range(total), self._batches(len(examples), seed), strict=False):
            optimizer.learning_rate = self._settings.learning_rate * schedule(self._settings, step, total)
            batch = [examples[i] for i in chosen]
            steps.append(imitation_step(self._scorer, optimizer, batch, self._settings))
        return {**average_steps(steps), "fit_steps": float(total), "learning_rate": optimizer.learning_rate}

    def state_dict(self) -> dict[str, Any]:
        """Nothing: no optimizer outlives its fit."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what `state_dict` gave."""

    @torch.no_grad()
    def _restore(self) -> None:
        for parameter, weights in zip(self._parameters, self._base, strict=True):
            parameter.copy_(weights)

    def _batches(self, count: int, seed: int) -> Iterator[list[int]]:
        """Endless: one shuffle after another, cut into batches, the last of each perhaps smaller."""
        epoch = 0
        while True:
            order = generator(seed, "fit", epoch).permutation(count).tolist()
            yield from (order[i : i + self._recipe.batch] for i in range(0, count, self._recipe.batch))
            epoch += 1


def solutions(tree: Tree) -> Tree | None:
    """The tree with its successful trajectories only, of those with a sampled token; None if there is none."""
    good = [
        leaf
        for leaf in tree.valid_leaves
        if leaf.success and any(any(segment.action_mask) for segment in tree.path(leaf.segment))
    ]
    return replace(tree, leaves=good) if good else None
