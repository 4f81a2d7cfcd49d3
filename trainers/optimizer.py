"""AdamW whose steps are never rounded away: bfloat16 weights are trained through float32 copies.

A bfloat16 number has eight significant bits, so a step of 1e-6 on a weight of 0.01 would change nothing at all.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from agentrl.trainers.settings import OptimizerSettings


class MasterAdamW:
    """AdamW over float32 copies of the weights that are not float32 themselves, which are rounded after each step.

    Args:
        parameters: What is trained.
        settings: Learning rate, betas, weight decay, bound on the gradient norm.
    """

    def __init__(self, parameters: Sequence[Tensor], settings: OptimizerSettings) -> None:
        self._parameters = list(parameters)
        self._masters = [_master(parameter) for parameter in parameters]
        self._max_grad_norm = settings.max_grad_norm
        self._adamw = torch.optim.AdamW(
            self._masters,
            lr=settings.learning_rate,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            fused=all(master.is_cuda for master in self._masters) or None,  # needs no room of the weights' size there
        )

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return float(self._adamw.param_groups[0]["lr"])

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        for group in self._adamw.param_groups:
            group["lr"] = value

    def zero_grad(self) -> None:
        """Drops all gradients."""
        for tensor in (*self._parameters, *self._masters):
            tensor.grad = None

    def step(self) -> float:
        """Clips the gradient and takes a step, unless the gradient is not finite; drops it in any case.

        Returns:
            The norm of the gradient before clipping; where it is not finite, nothing was changed.
        """
        for parameter, master in zip(self._parameters, self._masters, strict=True):
            if master is not parameter:
                master.grad = None if parameter.grad is None else parameter.grad.to(master.dtype)
                parameter.grad = None  # so that at most one tensor's gradient exists twice
        norm = torch.nn.utils.clip_grad_norm_(self._masters, self._max_grad_norm)
        if torch.isfinite(norm):
            self._adamw.step()
            self._round()
        self.zero_grad()
        return float(norm)

    def state_dict(self) -> dict[str, Any]:
        """Moments, and the float32 copies where there are any."""
        copies = {i: m for i, (p, m) in enumerate(zip(self._parameters, self._masters, strict=True)) if m is not p}
        return {"adamw": self._adamw.state_dict(), "masters": copies}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what `state_dict` gave, be it on another kind of device."""
        fused = self._adamw.param_groups[0]["fused"]
        groups = [{**group, "fused": fused} for group in state["adamw"]["param_groups"]]
        self._adamw.load_state_dict({**state["adamw"], "param_groups": groups})
        with torch.no_grad():
            for index, copy in state["masters"].items():
                self._masters[index].copy_(copy)
        self._round()

    @torch.no_grad()
    def _round(self) -> None:
        for parameter, master in zip(self._parameters, self._masters, strict=True):
            if master is not parameter:
                parameter.copy_(master)


def _master(parameter: Tensor) -> Tensor:
    if parameter.dtype not in (torch.bfloat16, torch.float16):
        return parameter
    return parameter.detach().float().requires_grad_()
