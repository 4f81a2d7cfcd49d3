"""The path layout that every algorithm sees: B trajectories by L sampled tokens.

Legend of axes, used in the whole package: B trajectories (paths), L sampled tokens of the longest path, U unique
sampled tokens, T tokens of a packed row, V vocabulary.

Only action tokens are laid out: prompt, tool results and template glue never enter a loss, so they have no column.
A token shared by several paths appears once in U and in several rows of [B, L] through `token_index`. U numbers the
sampled tokens that at least one valid trajectory contains: tree by tree, segment by segment, token by token.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from agentrl.trajectory import Leaf, Segment, Tree

GREEDY_REWARD = "greedy_reward"
"""Key of a tree's metadata: return of the greedy episode that was played beside the group."""

_Row: TypeAlias = dict[str, list[float] | list[int]]
_COLUMNS = {
    "token_index": torch.int64,
    "turn": torch.int64,
    "states": torch.int64,
    "logprobs": torch.float32,
    "entropies": torch.float32,
    "turn_rewards": torch.float32,
}


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
    success: Tensor
    """[B] bool: the environment counts the episode as solved."""
    root: Tensor
    """[B] int64: which trajectory sampled from the prompt this one is or branched from, counted within its group."""
    turn_rewards: Tensor
    """[B, L] float32: the reward of each turn at its last token, 0 elsewhere; a row sums to `rewards`."""
    states: Tensor
    """[B, L] int64: number of the state in which the token's turn was taken; equal numbers are equal states of one
    task, -1 where the environment does not say."""
    greedy_rewards: Tensor
    """[B] float32: return of the greedy episode of the same task; NaN where none was played."""
    reward_parts: Tensor
    """[B, K] float32: the named parts of `rewards`; K = 0 where the environment gives plain numbers."""
    part_names: tuple[str, ...] = ()
    """Names of the K parts, in alphabetical order."""

    @property
    def lengths(self) -> Tensor:
        """[B] int64: sampled tokens of each trajectory."""
        return self.mask.sum(dim=1)

    def rows(self, index: Tensor) -> "PathBatch":
        """The trajectories selected by `index` (int64 or bool), in that order."""
        return self._map(lambda column: column[index])

    def to(self, device: torch.device | str) -> "PathBatch":
        """The same batch on another device."""
        return self._map(lambda column: column.to(device))

    def _map(self, change: Callable[[Tensor], Tensor]) -> "PathBatch":
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        changed: dict[str, Any] = {name: change(c) for name, c in columns.items() if torch.is_tensor(c)}
        return replace(self, **changed)


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
    rows: list[_Row] = []
    group: list[int] = []
    greedy: list[float] = []
    states: dict[tuple[int, str], int] = {}
    for number, tree in enumerate(trees):
        for leaf in tree.valid_leaves:
            rows.append(_row(tree, leaf, number, first_token, states))
            group.append(number)
            greedy.append(float(tree.metadata.get(GREEDY_REWARD, math.nan)))
    if not rows:
        raise ValueError("No valid trajectory in the batch: every episode ended by an infrastructure failure.")
    leaves = [leaf for tree in trees for leaf in tree.valid_leaves]
    names = tuple(sorted({name for leaf in leaves for name in leaf.reward_parts}))
    lengths = torch.tensor([len(row["token_index"]) for row in rows])
    padded = {
        name: torch.nn.utils.rnn.pad_sequence([torch.tensor(row[name], dtype=dtype) for row in rows], batch_first=True)
        for name, dtype in _COLUMNS.items()
    }
    return PathBatch(
        mask=torch.arange(int(lengths.max()))[None, :] < lengths[:, None],
        rewards=torch.tensor([leaf.reward for leaf in leaves], dtype=torch.float32),
        group=torch.tensor(group),
        truncated=torch.tensor([leaf.stop_reason.is_truncation for leaf in leaves]),
        success=torch.tensor([leaf.success for leaf in leaves]),
        root=torch.tensor([leaf.root for leaf in leaves]),
        greedy_rewards=torch.tensor(greedy, dtype=torch.float32),
        reward_parts=torch.tensor(
            [[leaf.reward_parts.get(name, 0.0) for name in names] for leaf in leaves], dtype=torch.float32
        ),
        part_names=names,
        **padded,
    )


def _row(
    tree: Tree,
    leaf: Leaf,
    number: int,
    first_token: dict[tuple[int, int], int],
    states: dict[tuple[int, str], int],
) -> _Row:
    """Everything that is known about the sampled tokens of one path."""
    index: list[int] = []
    turn: list[int] = []
    logprobs: list[float] = []
    entropies: list[float] = []
    for segment in tree.path(leaf.segment):
        sampled = [i for i, action in enumerate(segment.action_mask) if action]
        start = first_token[number, segment.id]
        index.extend(range(start, start + len(sampled)))
        turn.extend([segment.turn] * len(sampled))
        source = segment.logprobs if segment.raw_logprobs is None else segment.raw_logprobs
        logprobs.extend(source[i] for i in sampled)
        entropies.extend(segment.entropies[i] for i in sampled)
    numbers = [states.setdefault((number, key), len(states)) for key in leaf.state_keys]
    return {
        "token_index": index,
        "turn": turn,
        "states": [numbers[t] if t < len(numbers) else -1 for t in turn],
        "logprobs": logprobs,
        "entropies": entropies,
        "turn_rewards": _at_turn_ends(leaf, turn),
    }


def _at_turn_ends(leaf: Leaf, turn: list[int]) -> list[float]:
    """The rewards of a path at the last tokens of its turns; what belongs to no token of its own goes to the last."""
    placed = [0.0] * len(turn)
    if not turn:
        return placed
    last_token = {t: position for position, t in enumerate(turn)}
    for t, reward in enumerate(leaf.turn_rewards):
        placed[last_token.get(t, len(turn) - 1)] += reward
    placed[-1] += leaf.reward - sum(leaf.turn_rewards)
    return placed
