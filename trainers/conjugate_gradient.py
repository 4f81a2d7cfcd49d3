"""Conjugate gradients: solves H x = b where H is only known by its products with vectors."""

from collections.abc import Callable

import torch
from torch import Tensor


def conjugate_gradient(
    product: Callable[[Tensor], Tensor], b: Tensor, *, iterations: int, tolerance: float = 1e-10
) -> Tensor:
    """Approximates H^-1 b for a symmetric positive definite H (Hestenes and Stiefel, 1952), starting at 0.

    In exact arithmetic it ends after as many iterations as H has distinct eigenvalues; each of them makes the error,
    measured by H, smaller. Should rounding make a direction look flat or curved the wrong way, it stops there.

    Args:
        product: v [N] to H v [N].
        b: [N].
        iterations: Products at most.
        tolerance: It stops where the squared length of b - H x is at most this.

    Returns:
        x [N].

    >>> h = torch.tensor([[2.0, 0.0], [0.0, 4.0]])
    >>> conjugate_gradient(lambda v: h @ v, torch.tensor([2.0, 2.0]), iterations=2).round(decimals=5).tolist()
    [1.0, 0.5]
    """
    x = torch.zeros_like(b)
    residual = direction = b
    squared = torch.dot(b, b)
    for _ in range(iterations):
        if squared <= tolerance:
            break
        image = product(direction)
        curvature = torch.dot(direction, image)
        if not curvature > 0:
            break
        length = squared / curvature
        x = x + length * direction
        residual = residual - length * image
        before, squared = squared, torch.dot(residual, residual)
        direction = residual + (squared / before) * direction
    return x
