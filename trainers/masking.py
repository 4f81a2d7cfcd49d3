"""Arithmetic under a mask that can never be reached by what lies outside it, and the checks that open every function.

Outside the mask a tensor may hold anything, infinities and NaN included. Multiplying by the mask is not enough then:
0 * nan is nan, and so is the gradient 0 * d exp(x)/dx at x = inf. Hence the rule of the "double where": replace the
values *before* a non-linear function, so that its derivative is finite, and select *after* it, so that f(0) != 0
does not leak. Autograd's derivative of `torch.where` is exactly zero for the branch that was not taken.
"""

import torch
from torch import Tensor


def zero_outside(values: Tensor, mask: Tensor) -> Tensor:
    """`values` where the mask is True, 0 elsewhere, in value and in gradient.

    >>> zero_outside(torch.tensor([1.0, float("nan")]), torch.tensor([True, False])).tolist()
    [1.0, 0.0]
    """
    return torch.where(mask, values, values.new_zeros(()))


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the True positions, a scalar; 0 where there are none."""
    return zero_outside(values, mask).sum() / mask.sum().clamp(min=1)


def require_paths(mask: Tensor, **columns: Tensor) -> None:
    """Checks the arguments of a function on the path layout.

    Args:
        mask: bool [B, L].
        columns: Floating-point tensors [B, L], named as in the caller's signature.

    Raises:
        TypeError: A wrong dtype.
        ValueError: A wrong shape.
    """
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be a bool tensor, got {mask.dtype}.")
    if mask.ndim != 2:
        raise ValueError(f"mask must have shape [B, L], got {list(mask.shape)}.")
    for name, column in columns.items():
        if not column.is_floating_point():
            raise TypeError(f"{name} must be a floating-point tensor, got {column.dtype}.")
        if column.shape != mask.shape:
            raise ValueError(f"{name} must have the mask's shape {list(mask.shape)}, got {list(column.shape)}.")


def require_rows(rewards: Tensor, group: Tensor) -> None:
    """Checks `rewards` [B] floating point and `group` [B] int64.

    Raises:
        TypeError: A wrong dtype.
        ValueError: A wrong shape.
    """
    if not rewards.is_floating_point():
        raise TypeError(f"rewards must be a floating-point tensor, got {rewards.dtype}.")
    if group.dtype != torch.int64:
        raise TypeError(f"group must be an int64 tensor, got {group.dtype}.")
    if rewards.ndim != 1 or group.shape != rewards.shape:
        raise ValueError(f"rewards and group must both be [B], got {list(rewards.shape)} and {list(group.shape)}.")
