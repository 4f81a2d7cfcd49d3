"""What looks at entropies, at the balance of a batch, or at the sampler, against plain-Python references."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import reference_aepo
import reference_bapo
import reference_clip_cov
import reference_correction
import reference_grpo_s
import reference_gtpo
import reference_kl_cov
import reference_tools
import reference_top_entropy
from loss_rows import SEEDS, Loss, Row, assert_agrees, assert_has_teeth, fitted
from path_cases import EDGES, Case, aimed, make_case
from reference_covariance import Position, num_selected

from agentrl.trainers import Clip, GroupNormalized, Recipe, TokenMean
from agentrl.trainers.adaptive_clip import AdaptiveClip, Contribution
from agentrl.trainers.covariance import ClipCov, KLCov
from agentrl.trainers.entropy_advantages import EntropyAware, EntropyShapedSequences, EntropyShapedTokens
from agentrl.trainers.levels import CorrectionAction, CorrectionLevel
from agentrl.trainers.recipes.aepo import aepo
from agentrl.trainers.recipes.bapo import bapo
from agentrl.trainers.recipes.entropy_covariance import clip_cov, kl_cov
from agentrl.trainers.recipes.grpo import grpo
from agentrl.trainers.recipes.gtpo import grpo_s, gtpo
from agentrl.trainers.soft_surrogates import GradientPreservingClip
from agentrl.trainers.token_weights import SamplerCorrection, TopEntropy

# GTPO and GRPO-S -----------------------------------------------------------------------------------------------------


def gtpo_separate_reference(case: Case) -> Loss:
    return lambda new: reference_gtpo.loss(case.paths, case.tasks, case.successes, case.entropies, new, case.old)


def gtpo_reference(case: Case) -> Loss:
    """One mean and one deviation over all tokens of the group, successes and failures together."""
    shaped = reference_gtpo.shaped_rewards(case.paths, case.tasks, case.successes, case.entropies)
    advantages: list[list[float]] = [[] for _ in case.paths]
    for task in set(case.tasks):
        members = [i for i in range(len(case.paths)) if case.tasks[i] == task]
        pooled = [value for i in members for value in shaped[i]]
        mean = sum(pooled) / len(pooled)
        deviation = math.sqrt(sum((value - mean) ** 2 for value in pooled) / max(len(pooled) - 1, 1))
        for i in members:
            advantages[i] = [(value - mean) / (deviation + 1e-8) if deviation else 0.0 for value in shaped[i]]

    def loss(new: list[float]) -> float:
        terms = []
        for path, own in zip(case.paths, advantages, strict=True):
            for token, advantage in zip(path, own, strict=True):
                ratio = math.exp(new[token] - case.old[token])
                terms.append(-min(ratio * advantage, min(max(ratio, 0.8), 1.28) * advantage))
        return sum(terms) / len(terms)

    return loss


def grpo_s_separate_reference(case: Case) -> Loss:
    return lambda new: reference_grpo_s.loss(case.paths, case.tasks, case.successes, case.entropies, new, case.old)


def grpo_s_reference(case: Case) -> Loss:
    """One mean and one deviation over the trajectories of the group that have a token."""
    shaped = reference_grpo_s.shaped_rewards(case.paths, case.tasks, case.successes, case.entropies)
    advantages = [0.0] * len(case.paths)
    for task in set(case.tasks):
        members = [i for i, path in enumerate(case.paths) if case.tasks[i] == task and path]
        mean = sum(shaped[i] for i in members) / len(members)
        deviation = math.sqrt(sum((shaped[i] - mean) ** 2 for i in members) / max(len(members) - 1, 1))
        for i in members:
            advantages[i] = (shaped[i] - mean) / (deviation + 1e-8) if deviation > 1e-12 else 0.0

    def loss(new: list[float]) -> float:
        terms = []
        for path, advantage in zip(case.paths, advantages, strict=True):
            if path:
                ratio = sum(math.exp(new[token] - case.old[token]) for token in path) / len(path)
                terms.append(-min(ratio * advantage, min(max(ratio, 0.8), 1.28) * advantage))
        return sum(terms) / len(terms)

    return loss


def arithmetic_mean(log_ratios: list[float]) -> float:
    return sum(map(math.exp, log_ratios)) / len(log_ratios)


def mean_ratios(seed: int) -> Case:
    """Trajectories whose mean ratio lies beside DAPO's bounds."""
    return aimed(make_case(seed), arithmetic_mean, (0.8, 1.28), seed)


# AEPO ----------------------------------------------------------------------------------------------------------------


def aepo_reference(case: Case, *, dual_clip: float = math.inf, weight: float = 0.2) -> Loss:
    return lambda new: reference_aepo.loss(
        case.paths,
        case.rewards,
        case.tasks,
        case.entropies,
        new,
        case.old,
        weight=weight,
        dual_clip=dual_clip,
        frozen=case.new,
    )


# BAPO ----------------------------------------------------------------------------------------------------------------


def bapo_bounds(case: Case, *, accounting: str = "gradient", share: float = 0.4) -> tuple[float, float]:
    return reference_bapo.bounds(
        case.paths, case.rewards, case.tasks, case.new, case.old, share=share, accounting=accounting, weighted=True
    )


def bapo_reference(case: Case, *, accounting: str = "gradient", share: float = 0.4) -> Loss:
    chosen = bapo_bounds(case, accounting=accounting, share=share)
    return lambda new: reference_bapo.loss(case.paths, case.rewards, case.tasks, new, case.old, chosen)


def bapo_edges(seed: int) -> Case:
    """Ratios beside the ends of both ranges, and beside bounds that lie within them."""
    return make_case(seed, (0.6, 0.62, 0.9, 1.2, 1.35, 3.0))


# Covariances ---------------------------------------------------------------------------------------------------------


def token_advantages(case: Case) -> list[list[float]]:
    scores = reference_tools.group_z_scores(case.rewards, case.tasks, 1e-6)
    return reference_tools.broadcast(case.paths, scores)


def selection(recipe: Recipe, case: Case) -> set[Position]:
    """(path, position) of the tokens that a fitted surrogate picked out."""
    surrogate = fitted(recipe, case).surrogate
    assert isinstance(surrogate, ClipCov | KLCov)
    assert surrogate.selected is not None
    assert not (surrogate.selected & ~case.batch.mask).any()
    rows = [row[mask].tolist() for row, mask in zip(surrogate.selected, case.batch.mask, strict=True)]
    return {(i, t) for i, row in enumerate(rows) for t, picked in enumerate(row) if picked}


def candidates(case: Case, *, low: float = 1.0, high: float = 5.0) -> set[Position]:
    """Within the interval, and not clipped anyway."""
    advantages = token_advantages(case)
    inside = reference_clip_cov.candidates(case.paths, advantages, case.new, low=low, high=high)
    ratios = {(i, t): math.exp(case.new[case.paths[i][t]] - case.old[case.paths[i][t]]) for i, t in inside}
    clipped = {(i, t) for i, t in inside if (ratios[i, t] < 0.8 if advantages[i][t] < 0 else ratios[i, t] > 1.2)}
    return inside - clipped


def clip_cov_reference(case: Case) -> Loss:
    """The draw is ours; that it is a fair one is another test."""
    chosen = selection(clip_cov(), case)
    return lambda new: reference_clip_cov.loss(case.paths, case.rewards, case.tasks, new, case.old, chosen)


def clip_cov_all_reference(case: Case, *, low: float = 1.0, high: float = 5.0) -> Loss:
    chosen = candidates(case, low=low, high=high)
    return lambda new: reference_clip_cov.loss(case.paths, case.rewards, case.tasks, new, case.old, chosen)


def kl_cov_reference(case: Case, *, fraction: float = 2e-4, coefficient: float = 0.1) -> Loss:
    chosen = reference_kl_cov.selected(case.paths, token_advantages(case), case.new, fraction=fraction)
    return lambda new: reference_kl_cov.loss(
        case.paths, case.rewards, case.tasks, new, case.old, chosen, coefficient=coefficient
    )


CLIP_COV_ALL = replace(clip_cov(), surrogate=ClipCov(fraction=1.0))
KL_COV_MANY = replace(kl_cov(), surrogate=KLCov(fraction=0.2, coef=1.0))


# Factors on tokens ---------------------------------------------------------------------------------------------------

PLAIN = replace(grpo(), aggregation=TokenMean(), kl=None)


def top_entropy_reference(case: Case) -> Loss:
    return lambda new: reference_top_entropy.loss(case.paths, case.rewards, case.tasks, case.entropies, new, case.old)


def correction_reference(case: Case, *, level: str, action: str, low: float, high: float) -> Loss:
    weights = reference_correction.weights(
        case.paths, case.old, case.sampler, level=level, action=action, low=low, high=high
    )
    return lambda new: reference_correction.loss(case.paths, case.rewards, case.tasks, new, case.old, weights)


def correction_row(level: CorrectionLevel, action: CorrectionAction, low: float, high: float) -> Row:
    part = SamplerCorrection(level=level, action=action, low=low, high=high)
    reference = partial(correction_reference, level=level.value, action=action.value, low=low, high=high)
    recipe = replace(PLAIN, token_weights=(part,))
    return Row(f"correction, {level}, {action}", recipe, reference, PLAIN)


# The table -----------------------------------------------------------------------------------------------------------


def row(
    name: str,
    recipe: Recipe,
    reference: Callable[[Case], Loss],
    cases: Callable[[int], Case] = make_case,
    **wrong: object,
) -> Row:
    return Row(name, recipe, reference, replace(recipe, **wrong), cases)  # type: ignore[arg-type]


ROWS = [
    row("gtpo", gtpo(), gtpo_reference, advantage=EntropyShapedTokens(bonus=0.2)),
    row(
        "gtpo, classes apart",
        replace(gtpo(), advantage=EntropyShapedTokens(separate=True)),
        gtpo_separate_reference,
        advantage=EntropyShapedTokens(),
    ),
    row("grpo_s", grpo_s(), grpo_s_reference, mean_ratios, advantage=EntropyShapedSequences(bonus=0.2)),
    row(
        "grpo_s, classes apart",
        replace(grpo_s(), advantage=EntropyShapedSequences(separate=True)),
        grpo_s_separate_reference,
        mean_ratios,
        advantage=EntropyShapedSequences(),
    ),
    row("aepo", aepo(), aepo_reference, advantage=EntropyAware(inner=GroupNormalized(), weight=0.21)),
    row(
        "aepo, released code's dual clip",
        replace(aepo(), surrogate=GradientPreservingClip(dual=3.0)),
        partial(aepo_reference, dual_clip=3.0),
        surrogate=Clip(dual=3.0),
    ),
    row(
        "aepo, factor held at 0",
        replace(aepo(), advantage=EntropyAware(inner=GroupNormalized(), weight=2.0)),
        partial(aepo_reference, weight=2.0),
        surrogate=Clip(),
    ),
    row("bapo", bapo(), bapo_reference, bapo_edges, surrogate=AdaptiveClip(share=0.9)),
    row(
        "bapo, share 0.6",
        replace(bapo(), surrogate=AdaptiveClip(share=0.6)),
        partial(bapo_reference, share=0.6),
        bapo_edges,
        surrogate=AdaptiveClip(share=0.4),
    ),
    row(
        "bapo, value accounting",
        replace(bapo(), surrogate=AdaptiveClip(contribution=Contribution.VALUE)),
        partial(bapo_reference, accounting="value"),
        bapo_edges,
        surrogate=AdaptiveClip(share=0.9),
    ),
    row("clip_cov", clip_cov(), clip_cov_reference, surrogate=Clip()),
    row("clip_cov, all candidates", CLIP_COV_ALL, clip_cov_all_reference, surrogate=ClipCov(fraction=1.0, low=1.5)),
    row(
        "clip_cov, a narrow interval",
        replace(clip_cov(), surrogate=ClipCov(fraction=1.0, low=0.3, high=1.0)),
        partial(clip_cov_all_reference, low=0.3, high=1.0),
        surrogate=ClipCov(fraction=1.0, low=0.3, high=1.1),
    ),
    row("kl_cov", kl_cov(), kl_cov_reference, surrogate=KLCov(coef=0.2)),
    row(
        "kl_cov, a fifth of the tokens",
        KL_COV_MANY,
        partial(kl_cov_reference, fraction=0.2, coefficient=1.0),
        surrogate=KLCov(fraction=0.25, coef=1.0),
    ),
    row("top-entropy tokens", replace(PLAIN, token_weights=(TopEntropy(),)), top_entropy_reference, token_weights=()),
    *(
        correction_row(level, action, low, high)
        for level in CorrectionLevel
        for action, low, high in ((CorrectionAction.TRUNCATE, 0.0, 1.25), (CorrectionAction.MASK, 0.5, 1.5))
    ),
]
rows = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


@rows
@pytest.mark.parametrize("seed", SEEDS)
def test_value_and_gradient_equal_the_reference(row: Row, seed: int) -> None:
    assert_agrees(row, seed)


@rows
def test_references_can_tell_a_wrong_recipe(row: Row) -> None:
    assert_has_teeth(row)


def bapo_targets(case: Case, accounting: str) -> list[float]:
    """Shares that the search meets one by one: halfway between those that the bounds on its way reach."""
    scores = reference_tools.group_z_scores(case.rewards, case.tasks, 1e-6)
    tokens = reference_bapo.batch_tokens(case.paths, scores, case.new, case.old, weighted=True)
    way = [(0.6, 1.2 + 0.05 * j) for j in range(37)] + [(0.6 + 0.02 * i, 3.0) for i in range(1, 16)]
    reached = sorted({round(reference_bapo.positive_share(tokens, low, high, accounting), 9) for low, high in way})
    return [0.01, *((a + b) / 2 for a, b in pairwise(reached)), 0.99]


@pytest.mark.parametrize("accounting", list(Contribution))
def test_bapo_chooses_the_bounds_of_the_reference(accounting: Contribution) -> None:
    """Wherever the search can end, and nowhere on the way there."""
    found = set()
    for seed in SEEDS:
        case = make_case(seed, (0.6, 0.66, 0.7, 0.74, 0.78, 0.82, 0.86, 0.9, 1.2, 1.35, 1.6, 2.0, 3.0))
        for share in bapo_targets(case, accounting.value):
            surrogate = AdaptiveClip(share=share, contribution=accounting)
            chosen = fitted(replace(bapo(), surrogate=surrogate), case).surrogate
            assert isinstance(chosen, AdaptiveClip)
            assert chosen.chosen is not None
            expected = bapo_bounds(case, accounting=accounting.value, share=share)
            assert chosen.chosen == pytest.approx(expected, abs=1e-12)
            found.add(chosen.chosen)
    assert (0.6, 1.2) in found
    assert max(found) == pytest.approx((0.9, 3.0))
    assert len({high for _, high in found}) > 10
    assert all(low == 0.6 or high == pytest.approx(3.0) for low, high in found)  # the upper bound first
    if accounting is Contribution.GRADIENT:  # in values, raising the lower bound never helps
        assert len({low for low, _ in found}) > 10


@pytest.mark.parametrize("fraction", [2e-4, 0.03, 0.06])
def test_clip_cov_draws_among_the_candidates_of_the_reference(fraction: float) -> None:
    drawn = set()
    for seed in SEEDS:
        case = make_case(seed)
        chosen = selection(replace(clip_cov(), surrogate=ClipCov(fraction=fraction)), case)
        allowed = candidates(case)
        assert chosen <= allowed
        assert len(chosen) == min(len(allowed), num_selected(sum(map(len, case.paths)), fraction))
        drawn.add(frozenset(chosen))
    assert len(drawn) == len(SEEDS)


@pytest.mark.parametrize("fraction", [2e-4, 0.03, 0.2, 0.5])
def test_kl_cov_holds_back_the_tokens_of_the_reference(fraction: float) -> None:
    for seed in SEEDS:
        case = make_case(seed)
        advantages = token_advantages(case)
        expected = reference_kl_cov.selected(case.paths, advantages, case.new, fraction=fraction)
        chosen = selection(replace(kl_cov(), surrogate=KLCov(fraction=fraction)), case)
        # Copies of a shared token with the same advantage tie: which of them is held back makes no difference.
        names = [sorted((case.paths[i][t], advantages[i][t]) for i, t in places) for places in (chosen, expected)]
        assert names[0] == names[1]
        assert len(chosen) == len(expected)


def test_the_cases_have_what_entropies_can_be() -> None:
    """Certain tokens, classes of one and of none, and mean ratios on both sides of both bounds."""
    assert 0.8 in EDGES
    sizes, sides = set(), set()
    for case in map(mean_ratios, SEEDS):
        assert 0.0 in case.entropies
        assert max(case.entropies) > 1.0
        for task in set(case.tasks):
            members = [i for i, t in enumerate(case.tasks) if t == task]
            sizes |= {sum(case.successes[i] == success for i in members) for success in (True, False)}
        for path in filter(None, case.paths):
            ratio = arithmetic_mean([case.new[t] - case.old[t] for t in path])
            sides |= {(edge, ratio > edge) for edge in (0.8, 1.28) if abs(ratio - edge) < 1e-4}
    assert {0, 1, 2, 3} <= sizes
    assert len(sides) == 4
