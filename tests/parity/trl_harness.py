"""TRL's own trainers, built by their own constructors and fed with given episodes.

Two of their methods are replaced, those at which a model comes in: `_generate`, which samples, and
`_get_per_token_logps_and_entropies`, which scores. Rewards, advantages, importance weights and losses are TRL's code
from there on, with PyTorch's default dtype set to float64 for what it creates on its way.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from comparison import Result
from parity_cases import SIZE, Episodes
from torch import Tensor

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # ORPO and GMPO live in trl.experimental
trl = pytest.importorskip(
    "trl",
    minversion="1.16",
    reason="compares with TRL 1.16, which is not installed: pip install --group dev --constraint constraints.txt",
)

from datasets import Dataset as Dataset  # noqa: E402
from trl.experimental.gmpo import GMPOConfig as GMPOConfig  # noqa: E402
from trl.experimental.gmpo import GMPOTrainer as GMPOTrainer  # noqa: E402
from trl.experimental.orpo import ORPOConfig as ORPOConfig  # noqa: E402
from trl.experimental.orpo import ORPOTrainer as ORPOTrainer  # noqa: E402
from trl.rewards import get_soft_overlong_punishment as get_soft_overlong_punishment  # noqa: E402
from trl.trainer.utils import split_tensor_dict  # noqa: E402

MAX_LENGTH = 32
"""Completion budget: the constant of Dr. GRPO's aggregation."""


@contextmanager
def double_by_default() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def common_settings(model_dir: Path) -> dict[str, Any]:
    """Settings of any TRL trainer on a CPU, without reports."""
    return {"output_dir": str(model_dir / "out"), "use_cpu": True, "bf16": False, "report_to": [], "disable_tqdm": True}


def build(
    trainer: type[Any],
    config: type[Any],
    model_dir: Path,
    episodes: Episodes,
    micro_batches: int,
    more_rewards: Sequence[Callable[..., list[float]]],
    settings: dict[str, Any],
) -> Any:
    """A trainer whose rewards are those of the episodes, in training mode."""
    rows, parts = episodes.rewards.shape
    arguments = config(
        **common_settings(model_dir),
        **{
            "per_device_train_batch_size": rows // micro_batches,
            "gradient_accumulation_steps": micro_batches,
            "num_generations": SIZE,
            "num_iterations": 2,  # with one, TRL takes the new log-probabilities for the old ones
            "max_completion_length": MAX_LENGTH,
            **settings,
        },
    )
    built = trainer(
        model=str(model_dir),
        reward_funcs=[*(partial(_part, episodes.rewards[:, k].tolist()) for k in range(parts)), *more_rewards],
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": ["?"] * rows}),
    )
    built.model.train()
    built.current_gradient_accumulation_steps = micro_batches
    return built


def _part(values: list[float], **_: object) -> list[float]:
    return values


def trl_grpo(
    model_dir: Path,
    episodes: Episodes,
    *,
    micro_batches: int = 1,
    sampler_correction: bool = False,
    more_rewards: Sequence[Callable[..., list[float]]] = (),
    trainer: type[Any] | None = None,
    config: type[Any] | None = None,
    **settings: Any,
) -> Result:
    """What TRL's GRPOTrainer makes of the episodes.

    Args:
        model_dir: Where the model lies that TRL loads and never runs.
        episodes: Given to TRL in place of what it would sample and score.
        micro_batches: Parts of the optimizer step.
        sampler_correction: As if vLLM had sampled.
        more_rewards: Reward functions of TRL's, added to the rewards of the episodes.
        trainer: A subclass of GRPOTrainer.
        config: Its configuration class.
        settings: Of GRPOConfig.
    """
    classes = (trainer or trl.GRPOTrainer, config or trl.GRPOConfig)
    built = build(*classes, model_dir, episodes, micro_batches, more_rewards, settings)
    built.use_vllm = sampler_correction  # set behind the constructor's back, which would start vLLM
    prompts = [[10, 11]] * len(episodes.token_ids)
    sampler = [row[: len(ids)] for row, ids in zip(episodes.sampler.tolist(), episodes.token_ids, strict=True)]
    texts = ["?"] * len(prompts)
    built._generate = lambda _: (prompts, episodes.token_ids, episodes.tool_mask, texts, sampler, {}, None, [])
    return _run(built, episodes, micro_batches)


def trl_rloo(model_dir: Path, episodes: Episodes, **settings: Any) -> Result:
    """What TRL's RLOOTrainer makes of the episodes; it knows no tool results."""
    built = build(trl.RLOOTrainer, trl.RLOOConfig, model_dir, episodes, 1, (), settings)
    prompts = [[10, 11]] * len(episodes.token_ids)
    built._generate = lambda _: (prompts, episodes.token_ids, ["?"] * len(prompts))
    return _run(built, episodes, 1)


@dataclass
class _Scores:
    """Stands in for the models: their log-probabilities and entropies of the current rows."""

    episodes: Episodes
    reference: object
    rows: Tensor

    def __post_init__(self) -> None:
        self.new = self.episodes.new.clone().requires_grad_()

    def __call__(self, model: object, *_: object, **__: object) -> tuple[Tensor, Tensor, None]:
        trained = self.new if torch.is_grad_enabled() else self.episodes.old
        logprobs = self.episodes.ref if model is self.reference else trained
        return logprobs[self.rows], self.episodes.entropies[self.rows], None


def _run(built: Any, episodes: Episodes, micro_batches: int) -> Result:
    all_rows = torch.arange(len(episodes.token_ids))
    scores = _Scores(episodes, reference=built.ref_model or "none", rows=all_rows)
    built._get_per_token_logps_and_entropies = scores
    total = torch.zeros((), dtype=torch.float64)
    with double_by_default():
        generated = built._generate_and_score_completions([{"prompt": "?"} for _ in all_rows])
        parts = split_tensor_dict(generated, micro_batches)
        for scores.rows, part in zip(all_rows.chunk(micro_batches), parts, strict=True):
            loss = built.compute_loss(built.model, part)
            loss.backward()
            total = total + loss.detach()
    assert scores.new.grad is not None
    advantages = generated["advantages"].unsqueeze(1) * episodes.mask
    return Result(advantages=advantages, loss=total, grad=scores.new.grad)
