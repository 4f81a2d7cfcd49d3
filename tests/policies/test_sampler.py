"""Draws against plain float64 references, one row and one token at a time."""

import math
import random
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from agentrl.errors import ConfigError
from agentrl.policies.core import Sampling
from agentrl.policies.sampler import Draw, draw_tokens

INF = math.inf
TOLERANCE = 1e-5  # float32


def plain_softmax(logits: list[float], temperature: float = 1.0) -> list[float]:
    top = max(logits)
    weights = [math.exp((logit - top) / temperature) for logit in logits]
    return [weight / sum(weights) for weight in weights]


def plain_truncated(probabilities: list[float], top_k: int, top_p: float) -> list[float]:
    """Keeps the likeliest tokens, k of them, then as many of these as it takes to reach top_p; renormalised."""
    order = sorted(range(len(probabilities)), key=lambda token: (-probabilities[token], token))
    order = order[:top_k] if top_k else order
    total, mass, kept = sum(probabilities[token] for token in order), 0.0, []
    for token in order:
        if mass >= top_p:
            break
        kept.append(token)
        mass += probabilities[token] / total
    norm = sum(probabilities[token] for token in kept)
    return [probabilities[token] / norm if token in kept else 0.0 for token in range(len(probabilities))]


def plain_token(probabilities: list[float], uniform: float) -> int:
    total = 0.0
    for token, probability in enumerate(probabilities):
        total += probability
        if total > uniform:
            return token
    return max(token for token, probability in enumerate(probabilities) if probability > 0)


def draw(logits: list[list[float]], uniforms: list[float], **sampling: float) -> Draw:
    return draw_tokens(torch.tensor(logits), torch.tensor(uniforms), Sampling(**sampling))  # type: ignore[arg-type]


def random_logits(seed: int, rows: int = 6, vocab: int = 40) -> list[list[float]]:
    rng = random.Random(seed)
    return [[rng.gauss(0.0, 2.0) for _ in range(vocab)] for _ in range(rows)]


def spread(count: int) -> Tensor:
    """`count` uniform numbers, one in the middle of each of so many equal stretches of [0, 1)."""
    return (torch.arange(count) + 0.5) / count


# Distribution ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sampling",
    [{}, {"temperature": 0.6}, {"top_k": 3}, {"top_p": 0.7}, {"temperature": 1.5, "top_k": 6, "top_p": 0.9}],
    ids=str,
)
def test_frequencies(sampling: dict[str, float]) -> None:
    """Chi-square with 11 degrees of freedom at most; 40 is passed with probability 4e-5 by a right sampler."""
    logits = random_logits(0, rows=1, vocab=12)[0]
    expected = plain_truncated(
        plain_softmax(logits, sampling.get("temperature", 1.0)),
        int(sampling.get("top_k", 0)),
        sampling.get("top_p", 1.0),
    )
    count = 20_000
    uniforms = torch.rand(count, generator=torch.Generator().manual_seed(1))
    tokens = draw_tokens(torch.tensor([logits]).expand(count, -1), uniforms, Sampling(**sampling)).tokens  # type: ignore[arg-type]
    counts = torch.bincount(tokens, minlength=12).tolist()
    assert all(seen == 0 for seen, p in zip(counts, expected, strict=True) if p == 0)
    chi_square = sum((seen - count * p) ** 2 / (count * p) for seen, p in zip(counts, expected, strict=True) if p > 0)
    assert chi_square < 40
    wrong = plain_softmax([*logits[1:], logits[0]])  # the same test tells another distribution apart
    assert sum((seen - count * p) ** 2 / (count * p) for seen, p in zip(counts, wrong, strict=True)) > 1000


def test_every_stretch_of_the_uniform_numbers_belongs_to_its_token() -> None:
    """1000 evenly spaced numbers fall on tokens of probability .1, .2, .3, .4 exactly 100, 200, 300, 400 times."""
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().expand(1000, -1)
    tokens = draw_tokens(logits, spread(1000), Sampling()).tokens
    assert tokens.tolist() == [0] * 100 + [1] * 200 + [2] * 300 + [3] * 400


@settings(deadline=None, max_examples=200)
@given(
    seed=st.integers(0, 10**6),
    temperature=st.sampled_from([0.3, 1.0, 2.0]),
    top_k=st.integers(0, 45),
    top_p=st.sampled_from([0.05, 0.5, 0.9, 1.0]),
)
def test_against_the_plain_reference(seed: int, temperature: float, top_k: int, top_p: float) -> None:
    logits = random_logits(seed)
    uniforms = [random.Random(seed + i).random() for i in range(len(logits))]
    got = draw(logits, uniforms, temperature=temperature, top_k=top_k, top_p=top_p)
    for row, (token, logprob, raw, entropy) in enumerate(
        zip(*(column.tolist() for column in (got.tokens, got.logprobs, got.raw_logprobs, got.entropies)), strict=True)
    ):
        full = plain_softmax(logits[row], temperature)
        kept = plain_truncated(full, top_k, top_p)
        close = [plain_token(kept, u) for u in (uniforms[row] - 1e-6, uniforms[row], uniforms[row] + 1e-6)]
        assert token in close
        assert logprob == pytest.approx(math.log(kept[token]), abs=TOLERANCE)
        assert raw == pytest.approx(math.log(full[token]), abs=TOLERANCE)
        assert entropy == pytest.approx(-sum(p * math.log(p) for p in full), abs=TOLERANCE)
        if not top_k and top_p == 1.0:
            assert logprob == raw


def test_log_probabilities_and_entropy_by_hand() -> None:
    """Probabilities 1/2, 1/4, 1/8, 1/8: entropy 1/2 ln 2 + 1/4 ln 4 + 2/8 ln 8 = 1.75 ln 2. Of the two likeliest
    (2/3, 1/3) the second is drawn: ln 1/3, and ln 1/4 before top-k."""
    got = draw([[math.log(p) for p in (0.5, 0.25, 0.125, 0.125)]], [0.9], top_k=2)
    assert got.tokens.tolist() == [1]
    assert got.logprobs.tolist() == [pytest.approx(math.log(1 / 3), abs=TOLERANCE)]
    assert got.raw_logprobs.tolist() == [pytest.approx(math.log(1 / 4), abs=TOLERANCE)]
    assert got.entropies.tolist() == [pytest.approx(1.75 * math.log(2), abs=TOLERANCE)]


def test_top_p_keeps_the_token_that_crosses_the_border() -> None:
    logits = [[math.log(p) for p in (0.5, 0.25, 0.125, 0.125)]]
    for top_p, kept in ((0.01, 1), (0.5, 1), (0.51, 2), (0.75, 2), (0.8, 3), (0.9, 4), (1.0, 4)):
        tokens = draw_tokens(torch.tensor(logits * 800), spread(800), Sampling(top_p=top_p)).tokens
        assert set(tokens.tolist()) == set(range(kept)), top_p


def test_top_k_comes_first() -> None:
    """Of 0.4, 0.3, 0.2, 0.1 the two likeliest are 4/7 and 3/7; the first alone reaches a top_p of 0.5 of these two,
    while of all four it would not."""
    logits = [[math.log(p) for p in (0.4, 0.3, 0.2, 0.1)]] * 100
    assert set(draw_tokens(torch.tensor(logits), spread(100), Sampling(top_k=2, top_p=0.5)).tokens.tolist()) == {0}
    assert set(draw_tokens(torch.tensor(logits), spread(100), Sampling(top_p=0.5)).tokens.tolist()) == {0, 1}


def test_ties_keep_the_smaller_token() -> None:
    logits = torch.zeros(90, 5)
    assert set(draw_tokens(logits, spread(90), Sampling(top_k=3)).tokens.tolist()) == {0, 1, 2}
    assert set(draw_tokens(logits, spread(90), Sampling(top_p=0.35)).tokens.tolist()) == {0, 1}
    assert draw_tokens(logits, spread(90), Sampling(temperature=0.0)).tokens.tolist() == [0] * 90


# Borders --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2**-24, 1.0])
@pytest.mark.parametrize("vocab", [2, 50_000])
def test_the_borders_of_the_uniform_numbers(uniform: float, vocab: int) -> None:
    """Tokens without probability at both ends are never drawn; a float64 below 1 may become 1 in float32."""
    middle = random_logits(3, rows=1, vocab=vocab)[0]
    got = draw([[-INF, -INF, *middle, -INF]], [uniform])
    assert got.tokens.tolist() == [2 if uniform == 0.0 else vocab + 1]
    assert torch.isfinite(got.logprobs).all()


def test_masked_tokens_have_no_share() -> None:
    logits = [[0.0, -INF, math.log(3.0), -INF]] * 400
    got = draw_tokens(torch.tensor(logits), spread(400), Sampling())
    assert got.tokens.tolist() == [0] * 100 + [2] * 300  # 1/4 and 3/4
    entropy = 0.25 * math.log(4) + 0.75 * math.log(4 / 3)
    assert got.entropies.tolist() == [pytest.approx(entropy, abs=TOLERANCE)] * 400
    alone = draw([[-INF, 7.0, -INF]], [0.3], top_k=2, top_p=0.9)
    assert (alone.tokens.tolist(), alone.logprobs.tolist(), alone.entropies.tolist()) == ([1], [0.0], [0.0])


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.0}, {"top_k": 2}, {"top_p": 0.5}], ids=str)
@pytest.mark.parametrize("row", [[math.nan, 1.0, 2.0], [-INF, -INF, -INF], [INF, 1.0, 2.0]], ids=str)
def test_broken_logits_are_refused(row: list[float], sampling: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="NaN logits"):
        draw([[0.0, 1.0, 2.0], row], [0.5, 0.5], **sampling)


def test_extreme_logits() -> None:
    got = draw([[1e4, 0.0], [1e38, -1e38], [-1e4, -1e4]], [0.99, 0.99, 0.99], temperature=0.5)
    assert got.tokens.tolist() == [0, 0, 1]
    assert got.entropies.tolist() == [0.0, 0.0, pytest.approx(math.log(2), abs=TOLERANCE)]


def test_greedy() -> None:
    logits = random_logits(7)
    got = draw(logits, [0.999] * len(logits), temperature=0.0)
    assert got.tokens.tolist() == [row.index(max(row)) for row in logits]
    assert got.logprobs.tolist() == [0.0] * len(logits)  # drawn with certainty
    for row, raw, entropy in zip(logits, got.raw_logprobs.tolist(), got.entropies.tolist(), strict=True):
        full = plain_softmax(row)
        assert raw == pytest.approx(math.log(max(full)), abs=TOLERANCE)
        assert entropy == pytest.approx(-sum(p * math.log(p) for p in full), abs=TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_taken_as_they_are(dtype: torch.dtype) -> None:
    """The arithmetic is float32 whatever the model's dtype."""
    logits = torch.tensor(random_logits(9)).to(dtype)
    uniforms = spread(len(logits))
    half, full = (draw_tokens(given, uniforms, Sampling(top_p=0.8)) for given in (logits, logits.float()))
    for name in ("tokens", "logprobs", "raw_logprobs", "entropies"):
        assert torch.equal(getattr(half, name), getattr(full, name))
    assert half.logprobs.dtype is torch.float32


# Settings -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: Sampling(temperature=-0.1),
        lambda: Sampling(temperature=INF),
        lambda: Sampling(temperature=math.nan),
        lambda: Sampling(top_p=0.0),
        lambda: Sampling(top_p=1.1),
        lambda: Sampling(top_p=math.nan),
        lambda: Sampling(top_k=-1),
    ],
)
def test_wrong_settings_are_refused(make: Callable[[], Sampling]) -> None:
    with pytest.raises(ConfigError, match="must be"):
        make()


def test_what_truncates() -> None:
    assert not Sampling(temperature=0.7).truncates
    assert all(s.truncates for s in (Sampling(temperature=0.0), Sampling(top_p=0.99), Sampling(top_k=1)))
