"""DPO, IPO, KTO and ORPO against TRL's trainers: loss, and gradient by the log-probabilities (ORPO: by the logits).

Examples are averaged, as both libraries do. Tool results lie masked in the answers; TRL's losses read any mask, though
its data preparation makes none for them.
"""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from comparison import Result, assert_same
from torch import Tensor
from trl_preferences import Answers, Pairs, make_answers, make_pairs, trl_dpo, trl_kto, trl_orpo

from agentrl.trainers.preference.losses import path_sum, reference_point
from agentrl.trainers.preference.parts import DPO, KTO, Examples, PathScores, PreferenceLoss
from agentrl.trainers.recipes.dpo import dpo
from agentrl.trainers.recipes.ipo import ipo, ipo_token_mean
from agentrl.trainers.recipes.kto import kto
from agentrl.trainers.recipes.orpo import orpo

CHOSEN, REJECTED = [0, 1, 2], [3, 4, 5]
LABELS = [True, False, True, True, False, False]


def score(answers: Answers, new: Tensor) -> PathScores:
    """All answers, in order."""
    logprobs = answers.paths(new)
    return PathScores(
        logprobs=path_sum(logprobs, answers.sampled),
        log_ratios=path_sum(logprobs - answers.paths(answers.ref), answers.sampled),
        lengths=answers.sampled.sum(dim=1),
    )


def pair_loss(part: PreferenceLoss, answers: Answers) -> Result:
    new = answers.new.clone().requires_grad_()
    scores = score(answers, new)
    return differentiate(part, Examples(chosen=scores.rows(CHOSEN), rejected=scores.rows(REJECTED)), new)


def label_loss(part: PreferenceLoss, answers: Answers, mismatched: Answers) -> Result:
    new = mismatched.new.clone().requires_grad_()
    z0 = reference_point(score(mismatched, new).log_ratios)
    scores = score(replace(answers, ref=mismatched.ref), new)
    desirable, undesirable = ([row for row, label in enumerate(LABELS) if label is kind] for kind in (True, False))
    examples = Examples(chosen=scores.rows(desirable), rejected=scores.rows(undesirable), reference_point=z0)
    return differentiate(part, examples, new)


def odds_loss(part: PreferenceLoss, pairs: Pairs) -> Result:
    logits = pairs.logits.clone().requires_grad_()
    logprobs = pairs.logprobs(logits).where(pairs.sampled, math.nan)
    scores = PathScores(
        logprobs=path_sum(logprobs, pairs.sampled),
        log_ratios=torch.full((6,), math.nan, dtype=torch.float64),
        lengths=pairs.sampled.sum(dim=1),
    )
    return differentiate(part, Examples(chosen=scores.rows(CHOSEN), rejected=scores.rows(REJECTED)), logits)


def differentiate(part: PreferenceLoss, examples: Examples, leaf: Tensor) -> Result:
    losses, _ = part(examples)
    loss = losses.mean()
    loss.backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    return Result(loss=loss.detach(), grad=leaf.grad)


@pytest.mark.parametrize("seed", range(3))
class TestPairs:
    def test_dpo(self, model_dir: Path, seed: int) -> None:
        answers = make_answers(seed)

        assert_same(pair_loss(dpo().loss, answers), trl_dpo(model_dir, answers))
        assert_same(pair_loss(DPO(beta=0.7), answers), trl_dpo(model_dir, answers, beta=0.7))

    def test_ipo_per_token(self, model_dir: Path, seed: int) -> None:
        answers = make_answers(seed)

        theirs = trl_dpo(model_dir, answers, loss_type="ipo", beta=0.1)

        assert_same(pair_loss(ipo_token_mean().loss, answers), theirs)
        with pytest.raises(AssertionError, match="loss differs"):  # the paper sums over the answer
            assert_same(pair_loss(ipo().loss, answers), theirs)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shift", [0.2, -0.2])
def test_kto(model_dir: Path, seed: int, shift: float) -> None:
    """A reference point above 0, and one that is held there."""
    answers = make_answers(seed)
    mismatched = make_answers(seed + 10, first_id=answers.ids.numel())
    mismatched = replace(mismatched, new=mismatched.new + shift)
    z0 = reference_point(score(mismatched, mismatched.new).log_ratios)

    weighted = KTO(beta=0.1, weight_desirable=1.3, weight_undesirable=0.7)
    weights = {"desirable_weight": 1.3, "undesirable_weight": 0.7}

    assert (z0 > 0) == (shift > 0)
    assert_same(label_loss(kto().loss, answers, mismatched), trl_kto(model_dir, answers, mismatched, LABELS))
    assert_same(label_loss(weighted, answers, mismatched), trl_kto(model_dir, answers, mismatched, LABELS, **weights))


class TestORPO:
    @pytest.mark.parametrize("seed", range(3))
    def test_equals_trl(self, model_dir: Path, seed: int) -> None:
        """Where both likelihood terms are one: a prompt of one token, answers of equal length, no tool result."""
        pairs = make_pairs(seed, prompt=(1, 1), answer=(6, 6), tools=False)

        assert_same(odds_loss(orpo().loss, pairs), trl_orpo(model_dir, pairs, beta=0.1))

    @pytest.mark.parametrize("seed", range(3))
    def test_trl_imitates_the_prompt_too(self, model_dir: Path, seed: int) -> None:
        """Prompt, tool results and answer, every token of the batch alike; ours has a mean over the sampled ones."""
        pairs = make_pairs(seed, prompt=(2, 4), answer=(3, 8), tools=True)
        logits = pairs.logits.clone().requires_grad_()
        logprobs, chosen = pairs.logprobs(logits)[:3], pairs.sampled[:3]
        read = pairs.attention[:3, 1:].bool()
        per_path = path_sum(logprobs, chosen) / chosen.sum(dim=1)
        difference = per_path.mean() - logprobs[read].mean()
        difference.backward()  # type: ignore[no-untyped-call]
        ours = odds_loss(orpo().loss, pairs)
        assert logits.grad is not None

        expected = Result(loss=ours.loss + difference.detach(), grad=ours.grad + logits.grad)

        assert_same(expected, trl_orpo(model_dir, pairs, beta=0.1))
        assert difference.abs() > 1e-3
