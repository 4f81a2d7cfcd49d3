"""The rows of a matrix with the greatest inner product, exactly and in bounded memory."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from agentrl.tools.embedder import Vectors

_BLOCK_BYTES = 8 << 20
"""Of vectors that are looked at in one go."""
_MAX_QUERIES = 256
"""Queries that are asked in one go."""


def nearest(vectors: Vectors, queries: Vectors, top_k: int, *, longest: float) -> list[list[tuple[float, int]]]:
    """For each query the rows with the greatest inner product.

    Products in float32 depend on how many queries are asked together and on where a row lies. They only choose the
    candidates here: those within rounding error of the best. What decides is their product in float64, so that the
    result does not depend on block, batch or number of threads, and equal rows have equal scores.

    Args:
        vectors: To search in, [rows, dimension], finite; a memory map is fine.
        queries: [queries, dimension], finite.
        top_k: Rows wanted for each query, from 1.
        longest: Greatest length of a row, as `longest_row` gives it.

    Returns:
        Score and row for each query, best first; equal scores by row.
    """
    if len(queries) > _MAX_QUERIES:
        groups = [queries[first : first + _MAX_QUERIES] for first in range(0, len(queries), _MAX_QUERIES)]
        return [found for group in groups for found in nearest(vectors, group, top_k, longest=longest)]
    best: list[list[tuple[float, int]]] = [[] for _ in queries]
    # Each of d products and sums is rounded by a part in 2^24 at most; twice that, for the powers of that part, and
    # twice again, as two products are compared.
    slack = 2.0**-22 * vectors.shape[1] * longest * np.linalg.norm(queries, axis=1)
    for begin, block in _blocks(vectors):
        products = queries @ block.T
        for number, query in enumerate(queries):
            found = _candidates(products[number], best[number], top_k, float(slack[number]))
            scores = (block[found].astype(np.float64) * query).sum(axis=1)
            merged = [*best[number], *zip(scores.tolist(), (found + begin).tolist(), strict=True)]
            best[number] = sorted(merged, key=lambda hit: (-hit[0], hit[1]))[:top_k]
    return best


def longest_row(vectors: Vectors) -> float:
    """The greatest length of a row."""
    return max(float(np.linalg.norm(block, axis=1).max()) for _, block in _blocks(vectors))


def _blocks(vectors: Vectors) -> Iterator[tuple[int, Vectors]]:
    """First row and rows of each block."""
    num_rows = max(1, _BLOCK_BYTES // (4 * vectors.shape[1]))
    for begin in range(0, len(vectors), num_rows):
        yield begin, vectors[begin : begin + num_rows]


def _candidates(products: Vectors, best: Sequence[tuple[float, int]], top_k: int, slack: float) -> NDArray[np.intp]:
    """Rows of a block that may be among the best so far."""
    least = -np.inf
    if len(products) > top_k:
        least = float(np.partition(products, -top_k)[-top_k]) - slack
    if len(best) == top_k:
        least = max(least, best[-1][0] - slack)
    return np.flatnonzero(products >= least)
