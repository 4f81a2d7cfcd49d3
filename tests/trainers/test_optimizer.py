"""AdamW through float32 copies: equal to torch's own in float32, and no step is rounded away in bfloat16."""

import copy

import pytest
import torch
from torch import Tensor

from agentrl.trainers.optimizer import MasterAdamW
from agentrl.trainers.settings import OptimizerSettings


def settings(**changes: float) -> OptimizerSettings:
    return OptimizerSettings(**{"learning_rate": 1e-3, "weight_decay": 0.1, "max_grad_norm": 1e9, **changes})  # type: ignore[arg-type]


def gradients(step: int, like: list[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(p.shape, generator=generator).to(p.dtype) for p in like]


def weights(dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(99)
    return [torch.randn(3, 4, generator=generator).to(dtype).requires_grad_() for _ in range(2)]


def run(optimizer: MasterAdamW, parameters: list[Tensor], steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        for parameter, gradient in zip(parameters, gradients(step, parameters), strict=True):
            parameter.grad = gradient
        optimizer.step()


def test_float32_is_torchs_adamw_to_the_bit() -> None:
    ours, theirs = weights(torch.float32), weights(torch.float32)
    run(MasterAdamW(ours, settings()), ours, range(5))
    reference = torch.optim.AdamW(theirs, lr=1e-3, weight_decay=0.1, betas=(0.9, 0.999))
    for step in range(5):
        for parameter, gradient in zip(theirs, gradients(step, theirs), strict=True):
            parameter.grad = gradient
        reference.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_small_steps_add_up_in_bfloat16() -> None:
    """1000 steps of about 1e-5 on a weight of 1: each is far below bfloat16's spacing of 0.0078 there."""
    parameter = torch.ones(1, dtype=torch.bfloat16).requires_grad_()
    optimizer = MasterAdamW([parameter], settings(learning_rate=1e-5, weight_decay=0.0))
    naive = torch.ones(1, dtype=torch.bfloat16).requires_grad_()
    torchs = torch.optim.AdamW([naive], lr=1e-5, weight_decay=0.0)
    for _ in range(1000):
        parameter.grad, naive.grad = torch.ones_like(parameter), torch.ones_like(naive)
        optimizer.step()
        torchs.step()
    # A constant gradient makes every AdamW step as long as the learning rate: 1 - 1000 * 1e-5 = 0.99.
    assert float(parameter.detach()) == pytest.approx(0.99, abs=0.004)
    assert float(naive.detach()) == 1.0  # the control: torch's own step is rounded away every time


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_reloaded_state_goes_on_to_the_bit(dtype: torch.dtype) -> None:
    whole, parts = weights(dtype), weights(dtype)
    run(MasterAdamW(whole, settings()), whole, range(6))
    first = MasterAdamW(parts, settings())
    run(first, parts, range(3))
    state = copy.deepcopy(first.state_dict())
    resumed = [parameter.detach().clone().requires_grad_() for parameter in parts]
    second = MasterAdamW(resumed, settings())
    second.load_state_dict(state)
    run(second, resumed, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))


def test_a_state_from_another_kind_of_device_keeps_this_one_s_way() -> None:
    parameters = weights(torch.float32)
    optimizer = MasterAdamW(parameters, settings())
    run(optimizer, parameters, range(2))
    state = copy.deepcopy(optimizer.state_dict())
    for group in state["adamw"]["param_groups"]:
        group["fused"] = True  # as on a GPU
    optimizer.load_state_dict(state)
    assert [group["fused"] for group in optimizer._adamw.param_groups] == [None]


def test_clipping_and_the_norm_before_it() -> None:
    parameter = torch.zeros(2).requires_grad_()
    optimizer = MasterAdamW([parameter], settings(max_grad_norm=1.0))
    parameter.grad = torch.tensor([3.0, 4.0])
    assert optimizer.step() == pytest.approx(5.0)  # sqrt(9 + 16)
    # AdamW's first moment is 0.1 of the clipped gradient [0.6, 0.8].
    assert optimizer.state_dict()["adamw"]["state"][0]["exp_avg"].tolist() == pytest.approx([0.06, 0.08], abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("slope", [1.0, float("nan")])
def test_gradients_take_no_memory_after_a_step(dtype: torch.dtype, slope: float) -> None:
    parameters = weights(dtype)
    optimizer = MasterAdamW(parameters, settings())
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, slope)
    optimizer.step()
    assert all(tensor.grad is None for tensor in (*parameters, *optimizer._masters))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_changes_nothing(bad: float) -> None:
    parameter = torch.ones(2).requires_grad_()
    optimizer = MasterAdamW([parameter], settings())
    parameter.grad = torch.tensor([1.0, bad])
    assert not torch.isfinite(torch.tensor(optimizer.step()))
    assert parameter.tolist() == [1.0, 1.0]
    assert optimizer.state_dict()["adamw"]["state"] == {}


def test_learning_rate_can_be_scheduled() -> None:
    parameter = torch.zeros(1).requires_grad_()
    optimizer = MasterAdamW([parameter], settings(weight_decay=0.0))
    optimizer.learning_rate = 0.5
    parameter.grad = torch.ones(1)
    optimizer.step()
    assert parameter.tolist() == pytest.approx([-0.5])  # the first AdamW step is sign(gradient) * learning rate
