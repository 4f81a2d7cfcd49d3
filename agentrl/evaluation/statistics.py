"""Success rates with intervals, pass@k, and the comparison of two policies on the same tasks.

An evaluation is a list of **tallies**: one task each, so many successes in so many attempts. Attempts at one task
resemble each other, so the task, not the attempt, is the unit of every interval here: the intervals speak about
tasks like these, not about these tasks. All of them are closed formulas; nothing is drawn at random.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import NormalDist

import numpy as np

from agentrl.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Tally:
    """The outcome of the attempts at one task.

    Example:
        Tally(successes=3, attempts=8)

    Raises:
        ConfigError: Not 0 <= successes <= attempts, or no attempt.
    """

    successes: int
    attempts: int

    def __post_init__(self) -> None:
        if not 0 <= self.successes <= self.attempts or self.attempts < 1:
            raise ConfigError(
                f"A tally needs 0 <= successes <= attempts and at least one attempt, got {self.successes} of "
                f"{self.attempts}."
            )

    @property
    def rate(self) -> float:
        """Share of attempts that succeeded."""
        return self.successes / self.attempts


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number and the interval that covers the true one with probability `confidence`.

    Example:
        Estimate(value=0.83, low=0.7718, high=0.8757, confidence=0.95)
    """

    value: float
    low: float
    high: float
    confidence: float = 0.95


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """How a second policy compares with a first one on the same tasks.

    Example:
        PairedDifference(difference=Estimate(0.25, 0.054, 0.4), p_value=0.021, num_tasks=40, num_better=12,
                         num_worse=2, minimum_detectable=0.27)
    """

    difference: Estimate
    """Mean over tasks of the second success rate minus the first."""
    p_value: float
    """Probability of a difference this large if both policies were equally good, two-sided."""
    num_tasks: int
    num_better: int
    """Tasks on which the second policy succeeded more often."""
    num_worse: int
    minimum_detectable: float
    """Smallest true difference that a comparison of this size finds in 80 % of the cases."""


def wilson_interval(successes: float, trials: float, confidence: float = 0.95) -> Estimate:
    """The score interval of a proportion, which stays inside [0, 1] and is right for small counts too.

    With p = successes / trials, n = trials and z the normal quantile of (1 + confidence) / 2::

        (p + z^2/2n ± z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)

    Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).

    Args:
        successes: Successful trials; not necessarily whole where `trials` is an effective number.
        trials: Independent trials.
        confidence: Coverage, between 0 and 1.

    Raises:
        ConfigError: No trial, successes outside [0, trials], or confidence outside (0, 1).

    >>> round(wilson_interval(10, 10).low, 4)
    0.7225
    """
    if not 0 < trials < math.inf:
        raise ConfigError(f"A success rate needs at least one trial, got {trials!r}.")
    if not 0 <= successes <= trials:
        raise ConfigError(f"successes must be between 0 and trials={trials!r}, got {successes!r}.")
    z = _normal_quantile((1 + _checked_confidence(confidence)) / 2)
    p = successes / trials
    center = p + z * z / (2 * trials)
    half = z * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials))
    shrink = 1 + z * z / trials
    low = 0.0 if successes == 0 else (center - half) / shrink  # exact ends, free of rounding
    high = 1.0 if successes == trials else (center + half) / shrink
    return Estimate(p, low, high, confidence)


def success_rate(tallies: Sequence[Tally], confidence: float = 0.95) -> Estimate:
    """The share of successful attempts with an interval that knows that attempts at one task resemble each other.

    Wilson's interval with an effective number of trials in place of their number. With c_i of n_i attempts at task i
    successful, N = sum_i n_i and p = sum_i c_i / N, the variance of p between tasks is V = sum_i (c_i - p n_i)^2 / N^2
    (the linearized ratio estimator), and the effective number is p(1-p) / V, at most N. Where every attempt or none
    succeeded, or there is one task only, nothing is known about the resemblance and the worst is assumed: the attempts
    at a task count as one trial, N^2 / sum_i n_i^2 in all. **With one attempt per task this is Wilson's interval.**

    The effective sample size is that of Korn and Graubard, "Confidence intervals for proportions with small expected
    number of positive counts estimated from survey data", Survey Methodology 24 (1998).

    Raises:
        ConfigError: No tally, or confidence outside (0, 1).
    """
    attempts = [tally.attempts for tally in tallies]
    return _clustered_mean([tally.successes for tally in tallies], attempts, sum(attempts), confidence)


def pass_at_k(num_correct: int, num_samples: int, k: int) -> float:
    """The probability that at least one of k attempts succeeds, without bias, from n >= k attempts.

    1 - C(n-c, k) / C(n, k), multiplied out as 1 - prod_{i=n-c+1..n} (1 - k/i) so that nothing overflows.
    Chen et al., "Evaluating large language models trained on code" (arXiv:2107.03374), equation 1.

    Args:
        num_correct: c, successful attempts.
        num_samples: n, attempts.
        k: Attempts allowed.

    Raises:
        ConfigError: Not 0 <= c <= n, or k outside 1 .. n (fewer than k attempts tell nothing about k).

    >>> pass_at_k(1, 4, 2)
    0.5
    """
    Tally(num_correct, num_samples)
    if not 1 <= k <= num_samples:
        raise ConfigError(f"pass@k needs 1 <= k <= the number of attempts ({num_samples}), got k={k}.")
    if num_samples - num_correct < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(num_samples - num_correct + 1, num_samples + 1))


def mean_pass_at_k(tallies: Sequence[Tally], k: int, confidence: float = 0.95) -> Estimate:
    """The mean of `pass_at_k` over tasks, with the interval of `success_rate` on its values per task.

    With equal numbers of attempts, k = 1 is `success_rate` itself.

    Raises:
        ConfigError: No tally, a task with fewer than k attempts, or confidence outside (0, 1).
    """
    values = [pass_at_k(tally.successes, tally.attempts, k) for tally in tallies]
    return _clustered_mean(values, [1] * len(values), sum(tally.attempts for tally in tallies), confidence)


def paired_difference(
    first: Sequence[Tally], second: Sequence[Tally], confidence: float = 0.95, power: float = 0.8
) -> PairedDifference:
    """Compares two policies task by task, which removes what makes one task harder than another.

    With d_i the success rate of the second policy on task i minus that of the first:

    - The interval is mean ± z s / sqrt(n) over the n = T + 2 numbers d_1 .. d_T, +1 and -1. The two pseudo tasks keep
      it honest when the policies hardly ever differ. With one attempt per task it is the adjusted Wald interval of
      Bonett and Price, J. Educ. Behav. Stat. 37 (2012); with several it errs on the wide side.
    - The p-value is that of the exact sign-flip test: if the policies are equally good, every d_i has either sign
      with probability 1/2, so the distribution of their sum is known. With one attempt per task it is McNemar's
      exact test.
    - `minimum_detectable` is `minimum_detectable_difference` at the root mean square of the T + 2 numbers.

    Args:
        first: Tallies of the first policy.
        second: Tallies of the second policy on the same tasks in the same order.
        confidence: Coverage of the interval.
        power: Probability with which the minimum detectable difference would be found.

    Raises:
        ConfigError: No task, lists of different length, or confidence or power outside (0, 1).
    """
    if len(first) != len(second) or not first:
        raise ConfigError(
            f"A paired comparison needs the same tasks for both policies, got {len(first)} and {len(second)} tallies."
        )
    exact = [
        Fraction(b.successes, b.attempts) - Fraction(a.successes, a.attempts)
        for a, b in zip(first, second, strict=True)
    ]
    adjusted = np.array([float(d) for d in exact] + [1.0, -1.0])
    z = _normal_quantile((1 + _checked_confidence(confidence)) / 2)
    half = z * float(adjusted.std()) / math.sqrt(len(adjusted))
    center = float(adjusted.mean())
    return PairedDifference(
        difference=Estimate(
            float(sum(exact) / len(exact)), max(-1.0, center - half), min(1.0, center + half), confidence
        ),
        p_value=_sign_flip_p_value(exact),
        num_tasks=len(exact),
        num_better=sum(d > 0 for d in exact),
        num_worse=sum(d < 0 for d in exact),
        minimum_detectable=minimum_detectable_difference(
            len(exact), discordance=float((adjusted**2).mean()), confidence=confidence, power=power
        ),
    )


def minimum_detectable_difference(
    num_tasks: int, discordance: float, confidence: float = 0.95, power: float = 0.8
) -> float:
    """The smallest true difference in success rate that a paired comparison on T tasks finds with the given power.

    Connor, "Sample size for testing differences in proportions for the paired-sample design", Biometrics 43 (1987),
    T = (z_a sqrt(psi) + z_b sqrt(psi - d^2))^2 / d^2, solved for d::

        d = sqrt(psi) (z_a sqrt(T) + z_b sqrt(T + z_b^2 - z_a^2)) / (T + z_b^2)

    Args:
        num_tasks: T.
        discordance: psi, the share of tasks on which exactly one of the two policies succeeds (with several attempts
            per task: the mean square of the difference of success rates).
        confidence: 1 - alpha of the two-sided test.
        power: Probability of finding the difference.

    Returns:
        A difference in (0, 1]. A value above `discordance` means that T tasks cannot show any difference.

    Raises:
        ConfigError: No task, or another argument outside (0, 1] (discordance) or (0, 1).
    """
    if num_tasks < 1:
        raise ConfigError(f"A comparison needs at least one task, got num_tasks={num_tasks}.")
    if not 0 < discordance <= 1:
        raise ConfigError(f"discordance must be in (0, 1], got {discordance!r}.")
    if not 0 < power < 1:
        raise ConfigError(f"power must be between 0 and 1, got {power!r}.")
    z_a = _normal_quantile((1 + _checked_confidence(confidence)) / 2)
    z_b = _normal_quantile(power)
    inner = max(0.0, num_tasks + z_b**2 - z_a**2)
    numerator = z_a * math.sqrt(num_tasks) + z_b * math.sqrt(inner)
    return min(1.0, math.sqrt(discordance) * numerator / (num_tasks + z_b**2))


def _clustered_mean(totals: Sequence[float], sizes: Sequence[int], num_attempts: int, confidence: float) -> Estimate:
    """sum(totals) / sum(sizes) with Wilson's interval at the effective number of trials (see `success_rate`)."""
    if not totals:
        raise ConfigError("A success rate needs at least one task with a valid attempt, got none.")
    t, w = np.array(totals, dtype=float), np.array(sizes, dtype=float)
    p = float(t.sum() / w.sum())
    binomial = p * (1 - p)
    if binomial == 0.0 or len(t) == 1:  # nothing is known about the spread between tasks: the cautious answer
        effective = float(w.sum() ** 2 / (w**2).sum())
    else:
        variance = float(((t - p * w) ** 2).sum() / w.sum() ** 2)
        effective = binomial / max(variance, binomial / num_attempts)
    interval = wilson_interval(p * effective, effective, confidence)
    return Estimate(p, interval.low, interval.high, confidence)


def _sign_flip_p_value(differences: Sequence[Fraction]) -> float:
    # Numbers of attempts that differ from task to task can have a huge common multiple; the nearest 1/840 does there.
    unit = min(math.lcm(*(d.denominator for d in differences)), 840)
    steps = [round(d * unit) for d in differences if d]
    observed = abs(sum(steps))
    if observed == 0:
        return 1.0
    probability = np.ones(1)  # of the signed sum of the steps so far, from -sum to +sum
    for step in map(abs, steps):
        wider = np.zeros(len(probability) + 2 * step)
        wider[: len(probability)] += 0.5 * probability
        wider[2 * step :] += 0.5 * probability
        probability = wider
    return min(1.0, 2 * float(probability[len(probability) // 2 + observed :].sum()))


def _normal_quantile(probability: float) -> float:
    return NormalDist().inv_cdf(probability)


def _checked_confidence(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence must be between 0 and 1, such as 0.95; got {confidence!r}.")
    return confidence
