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

from collections.abc import Callable
from dataclasses import dataclass

from agentrl.errors import ConfigError
from agentrl.registry import Registry
from agentrl.rollout.plan import GroupPlan
from agentrl.trainers.advantages import Advantage
from agentrl.trainers.aggregation import Aggregation
from agentrl.trainers.kl import KLPenalty, KLPlace
from agentrl.trainers.ratios import RatioLevel
from agentrl.trainers.shaping import GroupFilter, RewardShaping
from agentrl.trainers.surrogates import Surrogate


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The parts of an on-policy algorithm. Learning rate, epochs and mini-batches belong to the trainer, not here.

    Raises:
        ConfigError: Parts that do not fit together.

    Example:
        Recipe(name="grpo", paper="2402.03300", idea="compare with the group instead of a critic",
               sampling=GroupPlan(size=8), advantage=GroupNormalized(), ratio=TokenRatio(), surrogate=Clip(),
               aggregation=SeqMeanTokenMean(), kl=KLPenalty(coef=0.04))
    """

    name: str
    paper: str
    """arXiv identifier."""
    idea: str
    """What it does differently, in one line."""
    sampling: GroupPlan
    advantage: Advantage
    ratio: RatioLevel
    surrogate: Surrogate
    aggregation: Aggregation
    kl: KLPenalty | None = None
    shaping: tuple[RewardShaping, ...] = ()
    """Added to the environment's rewards before advantages are formed."""
    group_filter: GroupFilter | None = None
    """Which groups are worth an update; None keeps all."""
    mask_truncated: bool = False
    """Whether trajectories that a limit cut short leave the loss (they stay in the statistics of their group)."""

    def __post_init__(self) -> None:
        smallest = max(self.advantage.min_group_size, 1 if self.group_filter is None else 2)
        if self.sampling.size < smallest:
            raise ConfigError(
                f"Recipe {self.name!r} compares trajectories of one task and needs groups of at least {smallest}, "
                f"got sampling.size={self.sampling.size}."
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


RECIPES: Registry[Recipe] = Registry("recipe")
"""Every recipe by name; import it from `agentrl.trainers`, which fills it with the recipes that come with agentrl."""


def recipe(build: Callable[[], Recipe]) -> Callable[[], Recipe]:
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
    return build
