"""The path layout that every algorithm sees: B trajectories by L sampled tokens.

Legend of axes, used in the whole package: B trajectories (paths), L sampled tokens of the longest path, U unique
sampled tokens, T tokens of a packed row, V vocabulary.

Only action tokens are laid out: prompt, tool results and template glue never enter a loss, so they have no column.
A token shared by several paths appears once in U and in several rows of [B, L] through `token_index`. U numbers the
sampled tokens that at least one valid trajectory contains: tree by tree, segment by segment, token by token.
"""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from agentrl.trajectory import Segment, Tree


@dataclass(frozen=True, slots=True, kw_only=True)
class PathBatch:
    """What the episodes of a batch look like to an algorithm.

    Example:
        Two trajectories that share their first two tokens (U = 4):
        token_index = [[0, 1, 2], [0, 1, 3]], mask all True, rewards = [1.0, 0.0], group = [0, 0].
    """

    token_index: Tensor
    """[B, L] int64: which unique sampled token this is; 0 where padded."""
    mask: Tensor
    """[B, L] bool: True for a sampled token, False for padding."""
    rewards: Tensor
    """[B] float32: return of each trajectory."""
    group: Tensor
    """[B] int64: trajectories with the same value are episodes of one task."""
    turn: Tensor
    """[B, L] int64: assistant turn of each token."""
    logprobs: Tensor
    """[B, L] float32: log-probabilities under the policy that sampled, before top-p and top-k; 0 where padded."""
    entropies: Tensor
    """[B, L] float32: entropies in nats when sampled; 0 where padded."""
    truncated: Tensor
    """[B] bool: the episode was cut by a token or turn limit."""

    @property
    def lengths(self) -> Tensor:
        """[B] int64: sampled tokens of each trajectory."""
        return self.mask.sum(dim=1)

    def rows(self, index: Tensor) -> "PathBatch":
        """The trajectories selected by `index` (int64 or bool), in that order."""
        return replace(self, **{field.name: getattr(self, field.name)[index] for field in fields(self)})

    def to(self, device: torch.device | str) -> "PathBatch":
        """The same batch on another device."""
        return replace(self, **{field.name: getattr(self, field.name).to(device) for field in fields(self)})


def used_segments(tree: Tree) -> list[Segment]:
    """The segments that a valid trajectory contains, in the order of their ids: parents come before children.

    Everything that counts tokens for training goes through here, so what only an invalid trajectory contains is
    neither computed nor numbered.
    """
    used: set[int] = set()
    for leaf in tree.valid_leaves:
        current: int | None = leaf.segment
        while current is not None and current not in used:
            used.add(current)
            current = tree.segments[current].parent
    return [segment for segment in tree.segments if segment.id in used]


def lay_out_paths(trees: list[Tree]) -> PathBatch:
    """Lays the valid trajectories of `trees` out as rows.

    Args:
        trees: Groups; a tree without a valid leaf contributes no row, but its group number is used up.

    Raises:
        ValueError: No valid trajectory in any tree.
    """
    first_token: dict[tuple[int, int], int] = {}
    num_unique = 0
    for number, tree in enumerate(trees):
        for segment in used_segments(tree):
            first_token[number, segment.id] = num_unique
            num_unique += sum(segment.action_mask)
    columns: dict[str, list[Tensor]] = {"token_index": [], "turn": [], "logprobs": [], "entropies": []}
    rewards, group, truncated = [], [], []
    for number, tree in enumerate(trees):
        for leaf in tree.valid_leaves:
            index, turn, logprobs, entropies = _row(tree, leaf.segment, number, first_token)
            columns["token_index"].append(torch.tensor(index, dtype=torch.int64))
            columns["turn"].append(torch.tensor(turn, dtype=torch.int64))
            columns["logprobs"].append(torch.tensor(logprobs, dtype=torch.float32))
            columns["entropies"].append(torch.tensor(entropies, dtype=torch.float32))
            rewards.append(leaf.reward)
            group.append(number)
            truncated.append(leaf.stop_reason.is_truncation)
    if not rewards:
        raise ValueError("No valid trajectory in the batch: every episode ended by an infrastructure failure.")
    lengths = torch.tensor([len(row) for row in columns["token_index"]])
    padded = {name: torch.nn.utils.rnn.pad_sequence(rows, batch_first=True) for name, rows in columns.items()}
    return PathBatch(
        mask=torch.arange(int(lengths.max()))[None, :] < lengths[:, None],
        rewards=torch.tensor(rewards, dtype=torch.float32),
        group=torch.tensor(group),
        truncated=torch.tensor(truncated),
        **padded,
    )


def _row(
    tree: Tree, leaf: int, number: int, first_token: dict[tuple[int, int], int]
) -> tuple[list[int], list[int], list[float], list[float]]:
    """Unique index, turn, log-probability and entropy of every sampled token on one path."""
    index: list[int] = []
    turn: list[int] = []
    logprobs: list[float] = []
    entropies: list[float] = []
    for segment in tree.path(leaf):
        sampled = [i for i, action in enumerate(segment.action_mask) if action]
        start = first_token[number, segment.id]
        index.extend(range(start, start + len(sampled)))
        turn.extend([segment.turn] * len(sampled))
        source = segment.logprobs if segment.raw_logprobs is None else segment.raw_logprobs
        logprobs.extend(source[i] for i in sampled)
        entropies.extend(segment.entropies[i] for i in sampled)
    return index, turn, logprobs, entropies
