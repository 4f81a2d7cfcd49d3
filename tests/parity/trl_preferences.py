"""TRL's preference trainers, fed with given log-probabilities.

Every position of a batch holds a token id of its own, and the model that TRL gets looks its log-probability up by that
id: `_Table` for the trainers that ask the model for log-probabilities, `_Logits` for ORPO, which computes them. The
trainers themselves are built by their own constructors and read batches as their collators make them.
"""

import random
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from comparison import Result
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl_harness import Dataset, ORPOConfig, ORPOTrainer, common_settings, double_by_default, trl

IGNORED = -100


@dataclass(frozen=True)
class Answers:
    """Prompts with answers, right-padded; the first half of a batch of pairs is chosen, the second rejected."""

    ids: Tensor
    """[B, T + 1] int64: all different."""
    attention: Tensor
    """[B, T + 1] int64."""
    sampled: Tensor
    """[B, T] bool: whether token t + 1 was sampled; False in prompt, tool results and padding."""
    new: Tensor
    """[U] by token id, as `ref`."""
    ref: Tensor

    def paths(self, values: Tensor) -> Tensor:
        """[B, T] from [U], NaN where nothing was sampled."""
        return values[self.ids[:, 1:]].where(self.sampled, torch.nan)

    @property
    def trl_inputs(self) -> dict[str, Tensor]:
        """The batch as TRL's collators make it."""
        mask = torch.nn.functional.pad(self.sampled.long(), (1, 0))
        return {"input_ids": self.ids, "attention_mask": self.attention, "completion_mask": mask}


def make_answers(seed: int, *, rows: int = 6, first_id: int = 0) -> Answers:
    """Ragged answers with a tool result in most of them."""
    rng = random.Random(seed)
    lengths = [(rng.randint(1, 4), rng.randint(3, 9)) for _ in range(rows)]
    width = max(map(sum, lengths))
    sampled = torch.zeros(rows, width, dtype=torch.bool)
    attention = torch.zeros(rows, width, dtype=torch.int64)
    for row, (prompt, answer) in enumerate(lengths):
        attention[row, : prompt + answer] = 1
        sampled[row, prompt : prompt + answer] = True
        sampled[row, prompt + rng.randint(1, answer - 1)] = rng.random() < 0.3
    count = first_id + rows * width
    ref = [rng.uniform(-3.0, -0.05) for _ in range(count)]
    return Answers(
        ids=torch.arange(first_id, count).view(rows, width),
        attention=attention,
        sampled=sampled[:, 1:],
        new=torch.tensor([value + rng.gauss(0.0, 0.5) for value in ref], dtype=torch.float64),
        ref=torch.tensor(ref, dtype=torch.float64),
    )


class _Table(torch.nn.Module):
    def __init__(self, logprobs: Tensor) -> None:
        super().__init__()
        self.logprobs = logprobs

    def forward(self, input_ids: Tensor, labels: Tensor, **_: object) -> SimpleNamespace:
        """As TRL's fused head answers: log-probabilities [B, T], 0 where a label is ignored."""
        logprobs = self.logprobs[input_ids[:, 1:]].where(labels[:, 1:] != IGNORED, 0.0)
        idle = torch.zeros_like(logprobs)  # only for TRL's metrics
        return SimpleNamespace(log_probs=logprobs, entropy=idle, mean_logits=idle, is_top1=idle.bool())


def trl_dpo(model_dir: Path, answers: Answers, **settings: Any) -> Result:
    """DPOTrainer's loss of pairs, with the gradient by token id."""
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c"}]
    trainer = trl.DPOTrainer(
        model=str(model_dir),
        args=trl.DPOConfig(**common_settings(model_dir), **settings),
        train_dataset=Dataset.from_list(rows),
    )
    return _run(trainer, answers.trl_inputs, answers)


def trl_kto(model_dir: Path, answers: Answers, mismatched: Answers, labels: list[bool], **settings: Any) -> Result:
    """KTOTrainer's loss of labelled answers, with the gradient by token id.

    Args:
        model_dir: Where the model lies that TRL loads and never runs.
        answers: The labelled ones.
        mismatched: Those that give the reference point, with later ids than `answers` and the tables of both.
        labels: True for a desirable answer.
        settings: Of KTOConfig.
    """
    rows = [{"prompt": "a", "completion": text, "label": text == "b"} for text in "bc"]
    trainer = trl.KTOTrainer(
        model=str(model_dir),
        args=trl.KTOConfig(**common_settings(model_dir), **settings),
        train_dataset=Dataset.from_list(rows),
    )
    others = {f"KL_{name}": value for name, value in mismatched.trl_inputs.items()}
    return _run(trainer, {**answers.trl_inputs, **others, "label": torch.tensor(labels)}, mismatched)


def _run(trainer: Any, inputs: dict[str, Tensor], tables: Answers) -> Result:
    new = tables.new.clone().requires_grad_()
    trainer.model.train()
    trainer.ref_model = _Table(tables.ref)
    with double_by_default():
        loss = trainer.compute_loss(_Table(new), inputs)
        loss.backward()
    assert new.grad is not None
    return Result(loss=loss.detach(), grad=new.grad)


@dataclass(frozen=True)
class Pairs:
    """Pairs for ORPO, which needs whole distributions: the first half is chosen, the second rejected."""

    ids: Tensor
    """[B, T + 1] int64, in a vocabulary of V."""
    attention: Tensor
    sampled: Tensor
    """As in `Answers`."""
    logits: Tensor
    """[B, T + 1, V]."""

    def logprobs(self, logits: Tensor) -> Tensor:
        """[B, T] of the tokens after the first."""
        return logits[:, :-1].log_softmax(-1).gather(-1, self.ids[:, 1:, None]).squeeze(-1)


def make_pairs(seed: int, *, prompt: tuple[int, int], answer: tuple[int, int], tools: bool) -> Pairs:
    """Three pairs whose prompts and answers have lengths in the given ranges, with or without tool results."""
    rng = random.Random(seed)
    lengths = [(rng.randint(*prompt), rng.randint(*answer)) for _ in range(6)]
    width = max(map(sum, lengths))
    attention = torch.zeros(6, width, dtype=torch.int64)
    for row, (before, after) in enumerate(lengths):
        attention[row, : before + after] = 1
    sampled = attention.bool()
    for row, (before, after) in enumerate(lengths):
        sampled[row, :before] = False
        if tools:
            sampled[row, before + rng.randint(1, after - 1)] = False
    generator = torch.Generator().manual_seed(seed)
    return Pairs(
        ids=torch.randint(0, 7, (6, width), generator=generator),
        attention=attention,
        sampled=sampled[:, 1:],
        logits=torch.randn(6, width, 7, generator=generator, dtype=torch.float64),
    )


def trl_orpo(model_dir: Path, pairs: Pairs, **settings: Any) -> Result:
    """ORPOTrainer's loss of pairs, with the gradient by the logits; its odds are computed in float32."""
    trainer = ORPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model_dir),
        args=ORPOConfig(**common_settings(model_dir), max_length=64, remove_unused_columns=False, **settings),
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]),
        processing_class=AutoTokenizer.from_pretrained(model_dir),
    )
    logits = pairs.logits.clone().requires_grad_()
    labels = torch.nn.functional.pad(pairs.ids[:, 1:].where(pairs.sampled, IGNORED), (1, 0), value=IGNORED)
    columns = {"input_ids": pairs.ids, "attention_mask": pairs.attention, "labels": labels}
    inputs = {
        f"{side}_{name}": half
        for name, column in columns.items()
        for side, half in zip(("chosen", "rejected"), column.chunk(2), strict=True)
    }
    with double_by_default():
        loss = trainer.compute_loss(lambda *_, **__: SimpleNamespace(logits=logits), inputs)
        loss.backward()
    assert logits.grad is not None
    return Result(loss=loss.detach(), grad=logits.grad)
