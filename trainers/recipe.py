"""An on-policy algorithm is a record of parts; none of them owns a loop.

    sampling -> shaping -> advantage          once per batch of episodes      (objective.compute_advantages)
    mask -> aggregation                       once per mini-batch             (objective.compute_weights)
    ratio -> surrogate -> + KL -> weights     once per micro-batch            (objective.policy_loss)

A recipe of your own changes what it wants to change::

    @recipe
    def dapo_soft() -> Recipe:
        \"\"\"DAPO with the KL penalty of GRPO.\"\"\"
        return replace(dapo(), name="dapo_soft", idea="DAPO, held near the reference", kl=KLPenalty(coef=0.01))
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from agentrl.errors import ConfigError
from agentrl.registry import Registry
from agentrl.rollout.plan import BranchRule
from agentrl.trainers.aggregation import Aggregation
from agentrl.trainers.algorithm import Algorithm
from agentrl.trainers.feedback import Advantage
from agentrl.trainers.kl import KLPenalty, KLPlace
from agentrl.trainers.ratios import RatioLevel
from agentrl.trainers.reward_models.core import RewardSource
from agentrl.trainers.shaping import RewardShaping
from agentrl.trainers.surrogates import Surrogate
from agentrl.trainers.token_weights import TokenWeight
from agentrl.trainers.trust_region import TrustRegion
from agentrl.trainers.value_loss import ValueLoss


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe(Algorithm):
    """The parts of an on-policy algorithm. Learning rate, epochs and mini-batches belong to the trainer, not here.

    Raises:
        ConfigError: Parts that do not fit together.

    Example:
        Recipe(name="grpo", paper="2402.03300", idea="compare with the group instead of a critic",
               sampling=GroupPlan(size=8), advantage=GroupNormalized(), ratio=TokenRatio(), surrogate=Clip(),
               aggregation=SeqMeanTokenMean(), kl=KLPenalty(coef=0.04))
    """

    advantage: Advantage
    ratio: RatioLevel
    surrogate: Surrogate
    aggregation: Aggregation
    kl: KLPenalty | None = None
    reward: RewardSource | None = None
    """A learned reward that takes the place of the environment's; None keeps the environment's."""
    shaping: tuple[RewardShaping, ...] = ()
    """Added to the rewards before advantages are formed."""
    mask_truncated: bool = False
    """Whether trajectories that a limit cut short leave the loss (they stay in the statistics of their group)."""
    token_weights: tuple[TokenWeight, ...] = ()
    """Factors on the losses of single tokens, beside the aggregation's."""
    value_loss: ValueLoss | None = None
    """How the critic is fitted; needed if the advantage needs one."""
    trust_region: TrustRegion | None = None
    """One step of bounded KL per update instead of Adam's."""

    def __post_init__(self) -> None:
        if self.sampling.size < self.min_group_size:
            raise ConfigError(
                f"Recipe {self.name!r} compares trajectories of one task and needs groups of at least "
                f"{self.min_group_size}, got sampling.size={self.sampling.size}."
            )
        if self.reward is not None and self.reward.needs_branches and self.sampling.rule is BranchRule.NONE:
            raise ConfigError(
                f"Recipe {self.name!r} reads off branches what a turn was worth ({type(self.reward).__name__}), but "
                "its branch rule is 'none'. Choose another, such as paper, or use prm_monte_carlo or prm_model."
            )
        if self.needs_critic and self.value_loss is None:
            raise ConfigError(
                f"Recipe {self.name!r} has an advantage with a critic, {type(self.advantage).__name__}, and nothing "
                "that fits the critic. Give it value_loss=ValueLoss()."
            )
        if self.trust_region is not None and self.surrogate.needs_fit:
            raise ConfigError(
                f"Recipe {self.name!r} has a trust region, whose line search needs one surrogate throughout, but its "
                f"{type(self.surrogate).__name__} is fitted anew for every step. Use Clip(low=inf, high=inf)."
            )

    @property
    def kl_in_reward(self) -> KLPenalty | None:
        """The KL penalty if it acts on the rewards."""
        return self.kl if self.kl is not None and self.kl.place is KLPlace.REWARD else None

    @property
    def kl_in_loss(self) -> KLPenalty | None:
        """The KL penalty if it acts on the loss."""
        return self.kl if self.kl is not None and self.kl.place is KLPlace.LOSS else None

    @property
    def needs_reference(self) -> bool:
        """Whether log-probabilities under a frozen reference model are needed."""
        return self.kl is not None

    @property
    def needs_critic(self) -> bool:
        """Whether a value model has to be trained beside the policy."""
        return self.advantage.needs_critic

    @property
    def needs_greedy(self) -> bool:
        """Whether a greedy episode is played beside every group."""
        return self.advantage.needs_greedy

    @property
    def needs_states(self) -> bool:
        """Whether the environment has to name states."""
        return self.advantage.needs_states

    @property
    def needs_turn_rewards(self) -> bool:
        """Whether the environment has to reward single turns."""
        return self.advantage.needs_turn_rewards

    @property
    def needs_forks(self) -> bool:
        """Whether half-finished episodes are copied, for branches or for completions that tell what turns are worth."""
        return super(Recipe, self).needs_forks or self.needs_completions

    @property
    def needs_completions(self) -> bool:
        """Whether episodes are played on from each of their turns."""
        return self.reward is not None and self.reward.needs_completions

    @property
    def needs_old_logprobs(self) -> bool:
        """Whether the trainer computes log-probabilities of its own before the update."""
        return self.trust_region is not None or any(weight.needs_old_logprobs for weight in self.token_weights)

    @property
    def min_group_size(self) -> int:
        """Trajectories of a task that its parts have to see at once."""
        by_rewards = 1 if self.reward is None else self.reward.min_group_size
        return max(self.advantage.min_group_size, by_rewards, 1 if self.group_filter is None else 2)

    @property
    def allows_replay(self) -> bool:
        """Whether the loss corrects for samples of an earlier policy."""
        return self.surrogate.uses_ratio and self.trust_region is None

    @property
    def needs(self) -> tuple[str, ...]:
        """What it takes beside the policy and its episodes."""
        extra = {"reward model": self.reward is not None, "completions": self.needs_completions}
        return (*super(Recipe, self).needs, *(name for name, needed in extra.items() if needed))


RECIPES: Registry[Algorithm] = Registry("recipe")
"""Every recipe by name; import it from `agentrl.trainers`, which fills it with the recipes that come with agentrl."""


DESCRIPTIONS: dict[str, str] = {}
"""What the function that built a recipe says about it, by name."""

AnyAlgorithm = TypeVar("AnyAlgorithm", bound=Algorithm)


def recipe(build: Callable[[], AnyAlgorithm]) -> Callable[[], AnyAlgorithm]:
    """Enters the recipe that a function builds into `RECIPES`, under the function's name.

    Args:
        build: A function without arguments; its docstring is the documentation of the recipe.

    Returns:
        `build` itself, for further recipes to start from.

    Raises:
        ConfigError: The recipe has another name than the function, or the name is taken.
    """
    entry = build()
    if entry.name != build.__name__:
        raise ConfigError(
            f"Recipe function {build.__name__!r} returns a recipe named {entry.name!r}; "
            f"set name={build.__name__!r} in it, as dataclasses.replace keeps the old name."
        )
    RECIPES.add(entry.name, entry)
    DESCRIPTIONS[entry.name] = inspect.getdoc(build) or ""
    return build
