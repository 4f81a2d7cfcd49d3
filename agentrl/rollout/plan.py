"""How the episodes of one task are sampled: independently, or with branches at uncertain moments."""

import enum
from dataclasses import dataclass

from agentrl.errors import ConfigError


class BranchRule(enum.StrEnum):
    """When a trajectory is branched after a tool result (ARPO, arXiv:2507.19849, section 3.2)."""

    NONE = "none"
    """Never: plain grouped sampling."""
    PAPER = "paper"
    """Branch iff alpha + beta * dH > tau, where dH compares the tokens after this tool result with the first turn's."""
    REFERENCE = "reference"
    """As the released code: a coin with P = clip(alpha + beta * dH, 0, 1), dH from the turn that led to the call."""
    TOP_ENTROPY = "top_entropy"
    """Rank all tool results of the initial trajectories by dH and branch at the highest."""
    RANDOM = "random"
    """A coin with P = alpha: the control that shows what entropy adds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupPlan:
    """The sampling plan of one group: `size` trajectories, `initial` of them from the prompt, the others branches.

    Trajectories that no branch claimed are sampled from the prompt when all others have ended, so that every group has
    exactly `size` leaves.

    Raises:
        ConfigError: Sizes that do not fit together.

    Example:
        GroupPlan(size=16, initial=8, rule=BranchRule.PAPER)
    """

    size: int = 8
    initial: int | None = None
    """None: all of them."""
    rule: BranchRule = BranchRule.NONE
    alpha: float = 0.5
    """Base branch probability (paper: alpha; released code: branch_probability)."""
    beta: float = 0.2
    """Weight of the entropy change (paper: beta; released code: entropy_weight)."""
    tau: float = 0.5
    """Threshold of the paper's rule."""
    probe_tokens: int = 20
    """Number of tokens whose entropy is compared (paper: k)."""
    max_branches: int = 1
    """Branches that one tool result may get (released code: beam_size - 1)."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ConfigError(f"A group needs at least one trajectory, got size={self.size}.")
        if not 1 <= self.num_initial <= self.size:
            raise ConfigError(f"initial must be between 1 and size={self.size}, got {self.initial}.")
        if self.rule is BranchRule.NONE and self.num_initial != self.size:
            raise ConfigError(f"initial={self.initial} < size={self.size} needs a branch rule other than 'none'.")
        if self.rule is not BranchRule.NONE and not self.branch_budget:
            raise ConfigError(
                f"Branch rule {self.rule.value!r} needs initial < size={self.size}: branches are the rest."
            )
        if self.probe_tokens < 1 or self.max_branches < 1:
            raise ConfigError("probe_tokens and max_branches must be at least 1.")

    @property
    def num_initial(self) -> int:
        """Trajectories that start at the prompt at once."""
        return self.size if self.initial is None else self.initial

    @property
    def branch_budget(self) -> int:
        """Trajectories that may start at a branch."""
        return self.size - self.num_initial
