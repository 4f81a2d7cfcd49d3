"""The model that is trained, and the frozen one it is held near."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from agentrl.policies.loading import LoadedModel, add_lora, load_lora, load_model
from agentrl.trainers.forward import TokenScorer
from agentrl.trainers.settings import ModelSettings, TrainSettings
from agentrl.trajectory import Tree


def trainable_model(settings: ModelSettings, checkpoint: Path | None, *, stop_at_tool_call: bool) -> LoadedModel:
    """Loads the model of a run.

    Args:
        settings: Which, where, and whether only an adapter is trained.
        checkpoint: Weights of an earlier part of the run; with LoRA, the adapter alone.
        stop_at_tool_call: See `ChatFormat`.

    Raises:
        PolicyError: It cannot be loaded.
        MissingExtraError: LoRA is asked for and `peft` is not installed.
    """
    whole = settings.lora is None and checkpoint is not None
    loaded = load_model(
        str(checkpoint) if whole else settings.name,
        device=settings.device,
        dtype=settings.dtype,
        chat_template=settings.chat_template,
        stop_at_tool_call=stop_at_tool_call,
    )
    if settings.gradient_checkpointing:
        loaded.model.gradient_checkpointing_enable({"use_reentrant": False})
        loaded.model.enable_input_require_grads()  # with a frozen base nothing else would carry the gradient
    if settings.lora is None:
        return loaded
    if checkpoint is not None:
        return replace(loaded, model=load_lora(loaded.model, checkpoint))
    lora = settings.lora
    torch.manual_seed(0)  # the adapter's random half; one fixed draw makes runs with equal settings equal
    return replace(loaded, model=add_lora(loaded.model, rank=lora.rank, alpha=lora.alpha, targets=lora.targets))


def initial_weights(settings: TrainSettings) -> list[Tensor]:
    """The trainable weights as they are before training, in the order of the model's parameters."""
    fresh = trainable_model(settings.model, None, stop_at_tool_call=settings.rollout.stop_at_tool_call)
    return [parameter.detach() for parameter in fresh.model.parameters() if parameter.requires_grad]


def reference_scores(loaded: LoadedModel, settings: TrainSettings) -> Callable[[list[Tree]], Tensor]:
    """Log-probabilities [U] of trees under the model as it was before training.

    With LoRA that is the base model with the adapter switched off; otherwise a frozen second copy.
    """
    temperature = settings.rollout.temperature
    if settings.model.lora is not None:
        scorer = TokenScorer(loaded.model)

        def without_adapter(trees: list[Tree]) -> Tensor:
            with loaded.model.disable_adapter():
                return scorer.score(trees, temperature=temperature).logprobs

        return without_adapter
    model = settings.model
    frozen = load_model(model.name, device=model.device, dtype=model.dtype, chat_template=model.chat_template)
    frozen.model.requires_grad_(False)
    frozen_scorer = TokenScorer(frozen.model)
    return lambda trees: frozen_scorer.score(trees, temperature=temperature).logprobs
