"""The references against small cases worked out by hand, where no published number exists."""

import math

import pytest
import reference_clip_cov
import reference_correction
import reference_gigpo
import reference_gmpo
import reference_gpg
import reference_grpo_process
import reference_grpo_s
import reference_gtpo
import reference_kl_cov
import reference_mt_grpo
import reference_ppo
import reference_reinforce
import reference_reinforce_pp
import reference_reinforce_pp_baseline
import reference_remax
import reference_rloo
import reference_several_rewards
import reference_top_entropy
import reference_tree_grpo
import reference_trpo
import reference_two_sided_clip
from reference_covariance import covariances, num_selected
from reference_tools import flat

HALF = math.sqrt(0.5)  # the z-scores of two different values are +-.707107


def test_gae() -> None:
    """delta = 0 + .9 * .25 - .5 = -.275 and 1 - .25 = .75; A = -.275 + .9 * .5 * .75 = .0625 and .75."""
    turns, rewards, values, zeros = [[0, 1], []], [[0.0, 1.0], [1.0]], [0.5, 0.25], [0.0, 0.0]
    raw = reference_ppo.raw_advantages([[0, 1], []], turns, rewards, values, zeros, zeros, gamma=0.9, lam=0.5)
    assert raw[0] == pytest.approx([0.0625, 0.75])
    assert raw[1] == []
    assert reference_ppo.returns([[0, 1], []], raw, values)[0] == pytest.approx([0.5625, 1.0])
    # k1 = .2 on the first token costs .1 * .2 there and nowhere else.
    paid = reference_ppo.token_rewards([0, 1], [0, 1], [0.0, 1.0], [0.2, 0.0], zeros, 0.1)
    assert paid == pytest.approx([-0.02, 1.0])
    # A turn of two tokens: its reward sits on the second.
    assert reference_ppo.token_rewards([0, 1], [0, 0], [1.0], zeros, zeros, 0.0) == [0.0, 1.0]


def test_clipped_value_loss() -> None:
    """V 1, before .2, target 2: held at .7, (.7 - 2)^2 / 2 = .845 > (1 - 2)^2 / 2."""
    assert reference_ppo.value_loss([[0]], [[2.0]], [1.0], [0.2]) == pytest.approx(0.845)
    assert reference_ppo.value_loss([[0]], [[2.0]], [1.0], [0.6]) == pytest.approx(0.5)  # within the clip


def test_trpo() -> None:
    """H = diag(2, 8), g = (2, 4): x = (1, .5), x^T H x = 2 + 2 = 4, step x sqrt(.02 / 4) = .0707107 x."""
    step = reference_trpo.natural_step([[2.0, 0.0], [0.0, 8.0]], [2.0, 4.0])
    assert step == pytest.approx([0.0707107, 0.0353553], abs=1e-7)
    # 0 1; 1 1 needs a pivot: x_1 = 3, x_0 = 5 - 3.
    assert reference_trpo.solve([[0.0, 1.0], [1.0, 1.0]], [3.0, 5.0]) == pytest.approx([2.0, 3.0])
    # .5 ln(.5 / .25) + .5 ln(.5 / .75) = .346574 - .202733; the token on two paths counts twice: 2/3 of it.
    old, new = [[math.log(0.5)] * 2] * 2, [[math.log(0.25), math.log(0.75)], [math.log(0.5)] * 2]
    assert reference_trpo.mean_kl([[0, 1], [0]], old, new) == pytest.approx(0.143841 * 2 / 3, abs=1e-6)


def test_kl_in_the_reward() -> None:
    """k1 of the two tokens: -.8 + 1 = .2 and -.6 + 1 = .4; their sum .6."""
    old, ref = [-0.8, -0.6, -1.0], [-1.0, -1.0, -1.0]
    paths, rewards, tasks = [[0, 1], [2]], [1.0, 0.0], [0, 0]
    # Returns 1 - .1 * .6 = .94 and 0: mean .47.
    rows = reference_reinforce.advantages(paths, rewards, old, ref, beta=0.1)
    assert flat(rows) == pytest.approx([0.47, 0.47, -0.47])
    rows = reference_rloo.advantages(paths, rewards, tasks, old, ref, beta=0.1)
    assert flat(rows) == pytest.approx([0.94, 0.94, -0.94])
    # ReMax: 1 - .4 - .1 * .2, 1 - .4 - .1 * .4, 0 - .4.
    rows = reference_remax.advantages(paths, rewards, [0.4, 0.4], old, ref, beta=0.1)
    assert flat(rows) == pytest.approx([0.58, 0.56, -0.4])
    # REINFORCE++ on the first path: -.02 + .96 = .94 and 1 - .04 = .96 to go; two values whiten to -+.707107
    # (.01 / sqrt(.0002 + 1e-8) = .707089).
    rows = reference_reinforce_pp.advantages(paths[:1], rewards[:1], old, ref, beta=0.1)
    assert flat(rows) == pytest.approx([-0.707089, 0.707089], abs=1e-6)


def test_reinforce_pp_baseline_has_one_scale_for_all_groups() -> None:
    """Centred 4, -4 and 1, -1, a token each: std sqrt(34 / 3) = 3.366502; 4 / 3.366502 and 1 / 3.366502."""
    rows = reference_reinforce_pp_baseline.advantages([[0], [1], [2], [3]], [8.0, 0.0, 7.0, 5.0], [0, 0, 1, 1])
    assert flat(rows) == pytest.approx([1.188177, -1.188177, 0.297044, -0.297044], abs=1e-6)
    # The KL term: no contrast, so only .5 * .2^2 / 2 on one of two tokens is left.
    value = reference_reinforce_pp_baseline.loss([[0, 1]], [1.0], [0], [-0.8, -1.0], [-1.0] * 2, [-1.0] * 2, beta=0.5)
    assert value == pytest.approx(0.005)


def test_gmpo_clips_one_side_by_the_sign() -> None:
    """A = +-.707107; log-ratios 1 and -1: held at .4 and -1 for A > 0 (mean -.3), at 1 and -.4 for A < 0 (.3)."""
    new, old = [0.0, -2.0, 0.0, -2.0], [-1.0] * 4
    value = reference_gmpo.loss([[0, 1], [2, 3]], [1.0, 0.0], [0, 0], new, old, eps=0.0)
    assert value == pytest.approx(HALF * (math.exp(0.3) - math.exp(-0.3)) / 2)


def test_process_rewards() -> None:
    """1, 0, 0, 1: mean .5, std sqrt(1 / 3) = .577350, z = +-.866025; then sums from the token's turn on."""
    turns, rewards = [[0, 1], [0, 0, 1], []], [[1.0, 0.0], [0.0, 1.0], []]
    rows = reference_grpo_process.advantages([[0, 1], [2, 3, 4], []], turns, rewards, [0, 0, 0], eps=0.0)
    assert rows[0] == pytest.approx([0.0, -0.866025], abs=1e-6)
    assert rows[1] == pytest.approx([0.0, 0.0, 0.866025], abs=1e-6)


def test_entropy_shaping() -> None:
    """Entropies 1 and 3: shares 1/4 and 3/4 of d = 2, inverse ones 3/4 and 1/4; alone at t = 1, share 1 of d = 1."""
    paths, entropy, tasks = [[0, 2], [1], [0], [1]], [1.0, 3.0, 5.0], [0] * 4
    successes = [True, True, False, False]
    shaped = reference_gtpo.shaped_rewards(paths, tasks, successes, entropy)
    assert flat(shaped) == pytest.approx([1.05, 1.1, 1.15, -1.15, -1.05])
    # Successes .05 below, at and above their mean 1.1, std .05; failures z-scored among themselves.
    rows = reference_gtpo.advantages(paths, tasks, successes, entropy)
    assert flat(rows) == pytest.approx([-1.0, 0.0, 1.0, -HALF, HALF], abs=1e-6)
    # By trajectory: mean entropies (1 + 5) / 2 = 3 and 3 share alike; failures 1 and 3 as above.
    shaped_paths = reference_grpo_s.shaped_rewards([*paths, []], [0] * 5, [*successes, False], entropy)
    assert shaped_paths == pytest.approx([1.1, 1.1, -1.15, -1.05, 0.0])
    assert flat(reference_grpo_s.advantages(paths, tasks, successes, entropy)) == pytest.approx(
        [0.0, 0.0, 0.0, -HALF, HALF], abs=1e-6
    )


def test_gigpo() -> None:
    """Episodes +-.5. State "a": returns .95 * 1 and 0, centred +-.475; states seen once: 0."""
    turns, turn_rewards, states = [[0, 1], [0, 1]], [[0.0, 1.0], [0.0, 0.0]], [["a", "b"], ["a", "c"]]
    paths, rewards = [[0, 1], [2, 3]], [1.0, 0.0]
    rows = reference_gigpo.advantages(paths, rewards, [0, 0], turns, turn_rewards, states)
    assert flat(rows) == pytest.approx([0.975, 0.5, -0.975, -0.5])
    rows = reference_gigpo.advantages(paths, rewards, [0, 0], turns, turn_rewards, states, std=True, eps=0.0)
    assert flat(rows) == pytest.approx([2 * HALF, HALF, -2 * HALF, -HALF])
    # The same state in another task is no sub-group.
    rows = reference_gigpo.advantages(paths, rewards, [0, 1], turns, turn_rewards, states)
    assert flat(rows) == [0.0] * 4


def test_trees_and_turns() -> None:
    """Among all four: mean .25, std .5: 1.5 and -.5. In the first tree +-.707107, in the second no contrast."""
    rows = reference_tree_grpo.advantages([[0], [1], [2], [3]], [1.0, 0.0, 0.0, 0.0], [0] * 4, [0, 0, 1, 1], eps=0.0)
    assert flat(rows) == pytest.approx([1.5 + HALF, -0.5 - HALF, -0.5, -0.5])
    # First turns 1, 0, .5: z = 1, -1, 0. The rest 0, 0, 1: mean 1/3, std sqrt(1/3), z = -.577350 twice and 1.154701.
    # The second path ends after its first turn.
    rows = reference_mt_grpo.advantages(
        [1.0, 0.0, 1.5], [0] * 3, [[0, 0, 1], [0], [1]], [[1.0, 0.0], [0.0], [0.5, 1.0]], eps=0.0
    )
    assert flat(rows) == pytest.approx([0.422650, 0.422650, -0.577350, -1.577350, 1.154701], abs=1e-6)


def test_covariance_selection() -> None:
    """Means -2 and 1: (-1 + 2) (3 - 1) = 2, (-3 + 2) 2 = -2, (-1 + 2) (-1 - 1) = -2, (-3 + 2) (-2) = 2."""
    paths, rows, frozen = [[0, 1], [0, 1]], [[3.0, 3.0], [-1.0, -1.0]], [-1.0, -3.0]
    assert covariances(paths, rows, frozen) == {(0, 0): 2.0, (0, 1): -2.0, (1, 0): -2.0, (1, 1): 2.0}
    assert reference_clip_cov.candidates(paths, rows, frozen) == {(0, 0), (1, 1)}
    assert reference_kl_cov.selected(paths, rows, frozen, fraction=0.5) == {(0, 0), (1, 1)}
    assert [num_selected(n, 2e-4) for n in (10, 10_000)] == [1, 2]
    # r = 1, A = +-.707107: the losses cancel; without (0, 0) there remain (-.707107 + 2 * .707107) / 4.
    arguments = (paths, [1.0, 0.0], [0, 0], frozen, frozen)
    assert reference_clip_cov.loss(*arguments, set(), eps=0.0) == pytest.approx(0.0)
    assert reference_clip_cov.loss(*arguments, {(0, 0)}, eps=0.0) == pytest.approx(HALF / 4)
    # log(old / new) = -.1 on one of two tokens without advantage: 1 * .1 / 2, its plain sign -.1 / 2.
    for absolute, expected in ((True, 0.05), (False, -0.05)):
        value = reference_kl_cov.loss(
            [[0, 1]], [1.0], [0], [-0.9, -1.0], [-1.0, -1.0], {(0, 0)}, coefficient=1.0, absolute=absolute
        )
        assert value == pytest.approx(expected)


def test_several_rewards() -> None:
    """Each column has mean 1/2 and 50, z = +-.866025; sums 0, 0, -+1.732051, std sqrt(6 / 3): -+1.224745."""
    paths, components = [[0], [1], [2, 3], [4]], [[1.0, 0.0], [0.0, 100.0], [0.0, 0.0], [1.0, 100.0]]
    rows = reference_several_rewards.normalize_then_sum(paths, components, [0] * 4, weights=[1.0, 1.0], eps=0.0)
    assert flat(rows) == pytest.approx([0.0, 0.0, -1.224745, -1.224745, 1.224745], abs=1e-6)
    # Over tokens: 0, 0, -1.732051 twice, 1.732051: mean -.346410, deviations' squares 2 * .12 + 2 * 1.92 + 4.32 = 8.4,
    # std sqrt(8.4 / 4) = 1.449138; .346410 / 1.449138 = .239046 and so on.
    rows = reference_several_rewards.normalize_then_sum(
        paths, components, [0] * 4, weights=[1.0, 1.0], eps=0.0, over_tokens=True
    )
    assert flat(rows) == pytest.approx([0.239046, 0.239046, -0.956183, -0.956183, 1.434274], abs=1e-6)
    # Summed first, the large component drowns the small one: 1, 100, 0, 101, std sqrt(10001 / 3) = 57.737914.
    rows = reference_several_rewards.sum_then_normalize(paths, components, [0] * 4, weights=[1.0, 1.0], eps=0.0)
    assert flat(rows) == pytest.approx([x / 57.737914 for x in (-49.5, 49.5, -50.5, -50.5, 50.5)], abs=1e-6)


@pytest.mark.parametrize(
    ("level", "action", "expected"),
    [
        ("token", "truncate", [1.5, 0.5]),
        ("token", "mask", [0.0, 0.5]),
        ("sequence", "truncate", [1.0, 1.0]),  # 2 * .5
        ("geometric", "mask", [1.0, 1.0]),
    ],
)
def test_correction_weights(level: str, action: str, expected: list[float]) -> None:
    rows = reference_correction.weights(
        [[0, 1], []], [math.log(0.4), math.log(0.1)], [math.log(0.2)] * 2, level=level, action=action, high=1.5
    )
    assert rows[0] == pytest.approx(expected)
    assert rows[1] == []


def test_correction_levels_differ_on_one_sided_paths() -> None:
    """Ratios 2 and 2: product 4, geometric mean 2."""
    for level, expected in (("token", 2.0), ("sequence", 4.0), ("geometric", 2.0)):
        rows = reference_correction.weights([[0, 1]], [math.log(0.4)] * 2, [math.log(0.2)] * 2, level=level, high=9.0)
        assert rows[0] == pytest.approx([expected] * 2)


def test_two_sided_clip() -> None:
    """A = -1, delta 4: max(min(r, 4), clip(r)); A = 1: the ordinary clip."""
    objectives = [reference_two_sided_clip.objective(r, -1.0, 0.2, 0.2, 4.0) for r in (0.5, 1.1, 3.0, 10.0)]
    assert objectives == [-0.8, -1.1, -3.0, -4.0]
    assert reference_two_sided_clip.objective(10.0, 1.0, 0.2, 0.2, 4.0) == 1.2


def test_top_entropy_tokens() -> None:
    """Eleven tokens: the quantile .8 stands at place .8 * 10 = 8, its value keeps its loss."""
    kept = reference_top_entropy.mask([list(range(11))], [float(h) for h in range(11)])[0]
    assert kept == [False] * 8 + [True] * 3
    # Between the places: .5 * 3 = 1.5, half way from 1 to 2.
    assert reference_top_entropy.threshold([3.0, 0.0, 2.0, 1.0], 0.5) == pytest.approx(1.5)


def test_gpg_alphas() -> None:
    """Of five trajectories three have a reward that is not 0, four belong to a group with contrast."""
    rewards, tasks = [1.0, 0.0, 2.0, 1.0, 0.0], [0, 0, 1, 2, 2]
    assert reference_gpg.nonzero_rewards_alpha(rewards) == pytest.approx(5 / 3)
    assert reference_gpg.contrast_alpha(rewards, tasks) == pytest.approx(5 / 4)
