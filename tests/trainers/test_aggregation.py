"""Weights by hand, what they sum to, and the cases in which they must agree."""

from collections.abc import Callable

import pytest
import torch
from path_cases import make_case

from agentrl.errors import ConfigError
from agentrl.trainers import Aggregation, Constant, SeqMeanTokenMean, SeqMeanTokenSum, TokenMean
from agentrl.trainers.aggregation import constant, seq_mean_token_mean, seq_mean_token_sum, token_mean

# Three trajectories of 3, 1 and 0 tokens: 4 tokens, 2 trajectories that count.
MASK = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])
PARTS = [TokenMean(), SeqMeanTokenMean(), SeqMeanTokenSum(), Constant(10)]


@pytest.mark.parametrize(
    ("weights", "first", "second"),
    [
        (token_mean(MASK), 1 / 4, 1 / 4),
        (seq_mean_token_mean(MASK), 1 / (2 * 3), 1 / (2 * 1)),
        (seq_mean_token_sum(MASK), 1 / 2, 1 / 2),
        (constant(MASK, length=10), 1 / (2 * 10), 1 / (2 * 10)),
    ],
)
def test_by_hand(weights: torch.Tensor, first: float, second: float) -> None:
    expected = torch.tensor([[first] * 3, [second, 0, 0], [0, 0, 0]])
    torch.testing.assert_close(weights, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("part", "total"),
    [
        (TokenMean(), lambda mask: 1.0),
        (SeqMeanTokenMean(), lambda mask: 1.0),
        (SeqMeanTokenSum(), lambda mask: float(mask.sum() / mask.any(dim=1).sum())),
        (Constant(20), lambda mask: float(mask.sum() / mask.any(dim=1).sum() / 20)),
    ],
)
def test_what_the_weights_sum_to(part: Aggregation, total: Callable[[torch.Tensor], float], seed: int) -> None:
    mask = make_case(seed).batch.mask
    weights = part(mask)
    assert (weights[~mask] == 0).all()
    assert weights.double().sum().item() == pytest.approx(total(mask), rel=1e-6)


def test_equal_lengths_make_all_means_the_same() -> None:
    mask = torch.tensor([[True] * 4 + [False]] * 3)
    torch.testing.assert_close(seq_mean_token_mean(mask), token_mean(mask))
    torch.testing.assert_close(constant(mask, length=4), token_mean(mask))
    torch.testing.assert_close(seq_mean_token_sum(mask), 4 * token_mean(mask))


def test_unequal_lengths_do_not() -> None:
    assert (seq_mean_token_mean(MASK) - token_mean(MASK)).abs().max() > 0.08  # 1/4 - 1/6


@pytest.mark.parametrize("part", PARTS, ids=repr)
def test_empty_rows_and_columns_change_nothing(part: Aggregation) -> None:
    padded = torch.zeros(6, 5, dtype=torch.bool)
    padded[1:4, 1:4] = MASK
    assert torch.equal(part(padded)[1:4, 1:4], part(MASK))


@pytest.mark.parametrize("part", PARTS, ids=repr)
def test_a_batch_without_tokens_has_weight_zero(part: Aggregation) -> None:
    assert part(torch.zeros(2, 3, dtype=torch.bool)).tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("part", PARTS, ids=repr)
def test_the_mask_is_checked(part: Aggregation) -> None:
    with pytest.raises(TypeError, match=r"mask must be a bool tensor, got torch\.int64"):
        part(MASK.long())
    with pytest.raises(ValueError, match=r"mask must have shape \[B, L\]"):
        part(MASK[0])


def test_a_constant_needs_a_length() -> None:
    with pytest.raises(ConfigError, match="at least 1 token, got 0"):
        Constant(0)
