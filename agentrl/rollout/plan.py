"""How the episodes of one task are sampled: independently, or with branches at uncertain moments."""

import enum
import math
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
    AEPO = "aepo"
    """Branch iff (alpha + beta * dH) * max(0, 1 - branch_penalty * c) > tau, where the c moments before this one on
    the same path were branched at too (AEPO, arXiv:2510.14545, section 3)."""
    TOP_ENTROPY = "top_entropy"
    """Rank all tool results of the initial trajectories by dH and branch at the highest."""
    RANDOM = "random"
    """A coin with P = alpha: the control that shows what entropy adds."""
    RANDOM_NODES = "random_nodes"
    """Grow `initial` trees of equal size: in each of `rounds` rounds, when a tree's trajectories have ended, so many of
    its nodes are drawn at random and get a branch each that the group has its size in the end. Nodes are the prompt
    and the tool results that were answered by a further turn (Tree-GRPO, arXiv:2509.21240, section 3.1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupPlan:
    """The sampling plan of one group: `size` trajectories, `initial` of them from the prompt, the others branches.

    Trajectories that no branch claimed are sampled from the prompt when all others have ended, so that every group has
    exactly `size` leaves.

    A `dynamic` plan finds out `initial` for every group (AEPO, arXiv:2510.14545, section 3): the first trajectory runs
    alone, and then it is the first of

        m = clip(int(size * sigmoid(0.5 * probe_tokens * (H_root - H_tool))) + 1, 1, size),

    where H_root is the opening entropy of its first turn, and H_tool the mean of those of its later turns, each of
    which follows a tool result (H_root if there was none). Many start at the prompt where the question leaves the model
    less sure than tool results do.

    Raises:
        ConfigError: Numbers that do not fit together.

    Example:
        GroupPlan(size=16, initial=8, rule=BranchRule.PAPER)
    """

    size: int = 8
    initial: int | None = None
    """None: all of them, or what a dynamic plan finds."""
    rule: BranchRule = BranchRule.NONE
    alpha: float = 0.5
    """Base branch probability (paper: alpha; released code: branch_probability)."""
    beta: float = 0.2
    """Weight of the entropy change (paper: beta; released code: entropy_weight; AEPO's paper: gamma)."""
    tau: float = 0.5
    """Threshold of the rules `PAPER` and `AEPO`."""
    probe_tokens: int = 20
    """Number of tokens whose entropy is compared (paper: k)."""
    max_branches: int = 1
    """Branches that one tool result may get (released code: beam_size - 1)."""
    branch_penalty: float = 0.05
    """Of the rule `AEPO`: what each branching right before takes off, as a share."""
    dynamic: bool = False
    """Whether entropy decides how many trajectories start at the prompt."""
    rounds: int = 1
    """Of the rule `RANDOM_NODES` (paper: L)."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ConfigError(f"A group needs at least one trajectory, got size={self.size}.")
        if self.dynamic:
            self._check_dynamic()
        if not 1 <= self.num_initial <= self.size:
            raise ConfigError(f"initial must be between 1 and size={self.size}, got {self.initial}.")
        if self.rule is BranchRule.NONE and self.num_initial != self.size:
            raise ConfigError(f"initial={self.initial} < size={self.size} needs a branch rule other than 'none'.")
        if self.rule is not BranchRule.NONE and not self.branch_budget:
            raise ConfigError(
                f"Branch rule {self.rule.value!r} needs initial < size={self.size}: branches are the rest."
            )
        if self.probe_tokens < 1 or self.max_branches < 1 or self.rounds < 1:
            raise ConfigError("probe_tokens, max_branches and rounds must be at least 1.")
        if not 0.0 <= self.branch_penalty < math.inf:
            raise ConfigError(f"branch_penalty must be at least 0 and finite, got {self.branch_penalty!r}.")
        if self.rule is BranchRule.RANDOM_NODES:
            self._check_trees()

    def __str__(self) -> str:
        if self.rule is BranchRule.NONE:
            return f"{self.size} per task"
        start = "as many as entropy says" if self.dynamic else str(self.num_initial)
        return f"{self.size} per task: {start} from the prompt, branches by rule {self.rule.value}"

    @property
    def num_initial(self) -> int:
        """Trajectories that start at the prompt at once."""
        if self.dynamic:
            return 1
        return self.size if self.initial is None else self.initial

    @property
    def branch_budget(self) -> int:
        """Trajectories that may start at a branch; the most that there can be if the plan is dynamic."""
        return self.size - self.num_initial

    @property
    def draws(self) -> int:
        """Of the rule `RANDOM_NODES`: nodes drawn for each tree and round (paper: N)."""
        return (self.size // self.num_initial - 1) // self.rounds

    def _check_dynamic(self) -> None:
        if self.rule in (BranchRule.NONE, BranchRule.RANDOM_NODES):
            raise ConfigError(
                f"A dynamic plan shares the group between the prompt and branches, which the branch rule "
                f"{self.rule.value!r} leaves no room for. Choose another rule (aepo), or dynamic=false."
            )
        if self.initial is not None:
            raise ConfigError(
                f"A dynamic plan finds initial itself, got initial={self.initial}. Leave one of them out."
            )

    def _check_trees(self) -> None:
        if self.size % self.num_initial or (self.size // self.num_initial - 1) % self.rounds:
            raise ConfigError(
                f"Branch rule {self.rule.value!r} grows {self.num_initial} trees to 1 + rounds * n trajectories each, "
                f"so size must be initial * (1 + rounds * n) for a whole n; got size={self.size}, "
                f"initial={self.num_initial}, rounds={self.rounds}."
            )
