"""What every algorithm says of itself: the row of the table that `agentrl algorithms` prints."""

from dataclasses import dataclass

from agentrl.rollout.plan import BranchRule, GroupPlan
from agentrl.trainers.examples import RowKind
from agentrl.trainers.shaping import GroupFilter


@dataclass(frozen=True, slots=True, kw_only=True)
class Algorithm:
    """The common part of all recipes: on-policy (`Recipe`), preference and imitation."""

    name: str
    paper: str
    """arXiv identifier."""
    idea: str
    """What it does differently, in one line."""
    sampling: GroupPlan
    """How the episodes of a task are sampled, unless they come from a file."""
    group_filter: GroupFilter | None = None
    """Which groups are worth an update; None keeps all."""

    @property
    def needs_reference(self) -> bool:
        """Whether log-probabilities under a frozen reference model are needed."""
        return False

    @property
    def needs_critic(self) -> bool:
        """Whether a value model has to be trained beside the policy."""
        return False

    @property
    def needs_greedy(self) -> bool:
        """Whether a greedy episode is played beside every group."""
        return False

    @property
    def needs_states(self) -> bool:
        """Whether the environment has to name states (`ToolEnv.state_key`)."""
        return False

    @property
    def needs_turn_rewards(self) -> bool:
        """Whether the environment has to reward single turns (`ToolEnv.turn_reward`)."""
        return False

    @property
    def needs_forks(self) -> bool:
        """Whether half-finished episodes are copied, their environments included."""
        return self.sampling.rule is not BranchRule.NONE

    @property
    def min_group_size(self) -> int:
        """Trajectories of a task it needs at least."""
        return 1

    @property
    def row_kinds(self) -> frozenset[RowKind]:
        """What rows of a file it can learn from; none if it needs fresh episodes of the policy that is trained."""
        return frozenset()

    @property
    def learns_from_files(self) -> bool:
        """Whether recorded episodes will do."""
        return bool(self.row_kinds)

    @property
    def allows_replay(self) -> bool:
        """Whether it may train on episodes of an earlier version of the policy."""
        return False

    @property
    def needs(self) -> tuple[str, ...]:
        """What it takes beside the policy and its episodes, as `agentrl algorithms` lists it."""
        return tuple(
            name
            for name, needed in (
                ("critic", self.needs_critic),
                ("reference", self.needs_reference),
                ("greedy episode", self.needs_greedy),
                ("state keys", self.needs_states),
                ("turn rewards", self.needs_turn_rewards),
                ("environment that forks", self.needs_forks),
            )
            if needed
        )
