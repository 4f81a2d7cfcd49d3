"""Token trees as rows for one forward pass: packed (every token once) or padded (every path by itself).

A packed tree stands in one row, depth first, so the descendants of a token are the columns right behind it: token k
is seen by the queries k <= q < subtree_end[k] and by no others. One integer per token is thus the whole ancestor
mask, for any number of trees in a row. The position of a token is its depth, the same as on every path through it.

What a token's log-probability needs is the hidden state of the token before it on its path, its **predecessor**.
Columns hold whole trees; U lists the sampled tokens in the order of `lay_out_paths`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from agentrl.errors import ConfigError
from agentrl.trainers.batch import used_segments
from agentrl.trajectory import Segment, Tree


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedTrees:
    """R rows of T tokens, and where in them each unique sampled token is predicted.

    Example:
        A prompt [5, 6] with two samples [7, 8] and [9], packed:
        token_ids = [[5, 6, 7, 8, 9]], position_ids = [[0, 1, 2, 3, 2]], subtree_end = [[5, 5, 4, 4, 5]],
        row = [0, 0, 0], column = [1, 2, 1], target = [7, 8, 9].
    """

    token_ids: Tensor
    """[R, T] int64; 0 where padded."""
    position_ids: Tensor
    """[R, T] int64: number of tokens before this one on its path; 0 where padded."""
    subtree_end: Tensor
    """[R, T] int64: the column behind the last descendant."""
    row: Tensor
    """[U] int64: row of the predecessor of each sampled token."""
    column: Tensor
    """[U] int64: column of the predecessor."""
    target: Tensor
    """[U] int64: the sampled token."""

    @property
    def attention_mask(self) -> Tensor:
        """[R, 1, T, T] bool: True where the query (third axis) may attend to the key (fourth axis).

        Padding sees itself, so that no softmax is over nothing.
        """
        column = torch.arange(self.token_ids.shape[1], device=self.token_ids.device)
        return ((column <= column[:, None]) & (column[:, None] < self.subtree_end[:, None, :]))[:, None]

    @property
    def is_causal(self) -> bool:
        """Whether the attention mask is the causal one, which a model applies by itself, faster."""
        return bool((self.subtree_end == self.token_ids.shape[1]).all())

    def to(self, device: torch.device | str) -> "PackedTrees":
        """The same rows on another device."""
        return replace(self, **{field.name: getattr(self, field.name).to(device) for field in fields(self)})


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a segment stands in the rows."""

    row: int
    start: int
    previous: int | None
    """Column of the token before it on its path; None at the root."""
    depth: int
    end: int
    """The column behind its last descendant."""


def num_packed_tokens(tree: Tree) -> int:
    """Tokens that `pack_trees` computes for a tree: the unique ones of its valid trajectories."""
    return sum(len(segment.token_ids) for segment in used_segments(tree))


def num_padded_tokens(tree: Tree) -> int:
    """Tokens that `pad_paths` computes for a tree: valid trajectories times the longest of them."""
    lengths = [len(tree.token_ids(leaf.segment)) for leaf in tree.valid_leaves]
    return len(lengths) * max(lengths, default=0)


def pack_trees(trees: Sequence[Tree]) -> PackedTrees:
    """Lays trees out with every token once; a row holds as many whole trees as fit into the length of the largest.

    Trees are placed by size, largest first, into the first row with room. Segments of invalid trajectories only are
    left out.

    Raises:
        ValueError: No sampled token in any valid trajectory, or a sampled token that nothing predicts.
    """
    sizes = [num_packed_tokens(tree) for tree in trees]
    capacity = max(sizes, default=0)
    fill: list[int] = []
    places: dict[tuple[int, int], _Place] = {}
    for number in sorted(range(len(trees)), key=lambda i: -sizes[i]):
        row = next((r for r, length in enumerate(fill) if length + sizes[number] <= capacity), len(fill))
        if row == len(fill):
            fill.append(0)
        places.update(((number, i), place) for i, place in _place_tree(trees[number], row, fill[row]).items())
        fill[row] += sizes[number]
    row_index, column, target = _predictions(trees, places)
    shape = (len(fill), capacity)
    subtree_end = torch.arange(1, capacity + 1).repeat(len(fill), 1)
    token_ids, position_ids = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
    for (number, i), place in places.items():
        ids = trees[number].segments[i].token_ids
        columns = slice(place.start, place.start + len(ids))
        token_ids[place.row, columns] = torch.tensor(ids, dtype=torch.int64)
        position_ids[place.row, columns] = torch.arange(place.depth, place.depth + len(ids))
        subtree_end[place.row, columns] = place.end
    return PackedTrees(
        token_ids=token_ids,
        position_ids=position_ids,
        subtree_end=subtree_end,
        row=row_index,
        column=column,
        target=target,
    )


def pad_paths(trees: Sequence[Tree]) -> PackedTrees:
    """Lays every valid trajectory out in a row of its own, shared tokens repeated, padded on the right.

    The mask is the causal one, so any causal language model can run it. A shared token is predicted in the first
    trajectory that contains it; in the others it would have the same value and the same gradient.

    Raises:
        ValueError: As `pack_trees`.
    """
    rows: list[list[int]] = []
    places: dict[tuple[int, int], _Place] = {}
    for number, tree in enumerate(trees):
        for leaf in tree.valid_leaves:
            rows.append(tree.token_ids(leaf.segment))
            start = 0
            for segment in tree.path(leaf.segment):
                place = _Place(len(rows) - 1, start, start - 1 if start else None, depth=start, end=len(rows[-1]))
                places.setdefault((number, segment.id), place)
                start += len(segment.token_ids)
    row, column, target = _predictions(trees, places)
    padded = [torch.tensor(ids, dtype=torch.int64) for ids in rows]
    token_ids = torch.nn.utils.rnn.pad_sequence(padded, batch_first=True)
    length = token_ids.shape[1]
    return PackedTrees(
        token_ids=token_ids,
        position_ids=torch.arange(length).repeat(len(rows), 1),
        subtree_end=torch.full_like(token_ids, length),
        row=row,
        column=column,
        target=target,
    )


def split_by_tokens(
    trees: Sequence[Tree], max_tokens: int, num_tokens: Callable[[Tree], int] = num_packed_tokens
) -> list[list[int]]:
    """Divides trees into micro-batches of about equal size.

    A tree is never split: one with more than `max_tokens` is a micro-batch by itself. Trees without a valid
    trajectory are left out.

    Args:
        trees: The trees of one optimizer step.
        max_tokens: Largest number of tokens in a micro-batch.
        num_tokens: How many a tree counts for.

    Returns:
        Indices into `trees`, ascending within a micro-batch; the same for the same trees.

    Raises:
        ConfigError: `max_tokens` below 1.
    """
    if max_tokens < 1:
        raise ConfigError(f"A micro-batch needs room for at least one token, got max_tokens={max_tokens}.")
    sizes = {i: num_tokens(tree) for i, tree in enumerate(trees) if tree.valid_leaves}
    alone = [[i] for i, size in sizes.items() if size > max_tokens]
    rest = {i: size for i, size in sizes.items() if size <= max_tokens}
    count = max(1, -(-sum(rest.values()) // max_tokens))
    parts = _share_out(rest, count)
    while any(sum(rest[i] for i in part) > max_tokens for part in parts):
        count += 1
        parts = _share_out(rest, count)
    return sorted(alone + parts)


def _share_out(sizes: dict[int, int], count: int) -> list[list[int]]:
    """Items in at most `count` parts of about equal sum: largest first, always into the emptiest part."""
    parts: list[list[int]] = [[] for _ in range(count)]
    loads = [0] * count
    for i in sorted(sizes, key=lambda i: -sizes[i]):
        emptiest = loads.index(min(loads))
        parts[emptiest].append(i)
        loads[emptiest] += sizes[i]
    return [sorted(part) for part in parts if part]


def _place_tree(tree: Tree, row: int, start: int) -> dict[int, _Place]:
    """Columns of the used segments, depth first. Parents come before children in `segments`, so two passes do."""
    segments = used_segments(tree)
    size = {segment.id: len(segment.token_ids) for segment in segments}
    for segment in reversed(segments):
        if segment.parent is not None:
            size[segment.parent] += size[segment.id]
    places: dict[int, _Place] = {}
    free: dict[int | None, int] = {None: start}
    last: dict[int | None, int | None] = {None: None}
    depth: dict[int | None, int] = {None: 0}
    for segment in segments:
        parent, length = segment.parent, len(segment.token_ids)
        first = free[parent]
        free[parent] += size[segment.id]
        places[segment.id] = _Place(row, first, last[parent], depth[parent], free[parent])
        free[segment.id] = first + length
        last[segment.id] = first + length - 1 if length else last[parent]
        depth[segment.id] = depth[parent] + length
    return places


def _predictions(trees: Sequence[Tree], places: dict[tuple[int, int], _Place]) -> tuple[Tensor, Tensor, Tensor]:
    """Row and column of the predecessor, and the id, of every sampled token in the order of `lay_out_paths`."""
    rows: list[int] = []
    columns: list[int] = []
    targets: list[int] = []
    for number, tree in enumerate(trees):
        for segment in used_segments(tree):
            place = places[number, segment.id]
            sampled = [i for i, action in enumerate(segment.action_mask) if action]
            rows.extend([place.row] * len(sampled))
            columns.extend(_predecessor(tree, segment, place, i) for i in sampled)
            targets.extend(segment.token_ids[i] for i in sampled)
    if not targets:
        raise ValueError("No valid trajectory in these trees has a sampled token.")
    return torch.tensor(rows), torch.tensor(columns), torch.tensor(targets)


def _predecessor(tree: Tree, segment: Segment, place: _Place, offset: int) -> int:
    if offset:
        return place.start + offset - 1
    if place.previous is None:
        raise ValueError(
            f"Tree {tree.task_id!r}, segment {segment.id}: the very first token is marked as sampled, but no token "
            "comes before it that could predict it. Begin the tree with a prompt."
        )
    return place.previous
