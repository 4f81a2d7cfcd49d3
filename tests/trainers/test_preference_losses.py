"""DPO, IPO, KTO and ORPO: values by hand, and values and gradients against plain-Python references of the papers."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import reference_dpo
import reference_ipo
import reference_kto
import reference_orpo
import reference_tools
import torch
from path_cases import Case, make_case
from torch import Tensor

from agentrl.errors import ConfigError
from agentrl.rollout.plan import GroupPlan
from agentrl.trainers import RECIPES
from agentrl.trainers.preference.builders import BestAgainstWorst, BySuccess
from agentrl.trainers.preference.losses import log_odds, path_sum, reference_point
from agentrl.trainers.preference.parts import DPO, IPO, KTO, ORPO, Examples, PathScores, PreferenceLoss
from agentrl.trainers.preference.recipe import PreferenceRecipe

SEEDS = range(8)
F64 = torch.float64


def scores(logprobs: list[float], reference: list[float] | None = None, lengths: list[int] | None = None) -> PathScores:
    """Trajectories of 10 tokens unless said otherwise."""
    new = torch.tensor(logprobs, dtype=F64)
    ref = torch.full_like(new, math.nan) if reference is None else torch.tensor(reference, dtype=F64)
    return PathScores(logprobs=new, log_ratios=new - ref, lengths=torch.tensor(lengths or [10] * len(logprobs)))


def single(loss: PreferenceLoss, chosen: PathScores, rejected: PathScores, point: float | None = None) -> float:
    z0 = None if point is None else torch.tensor(point, dtype=F64)
    return float(loss(Examples(chosen=chosen, rejected=rejected, reference_point=z0))[0].sum())


NOBODY = scores([])


@pytest.mark.parametrize(
    ("loss", "chosen", "rejected", "point", "expected"),
    [
        # h = 0: -log sigmoid(0) = ln 2
        (DPO(beta=0.1), scores([-3.0], [-3.0]), scores([-5.0], [-5.0]), None, math.log(2)),
        # h = .2 - (-.1) = .3: ln(1 + exp(-.03)) = .678260
        (DPO(beta=0.1), scores([-2.8], [-3.0]), scores([-5.1], [-5.0]), None, 0.678260),
        # (0 - 1 / .2)^2 = 25
        (IPO(tau=0.1), scores([-3.0], [-3.0]), scores([-5.0], [-5.0]), None, 25.0),
        # (.3 - 5)^2 = 22.09
        (IPO(tau=0.1), scores([-2.8], [-3.0]), scores([-5.1], [-5.0]), None, 22.09),
        # (.2/10 - (-.1)/5 - 5)^2 = (.04 - 5)^2 = 24.6016
        (
            IPO(tau=0.1, token_mean=True),
            scores([-2.8], [-3.0], [10]),
            scores([-5.1], [-5.0], [5]),
            None,
            24.6016,
        ),
        # 1 - sigmoid(0) = .5 without a reference point, twice as much with weight 2
        (KTO(beta=0.1), scores([-3.0], [-3.0]), NOBODY, 0.0, 0.5),
        (KTO(beta=0.1, weight_undesirable=2.0), NOBODY, scores([-3.0], [-3.0]), 0.0, 1.0),
        # 1 - sigmoid(.1 (.2 - .05)) = 1 - sigmoid(.015) = .49625; 1 - sigmoid(.1 (.05 - (-.1))) is the same
        (KTO(beta=0.1), scores([-2.8], [-3.0]), NOBODY, 0.05, 0.49625),
        (KTO(beta=0.1), NOBODY, scores([-3.1], [-3.0]), 0.05, 0.49625),
        # P = e^-.5 = .606531, log-odds .432752; e^-1 = .367879, -.541325; gap .974077;
        # .5 + .1 ln(1 + exp(-.974077)) = .5 + .1 * .320300 = .532030
        (ORPO(weight=0.1), scores([-5.0]), scores([-10.0]), None, 0.532030),
    ],
)
def test_values_by_hand(
    loss: PreferenceLoss, chosen: PathScores, rejected: PathScores, point: float | None, expected: float
) -> None:
    assert single(loss, chosen, rejected, point) == pytest.approx(expected, abs=6e-7)


def test_no_number_among_the_sampled_tokens_is_not_hidden() -> None:
    """Outside the mask NaN does not matter; inside it is an error, which the sum has to show."""
    mask = torch.tensor([[True, True, False], [True, False, False]])
    values = torch.tensor([[-1.0, math.nan, math.nan], [-1.0, math.inf, math.nan]], dtype=F64)
    first, second = path_sum(values, mask).tolist()
    assert math.isnan(first)
    assert second == -1.0


def test_log_odds_by_hand() -> None:
    """ln(.606531 / .393469) = .432752, ln(.367879 / .632121) = -.541325; near 1 the odds are 1 / -log P."""
    given = log_odds(torch.tensor([-0.5, -1.0, -1e-5, -40.0], dtype=F64)).tolist()
    assert given == pytest.approx([0.432752, -0.541325, math.log(1e5) - 0.5e-5, -40.0], abs=6e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_certain_trajectory_has_finite_odds(dtype: torch.dtype) -> None:
    """log P = 0 occurs: a float32 softmax rounds to 1. log(1e6) where log P counts as -1e-6."""
    certain = torch.tensor([0.0, -1e-12, -50.0], dtype=dtype, requires_grad=True)
    odds = log_odds(certain)
    odds.sum().backward()  # type: ignore[no-untyped-call]
    assert odds.tolist()[:2] == pytest.approx([math.log(1e6)] * 2, rel=1e-5)
    assert certain.grad is not None
    assert torch.isfinite(certain.grad).all()
    assert certain.grad.tolist()[:2] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("ratios", "expected"), [([0.3, -0.1], 0.1), ([-0.3, 0.1], 0.0), ([2.0], 2.0)], ids=["mean", "never below 0", "one"]
)
def test_the_reference_point(ratios: list[float], expected: float) -> None:
    mismatched = torch.tensor(ratios, dtype=F64, requires_grad=True)
    point = reference_point(mismatched)
    assert float(point) == pytest.approx(expected, abs=1e-12)
    assert not point.requires_grad


def test_the_reference_point_needs_completions() -> None:
    with pytest.raises(ValueError, match="mismatched completions; got none"):
        reference_point(torch.zeros(0))
    with pytest.raises(ValueError, match="pass reference_point"):
        KTO()(Examples(chosen=scores([-1.0], [-1.0]), rejected=NOBODY))


@pytest.mark.parametrize("loss", [DPO(), IPO(), IPO(token_mean=True), KTO(), ORPO()], ids=repr)
def test_the_chosen_is_pushed_up_and_the_rejected_down(loss: PreferenceLoss) -> None:
    new = torch.tensor([-6.0, -4.0], dtype=F64, requires_grad=True)
    both = PathScores(logprobs=new, log_ratios=new - new.detach() + 0.1, lengths=torch.tensor([7, 9]))
    examples = Examples(chosen=both.rows([0]), rejected=both.rows([1]), reference_point=torch.tensor(0.05))
    losses, margins = loss(examples)
    losses.sum().backward()  # type: ignore[no-untyped-call]
    assert new.grad is not None
    assert new.grad[0] < 0 < new.grad[1]
    assert losses.shape == margins.shape == (1 if loss.paired else 2,)


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: DPO(beta=0.0), "beta"),
        (lambda: IPO(tau=-1.0), "tau"),
        (lambda: KTO(beta=math.inf), "beta"),
        (lambda: KTO(weight_desirable=0.0), "weight_desirable"),
        (lambda: KTO(weight_undesirable=math.nan), "weight_undesirable"),
        (lambda: ORPO(weight=0.0), "weight"),
    ],
)
def test_numbers_out_of_range(build: Callable[[], PreferenceLoss], name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be positive and finite"):
        build()


def test_a_builder_and_a_loss_of_different_kinds() -> None:
    def build(builder: object, loss: object) -> PreferenceRecipe:
        return PreferenceRecipe(name="x", paper="", idea="", sampling=GroupPlan(), builder=builder, loss=loss)

    with pytest.raises(ConfigError, match="BySuccess builds labels, and DPO compares pairs"):
        build(BySuccess(), DPO())
    with pytest.raises(ConfigError, match="BestAgainstWorst builds pairs, and KTO compares labels"):
        build(BestAgainstWorst(), KTO())


def test_the_vetted_numbers_do_not_drift() -> None:
    expected = {
        "dpo": DPO(beta=0.1),
        "ipo": IPO(tau=0.1, token_mean=False),
        "ipo_token_mean": IPO(tau=0.1, token_mean=True),
        "kto": KTO(beta=0.1, weight_desirable=1.0, weight_undesirable=1.0),
        "orpo": ORPO(weight=0.1),
        "dpo_siblings": DPO(beta=0.1),
    }
    for name, loss in expected.items():
        entry = RECIPES[name]
        assert isinstance(entry, PreferenceRecipe)
        assert entry.loss == loss
        assert entry.needs_reference == (name != "orpo")
        assert entry.needs[-1] == ("labels" if name == "kto" else "pairs")


# Against the references ----------------------------------------------------------------------------------------------


@dataclass
class Preferred:
    """A case with examples among its trajectories that have a token."""

    case: Case
    pairs: list[tuple[int, int]]
    desirable: list[bool]
    mismatched: list[list[int]]


def prefer(seed: int) -> Preferred:
    rng = random.Random(seed)
    case = make_case(seed)
    full = [i for i, path in enumerate(case.paths) if path]
    pairs = [(a, b) for a, b in (rng.sample(full, 2) for _ in range(5))]
    pairs.append((full[0], full[0]))  # a tie: no gap, and no gradient but imitation's
    mismatched = [[rng.randrange(len(case.new)) for _ in range(rng.randint(1, 9))] for _ in range(4)]
    return Preferred(case, pairs, [rng.random() < 0.5 for _ in case.paths], mismatched)


def mean_loss(loss: PreferenceLoss, preferred: Preferred, logprobs: Tensor) -> Tensor:
    """The mean over examples, from log-probabilities in the path layout [B, L]."""
    case = preferred.case
    mask = case.batch.mask
    ref = case.gather(torch.tensor(case.ref, dtype=F64))
    paths = PathScores(
        logprobs=path_sum(logprobs, mask), log_ratios=path_sum(logprobs - ref, mask), lengths=case.batch.lengths
    )
    full = [i for i, path in enumerate(case.paths) if path]
    if loss.paired:
        chosen, rejected = ([pair[side] for pair in preferred.pairs] for side in (0, 1))
    else:
        chosen, rejected = ([i for i in full if preferred.desirable[i] is good] for good in (True, False))
    ratios = [sum(case.new[i] - case.ref[i] for i in path) for path in preferred.mismatched]
    point = reference_point(torch.tensor(ratios, dtype=F64))
    return loss(Examples(chosen=paths.rows(chosen), rejected=paths.rows(rejected), reference_point=point))[0].mean()


def reference_loss(loss: PreferenceLoss, preferred: Preferred) -> Callable[[list[float]], float]:
    case, pairs = preferred.case, preferred.pairs
    match loss:
        case DPO(beta=beta):
            return lambda new: reference_dpo.loss(case.paths, pairs, new, case.ref, beta=beta)
        case IPO(tau=tau, token_mean=token_mean):
            return lambda new: reference_ipo.loss(case.paths, pairs, new, case.ref, tau=tau, token_mean=token_mean)
        case ORPO(weight=weight):
            return lambda new: reference_orpo.loss(case.paths, pairs, new, weight=weight)
        case KTO():
            z0 = reference_kto.reference_point(preferred.mismatched, case.new, case.ref)
            return lambda new: reference_kto.loss(
                case.paths,
                preferred.desirable,
                new,
                case.ref,
                z0,
                beta=loss.beta,
                weight_desirable=loss.weight_desirable,
                weight_undesirable=loss.weight_undesirable,
            )
    raise AssertionError(loss)


LOSSES = [
    DPO(beta=0.1),
    DPO(beta=0.7),
    IPO(tau=0.1),
    IPO(tau=0.4, token_mean=True),
    KTO(beta=0.1),
    KTO(beta=0.8, weight_desirable=1.3, weight_undesirable=0.6),
    ORPO(weight=0.1),
    ORPO(weight=0.9),
]


def differentiate(loss: PreferenceLoss, preferred: Preferred) -> tuple[float, Tensor, Tensor]:
    """The value, its gradient per token [U], and per position of the layout [B, L]."""
    case = preferred.case
    ids = torch.tensor(case.new, dtype=F64, requires_grad=True)
    logprobs = case.gather(ids)
    logprobs.retain_grad()
    value = mean_loss(loss, preferred, logprobs)
    value.backward()  # type: ignore[no-untyped-call]
    assert ids.grad is not None
    assert logprobs.grad is not None
    return float(value.detach()), ids.grad, logprobs.grad


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_value_and_gradient_equal_the_reference(loss: PreferenceLoss, seed: int) -> None:
    preferred = prefer(seed)
    expected = reference_loss(loss, preferred)
    value, by_token, by_position = differentiate(loss, preferred)
    assert value == pytest.approx(expected(preferred.case.new), abs=1e-6)
    assert by_token.tolist() == pytest.approx(reference_tools.gradient(expected, preferred.case.new), abs=1e-6)
    mask = preferred.case.batch.mask  # where the log-probabilities are infinite or no numbers outside
    assert (by_position[~mask] == 0).all()
    assert (by_position[mask] != 0).any()


def test_the_cases_have_both_kinds_of_reference_point() -> None:
    points = [
        reference_kto.reference_point(preferred.mismatched, preferred.case.new, preferred.case.ref)
        for preferred in map(prefer, SEEDS)
    ]
    assert min(points) == 0.0 < max(points)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_the_references_can_tell_a_wrong_number(loss: PreferenceLoss) -> None:
    """Negative control: one part in a hundred is seen."""
    name = {"DPO": "beta", "IPO": "tau", "KTO": "beta", "ORPO": "weight"}[type(loss).__name__]
    wrong = replace(loss, **{name: 1.01 * getattr(loss, name)})
    deviations = [
        abs(differentiate(wrong, preferred)[0] - reference_loss(loss, preferred)(preferred.case.new))
        for preferred in map(prefer, SEEDS)
    ]
    assert max(deviations) > 1e-4
