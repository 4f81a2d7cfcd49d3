"""A preference algorithm is a record of two parts: how episodes become examples, and the loss of an example."""

from dataclasses import dataclass

from agentrl.errors import ConfigError
from agentrl.trainers.algorithm import Algorithm
from agentrl.trainers.examples import RowKind
from agentrl.trainers.preference.builders import PreferenceBuilder
from agentrl.trainers.preference.parts import PreferenceLoss


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceRecipe(Algorithm):
    """The parts of a preference algorithm, for recorded examples and for episodes of its own alike.

    Raises:
        ConfigError: A loss on pairs with a builder of labels, or the other way round.

    Example:
        PreferenceRecipe(name="dpo", paper="2305.18290", idea="learn from which of two trajectories is better",
                         sampling=GroupPlan(size=8), builder=BestAgainstWorst(), loss=DPO(beta=0.1))
    """

    builder: PreferenceBuilder
    loss: PreferenceLoss

    def __post_init__(self) -> None:
        if self.builder.paired != self.loss.paired:
            kinds = ("labels", "pairs")
            raise ConfigError(
                f"Recipe {self.name!r}: {type(self.builder).__name__} builds {kinds[self.builder.paired]}, and "
                f"{type(self.loss).__name__} compares {kinds[self.loss.paired]}. Choose a builder of the other kind."
            )

    @property
    def needs_reference(self) -> bool:
        """Whether the loss compares with a frozen reference model."""
        return self.loss.needs_reference

    @property
    def min_group_size(self) -> int:
        """Two for a pair."""
        return 2 if self.loss.paired else 1

    @property
    def row_kinds(self) -> frozenset[RowKind]:
        """Pairs; for labels also single trajectories. No row holds a trajectory that branches."""
        if self.builder.needs_branches:
            return frozenset()
        return frozenset({RowKind.PAIR} if self.loss.paired else {RowKind.PAIR, RowKind.LABELLED})

    @property
    def allows_replay(self) -> bool:
        """Preferences hold whoever played the episodes."""
        return True

    @property
    def needs(self) -> tuple[str, ...]:
        """What it takes beside the policy and its episodes."""
        return (*super(PreferenceRecipe, self).needs, "pairs" if self.loss.paired else "labels")
