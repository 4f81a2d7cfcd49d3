"""What must hold between the references on random ragged batches: limits, identities, gradients of detached parts."""

import math
import random
from dataclasses import dataclass

import pytest
import reference_aepo
import reference_cispo
import reference_gmpo
import reference_grpo
import reference_gspo
import reference_gspo_token
import reference_gtpo
import reference_ppo
import reference_rloo
import reference_sapo
import reference_trpo
from reference_tools import broadcast, gradient, group_centred, group_z_scores, sequence_mean_token_mean


@dataclass
class Batch:
    """Groups of four, one and three; a trunk that two paths share, and a path without tokens."""

    paths: list[list[int]]
    rewards: list[float]
    tasks: list[int]
    successes: list[bool]
    new: list[float]
    old: list[float]
    entropy: list[float]

    def scores(self) -> list[float]:
        return group_z_scores(self.rewards, self.tasks, 1e-6)


@pytest.fixture(params=range(3))
def batch(request: pytest.FixtureRequest) -> Batch:
    rng = random.Random(request.param)
    trunk = [0, 1, 2]
    paths = [[*trunk, 3, 4], [*trunk, 5], [6, 7], [], [8], [9, 10, 11], [12], [13, 14]]
    old = [rng.uniform(-3.0, -0.1) for _ in range(15)]
    return Batch(
        paths,
        [1.0, 0.0, 1.0, 0.0, 1.0, rng.random(), rng.random(), 1.0],
        [0, 0, 0, 0, 1, 2, 2, 2],
        [True, False, True, False, True, False, False, True],
        [value + rng.gauss(0.0, 0.5) for value in old],
        old,
        [rng.uniform(0.1, 2.0) for _ in old],
    )


def assert_close(left: list[float], right: list[float]) -> None:
    assert left == pytest.approx(right, abs=1e-8)
    assert any(abs(value) > 1e-3 for value in left)  # two gradients of zero prove nothing


def test_leave_one_out_is_a_rescaled_group_mean(batch: Batch) -> None:
    rows = reference_rloo.advantages(batch.paths, batch.rewards, batch.tasks, batch.old, batch.old)
    for row, centred, task in zip(rows, group_centred(batch.rewards, batch.tasks), batch.tasks, strict=True):
        size = batch.tasks.count(task)
        assert row == pytest.approx([centred * size / (size - 1) if size > 1 else 0.0] * len(row))


def test_gspo_of_single_tokens_is_grpo(batch: Batch) -> None:
    paths = [path[-1:] for path in batch.paths]
    given = (paths, batch.rewards, batch.tasks, batch.new, batch.old)
    sequences = reference_gspo.loss(*given, clip_low=0.2, clip_high=0.2)
    assert sequences == pytest.approx(reference_grpo.loss(*given, batch.old, beta=0.0), abs=1e-12)


def test_gspo_token_has_the_value_and_the_gradient_of_gspo(batch: Batch) -> None:
    for clip in (math.inf, 0.2):
        bounds = {"clip_low": clip, "clip_high": clip}

        def sequences(new: list[float], bounds: dict[str, float] = bounds) -> float:
            return reference_gspo.loss(batch.paths, batch.rewards, batch.tasks, new, batch.old, **bounds)

        def tokens(new: list[float], bounds: dict[str, float] = bounds) -> float:
            return reference_gspo_token.loss(
                batch.paths, batch.rewards, batch.tasks, new, batch.old, frozen=batch.new, **bounds
            )

        assert tokens(batch.new) == pytest.approx(sequences(batch.new), abs=1e-12)
        assert_close(gradient(tokens, batch.new), gradient(sequences, batch.new))


def policy_gradient(batch: Batch) -> list[float]:
    """Of the token mean of -A log pi."""
    tokens = [(token, a) for path, a in zip(batch.paths, batch.scores(), strict=True) for token in path]
    return [-sum(a for token, a in tokens if token == index) / len(tokens) for index in range(len(batch.old))]


def test_on_policy_gradients_are_the_policy_gradient(batch: Batch) -> None:
    """At ratio 1: the wide clip, the surrogate of TRPO, the weights of CISPO, AEPO without its entropy factor."""
    rows = broadcast(batch.paths, batch.scores())
    group = (batch.paths, batch.rewards, batch.tasks)
    expected = policy_gradient(batch)
    for loss in (
        lambda new: reference_ppo.policy_loss(batch.paths, rows, new, batch.old, clip=math.inf),
        lambda new: reference_trpo.loss(batch.paths, rows, new, batch.old),
        lambda new: reference_cispo.loss(*group, new, batch.old, frozen=batch.old),
        lambda new: reference_cispo.trl_loss(*group, new, batch.old, eps=1e-6, frozen=batch.old),
        lambda new: reference_aepo.loss(*group, batch.entropy, new, batch.old, weight=0.0, frozen=batch.old),
    ):
        assert_close(gradient(loss, batch.old), expected)


@pytest.mark.parametrize("tau", [0.5, 1.0, 3.0])
def test_sapo_gradient_at_ratio_one_ignores_the_temperature(batch: Batch, tau: float) -> None:
    group = (batch.paths, batch.rewards, batch.tasks)

    def plain(new: list[float]) -> float:
        rows = [[-a * new[token] for token in path] for path, a in zip(batch.paths, batch.scores(), strict=True)]
        return sequence_mean_token_mean(rows)

    def gated(new: list[float]) -> float:
        return reference_sapo.loss(*group, new, batch.old, tau_pos=tau, tau_neg=tau)

    assert_close(gradient(gated, batch.old), gradient(plain, batch.old))


def test_gtpo_conserves_mass(batch: Batch) -> None:
    """At every step the trajectories that are alive share (alpha1 + alpha2) per head."""
    shaped = reference_gtpo.shaped_rewards(batch.paths, batch.tasks, batch.successes, batch.entropy, alpha2=0.3)
    for task in set(batch.tasks):
        for sign, success in ((1.0, True), (-1.0, False)):
            for t in range(5):
                alive = [
                    row[t]
                    for i, row in enumerate(shaped)
                    if batch.tasks[i] == task and batch.successes[i] == success and len(row) > t
                ]
                assert sum(alive) == pytest.approx(sign * 1.3 * len(alive))


def test_gae_without_discount_and_critic_is_the_reward_to_go(batch: Batch) -> None:
    turns = [[0] * len(path) for path in batch.paths]
    rows = reference_ppo.raw_advantages(
        batch.paths, turns, [[r] for r in batch.rewards], [0.0] * 15, batch.old, batch.old, gamma=1.0, lam=1.0
    )
    for row, path, reward in zip(rows, batch.paths, batch.rewards, strict=True):
        assert row == pytest.approx([reward] * len(path))


def test_aepo_clip_has_the_value_of_ppo_and_keeps_the_gradient() -> None:
    """Rewards 1 and 0, A = +-.707107 over two tokens; ratios 2 and .5 lie beyond the clips on their clipped sides."""
    paths, rewards, tasks, old, new = [[0], [1]], [1.0, 0.0], [0, 0], [-1.0, -1.0], [-1 + math.log(2), -1 - math.log(2)]
    half = math.sqrt(0.5)

    def loss(values: list[float]) -> float:
        return reference_aepo.loss(paths, rewards, tasks, [1.0, 1.0], values, old, eps=0.0, frozen=new)

    assert loss(new) == pytest.approx(reference_grpo.loss(paths, rewards, tasks, new, old, old, beta=0.0, eps=0.0))
    # -1.2 * .707107 / 2 instead of PPO's 0, and 0 below the lower bound.
    assert gradient(loss, new) == pytest.approx([-0.6 * half, 0.0], abs=1e-8)


def test_cispo_weights_are_bounded_and_constant() -> None:
    """Ratio 4: the paper's weight is 1.2, TRL's with a bound of 3 is 3; neither clip takes the gradient away."""
    paths, rewards, tasks, old, new = [[0], [1]], [1.0, 0.0], [0, 0], [-2.0, -2.0], [-2 + math.log(4)] * 2
    half = math.sqrt(0.5)

    def relative(values: list[float]) -> float:
        return reference_cispo.loss(paths, rewards, tasks, values, old, eps=0.0, frozen=new)

    def absolute(values: list[float]) -> float:
        return reference_cispo.trl_loss(paths, rewards, tasks, values, old, largest=3.0, eps=0.0, frozen=new)

    assert gradient(relative, new) == pytest.approx([-1.2 * half / 2, 1.2 * half / 2], abs=1e-8)
    assert gradient(absolute, new) == pytest.approx([-3 * half / 2, 3 * half / 2], abs=1e-8)


def test_gmpo_is_gspo_where_no_token_is_clipped(batch: Batch) -> None:
    given = (batch.paths, batch.rewards, batch.tasks, batch.new, batch.old)
    expected = reference_gspo.loss(*given, clip_low=math.inf, clip_high=math.inf)
    assert reference_gmpo.loss(*given, clip=50.0) == pytest.approx(expected, abs=1e-9)
    assert reference_gmpo.loss(*given, clip=0.1) != pytest.approx(expected, abs=1e-3)  # some are
