r"""The losses of the preference family, as functions of trajectories' log-probabilities.

Write Delta(y) = sum_t m_t (log pi(y_t) - log pi_ref(y_t)) for the log-ratio of a trajectory y. Only action tokens have
m_t = 1: what a tool answered is not the policy's doing, and in a pair the two answers may be of different length.

    DPO    -log sigmoid(beta (Delta(y_w) - Delta(y_l)))                                     pairs    reference
    IPO    (Delta(y_w) - Delta(y_l) - 1 / (2 tau))^2                                        pairs    reference
    KTO    lambda (1 - sigmoid(+-beta (Delta(y) - z0)))                                     labels   reference
    ORPO   NLL(y_w) - lambda log sigmoid(logodds(y_w) - logodds(y_l))                       pairs    none
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from agentrl.trainers.masking import require_paths, zero_outside

MAX_MEAN_LOGPROB = -1e-6
"""At a probability of 1 the odds are infinite; no trajectory is taken to be likelier than this."""


def path_sum(values: Tensor, mask: Tensor) -> Tensor:
    """sum_t m_t x_t of each trajectory: its log-probability, or its log-ratio.

    Log-ratios are best formed token by token before they are summed: the difference of two large sums has fewer digits.

    Args:
        values: [B, L], with gradient; anything outside the mask.
        mask: [B, L] bool.

    Returns:
        [B].

    Raises:
        TypeError, ValueError: Wrong dtype or shape.

    >>> path_sum(torch.tensor([[-1.0, -2.0, float("nan")]]), torch.tensor([[True, True, False]])).tolist()
    [-3.0]
    """
    require_paths(mask, values=values)
    return zero_outside(values, mask).sum(dim=1)


def dpo_loss(margin: Tensor) -> Tensor:
    """-log sigmoid(margin), margin = beta (Delta(y_w) - Delta(y_l)). DPO, arXiv:2305.18290, equation 7.

    Args:
        margin: [P], with gradient.

    Returns:
        [P].

    >>> dpo_loss(torch.zeros(1)).item() == torch.tensor(2.0).log().item()      # ln 2 before the first step
    True
    """
    return -logsigmoid(margin)


def ipo_loss(gap: Tensor, *, tau: float) -> Tensor:
    """(gap - 1 / (2 tau))^2, gap = Delta(y_w) - Delta(y_l). IPO, arXiv:2310.12036, equation 17.

    The target is finite, so pairs that always agree do not drive the policy away from the reference without end.

    Args:
        gap: [P], with gradient.
        tau: Strength of the pull to the reference; the target is its inverse.

    Returns:
        [P].

    >>> ipo_loss(torch.tensor([0.0, 5.0]), tau=0.1).tolist()
    [25.0, 0.0]
    """
    return (gap - 1.0 / (2.0 * tau)).square()


def reference_point(mismatched: Tensor) -> Tensor:
    """z0 = max(0, mean Delta(x, y')): how far the policy is from the reference. KTO, arXiv:2402.01306, section 4.1.

    The mean over prompts with the completions of other prompts estimates KL(pi || reference) with a bias, and cheaply.

    Args:
        mismatched: [M] log-ratios of completions after the prompt of another task, at least one.

    Returns:
        A scalar without gradient.

    Raises:
        ValueError: No log-ratio.
    """
    if not mismatched.numel():
        raise ValueError("The reference point of KTO is a mean over mismatched completions; got none.")
    return mismatched.detach().mean().clamp(min=0.0)


def kto_loss(margin: Tensor, weight: Tensor) -> Tensor:
    """Weight (1 - sigmoid(margin)): what is lost of the value of an outcome. KTO, arXiv:2402.01306, equation 8.

    Args:
        margin: [N], with gradient: beta (Delta - z0) where desirable, beta (z0 - Delta) where undesirable.
        weight: [N]: lambda_D or lambda_U.

    Returns:
        [N].
    """
    return weight * torch.sigmoid(-margin)


def log_odds(mean_logprobs: Tensor) -> Tensor:
    """log(P / (1 - P)) of P = exp(mean log-probability per token). ORPO, arXiv:2403.07691, equation 4.

    1 - P is computed as -expm1(log P) where P is near 1 and as 1 - exp(log P) elsewhere, so that neither cancels;
    log P counts as at most `MAX_MEAN_LOGPROB`, above which there is no gradient.

    Args:
        mean_logprobs: Of any shape, at most 0, with gradient.

    Returns:
        The same shape.
    """
    logp = mean_logprobs.clamp(max=MAX_MEAN_LOGPROB)
    near_one = logp > -0.6931471805599453  # ln 2
    log_rest = torch.where(
        near_one,
        torch.log(-torch.expm1(logp.where(near_one, -1.0))),
        torch.log1p(-torch.exp(logp.where(~near_one, -1.0))),
    )
    return logp - log_rest


def orpo_loss(chosen: Tensor, margin: Tensor, *, weight: float) -> Tensor:
    """-chosen - weight log sigmoid(margin): imitation, and odds in its favor. ORPO, arXiv:2403.07691, equation 6.

    Args:
        chosen: [P] mean log-probability per token of y_w, with gradient.
        margin: [P] logodds(y_w) - logodds(y_l), with gradient.
        weight: The paper's lambda.

    Returns:
        [P].
    """
    return -chosen - weight * logsigmoid(margin)
