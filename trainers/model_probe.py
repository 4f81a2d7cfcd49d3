"""What a causal language model is like inside, found out on a few tokens before training starts."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from agentrl.errors import ConfigError
from agentrl.trainers.packing import PackedTrees, pack_trees, pad_paths
from agentrl.trainers.tree_attention import FLEX_NAME, NAME, TAKES_ANY_MASK, run_body
from agentrl.trajectory import Leaf, StopReason, Tree

_SAME_LOGITS = 1e-2  # relative to the largest logit: bf16 kernels may differ this much, another head differs far more
_SAME_HIDDEN = 0.1  # relative to the effect of ignoring the tree: rounding is far below, one deaf layer far above


@dataclass(frozen=True, slots=True)
class LogitTransform:
    """What models do to their head's output: logits = softcap * tanh(scale * output / softcap).

    Example:
        Gemma 2 has LogitTransform(softcap=30.0), Cohere LogitTransform(scale=0.0625), Llama LogitTransform().
    """

    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, model: PreTrainedModel) -> "LogitTransform":
        """Reads the transform from the configuration, where model families name it differently."""
        config = model.config.get_text_config().to_dict()
        scale = config.get("logit_scale") or 1.0  # Cohere
        scale /= config.get("logits_scaling") or 1.0  # Granite
        return cls(scale, config.get("final_logit_softcapping"))

    def __call__(self, output: Tensor) -> Tensor:
        """Logits from the output of the head."""
        logits = output if self.scale == 1.0 else output * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


def find_decoder(model: torch.nn.Module) -> PreTrainedModel:
    """The `transformers` causal LM that `model` is or wraps.

    Raises:
        ConfigError: There is none, or it has no head over a vocabulary.
    """
    decoder = next((part for part in model.modules() if isinstance(part, PreTrainedModel)), None)
    if decoder is None or decoder.get_output_embeddings() is None or decoder.base_model is decoder:
        raise ConfigError(
            f"Training needs a transformers causal LM with a language-modeling head, got {type(model).__name__}. "
            "Load it with AutoModelForCausalLM."
        )
    return decoder


def check_head(model: torch.nn.Module, decoder: PreTrainedModel, transform: LogitTransform) -> None:
    """Makes sure that head and transform, applied to hidden states, give the logits that the model gives.

    Raises:
        ConfigError: They do not.
    """
    with _evaluating(model):
        ids = (torch.arange(8, device=decoder.device) % decoder.get_input_embeddings().num_embeddings)[None]
        expected = model(input_ids=ids, use_cache=False).logits.float()
        hidden = decoder.base_model(input_ids=ids, use_cache=False).last_hidden_state
        given = transform(decoder.get_output_embeddings()(hidden)).float()
    if given.shape != expected.shape or (given - expected).abs().max() > _SAME_LOGITS * expected.abs().max():
        raise ConfigError(
            f"The logits of {type(model).__name__} are not its output embedding applied to its last hidden state, even "
            "with the logit scale and softcap of its configuration, so log-probabilities cannot be computed in chunks. "
            "Use a model with a plain head; of adapters, use one that changes weights in place, such as LoRA."
        )


def why_not_packable(decoder: PreTrainedModel) -> str | None:
    """Why the model cannot run packed trees, or None if it can.

    Windowed layers are recognized by the configuration, because they only differ beyond their window. All others
    are tried: the hidden states of a small packed tree must be those of its single paths. The yardstick is how far
    off a model would be that sees the packed row as one long text.
    """
    config = decoder.config.get_text_config().to_dict()
    layers = set(config.get("layer_types") or ([] if config.get("sliding_window") is None else ["sliding_attention"]))
    if layers - {"full_attention"}:
        return f"its layers are of type {', '.join(sorted(layers))}, and packing needs full attention in all"
    if decoder.config._attn_implementation not in TAKES_ANY_MASK:
        return (
            f"attn_implementation={decoder.config._attn_implementation!r} takes no mask per pair of tokens; use 'sdpa'"
        )
    tree = _branching(decoder.get_input_embeddings().num_embeddings, [(None, 2), (0, 12), (0, 3), (2, 2), (2, 2)])
    packed, padded = (layout.to(decoder.device) for layout in (pack_trees([tree]), pad_paths([tree])))
    with _evaluating(decoder):
        expected = _predecessor_states(padded, run_body(decoder, padded))
        as_text = decoder.base_model(input_ids=packed.token_ids, use_cache=False).last_hidden_state
        effect = (_predecessor_states(packed, as_text) - expected).norm()
        try:
            given = _predecessor_states(packed, run_body(decoder, packed))
        except Exception as error:  # whatever a model dislikes about the mask, the answer is the same
            return f"with a mask per pair of tokens it raised {type(error).__name__} ({error})"
    if (given - expected).norm() <= _SAME_HIDDEN * effect:
        return None
    return "its layers do not follow a mask per pair of tokens or given positions"


def why_not_flex(decoder: PreTrainedModel) -> str | None:
    """Why packed trees should not go through FlexAttention, or None if they should; tried on the model as it is.

    Hidden states and a gradient must be those under the dense mask. The yardstick is the one of `why_not_packable`.

    Args:
        decoder: With the attention implementation `tree_attention.NAME`, which it keeps.
    """
    config = decoder.config.get_text_config().to_dict()
    if any(config.get(name) for name in ("attention_dropout", "attn_pdrop")):
        return "it has dropout in its attention"
    tree = _branching(decoder.get_input_embeddings().num_embeddings, [(None, 40), (0, 140), (0, 60), (2, 40), (2, 20)])
    packed = pack_trees([tree]).to(decoder.device)
    as_text = replace(packed, subtree_end=torch.full_like(packed.subtree_end, packed.subtree_end.shape[1]))
    try:
        expected, ignorant = _states_and_gradient(decoder, packed), _states_and_gradient(decoder, as_text)
        decoder.set_attn_implementation(FLEX_NAME)
        given = _states_and_gradient(decoder, packed)
    except Exception as error:  # a compiler that is missing, a shape without a kernel: the user has to read why
        return f"it raised {type(error).__name__} ({(str(error).splitlines() or ['no message'])[0]})"
    finally:
        decoder.set_attn_implementation(NAME)
    for name, one, other, blind in zip(("values", "gradients"), given, expected, ignorant, strict=False):
        if not (one - other).norm() <= _SAME_HIDDEN * (blind - other).norm():
            return f"its {name} are not those under the dense mask"
    return None


def _states_and_gradient(decoder: PreTrainedModel, packed: PackedTrees) -> list[Tensor]:
    """Hidden states, and the gradient of the smallest weight that is trained, usually one of the first layer."""
    with _evaluating(decoder), torch.inference_mode(False), torch.enable_grad():
        hidden = run_body(decoder, packed).float()
        results = [hidden.detach()]
        trained = [parameter for parameter in decoder.base_model.parameters() if parameter.requires_grad]
        if trained:
            numbers = torch.arange(hidden.numel(), device=hidden.device).view_as(hidden)
            weight = min(trained, key=torch.Tensor.numel)
            results += torch.autograd.grad((hidden * numbers.cos()).sum(), [weight])
    return results


def _predecessor_states(packed: PackedTrees, hidden: Tensor) -> Tensor:
    return hidden[packed.row, packed.column].float()


def _branching(vocab_size: int, segments: Sequence[tuple[int | None, int]]) -> Tree:
    """A tree of five segments, each with its parent and length, that ends in the second and the last two.

    Ignoring the structure shows if the second branch stands far from the prompt, and forks again.
    """
    tree = Tree("probe")
    for number, (parent, length) in enumerate(segments):
        ids = [(7 * number + 3 * i) % vocab_size for i in range(length)]
        tree.add(parent, "prompt" if parent is None else "assistant", number, ids)
    tree.leaves = [Leaf(segment, StopReason.ANSWERED, 0.0, False) for segment in (1, 3, 4)]
    return tree


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Dropout off and no gradients; afterwards every submodule is in the mode it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True
