"""Models by name: the embedded policy, a local folder, or a hub id."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from agentrl.chat.template import ChatFormat
from agentrl.errors import AgentRLError, ConfigError, MissingExtraError, PolicyError
from agentrl.policies.transformers_engine import TransformersPolicy

disable_progress_bar()  # weights load in a moment; a bar for it would stand between lines that matter

EMBEDDED = "quickstart"
"""Name of the policy that ships in the package."""

_ADAPTER = "adapter_config.json"

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A causal LM with its tokenizer and the chat format they speak."""

    model: PreTrainedModel
    tokenizer: Any
    chat: ChatFormat

    @property
    def vocab_size(self) -> int:
        """Width of the model's output."""
        return int(self.model.config.vocab_size)

    @property
    def context_length(self) -> int:
        """Longest sequence in tokens that it takes."""
        return int(self.model.config.max_position_embeddings)

    def policy(self) -> TransformersPolicy:
        """An engine that samples from this very model: what is trained is what samples."""
        return TransformersPolicy(self.model, self.tokenizer, self.chat.end_ids)


def model_path(name: str) -> str:
    """Where a model named in a config is.

    Raises:
        ConfigError: A folder that does not exist or holds no model.
    """
    if name == EMBEDDED:
        return str(files("agentrl.policies") / "quickstart")
    folder = Path(name).expanduser()
    if not folder.exists() and (name.startswith((".", "/", "~")) or len(folder.parts) > 2):  # no hub id looks like that
        raise ConfigError(f"There is no model folder {name!r}.")
    if folder.is_dir() and not any((folder / file).is_file() for file in ("config.json", _ADAPTER)):
        raise ConfigError(
            f"{name!r} is no model folder: it has no config.json. Give a folder that save_pretrained wrote."
        )
    return str(folder) if folder.is_dir() else name


def pick_device(name: str | None) -> torch.device:
    """The device of that name, or CUDA where there is one.

    Raises:
        ConfigError: There is no such device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(
            f"device={name!r} was asked for, but PyTorch sees no CUDA device. Leave it out to use the CPU."
        )
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError):  # AssertionError: not compiled in
        raise ConfigError(
            f"device={name!r} is no device of this machine. Leave it out, or give 'cpu' or 'cuda'."
        ) from None


def load_tokenizer(name: str, chat_template: Path | None = None) -> Any:
    """The tokenizer of a model, with another chat template if one is given.

    Raises:
        ConfigError: A folder without a model, or a template that cannot be read.
        PolicyError: It cannot be loaded.
    """
    path = model_path(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except Exception as error:  # `tokenizers` and `safetensors` raise classes of their own, or the bare one
        raise PolicyError(_not_loadable(name, error)) from error
    if chat_template is not None:
        try:
            tokenizer.chat_template = chat_template.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"The chat template {chat_template} cannot be read: {error}. Give a Jinja file."
            ) from error
    return tokenizer


def load_model(
    name: str = EMBEDDED,
    *,
    device: str | None = None,
    dtype: str | None = None,
    chat_template: Path | None = None,
    stop_at_tool_call: bool = True,
) -> LoadedModel:
    """Loads a model for sampling and training.

    Args:
        name: "quickstart", a folder, or a hub id.
        device: "cpu", "cuda", "cuda:1"; None takes CUDA where there is one.
        dtype: "float32" or "bfloat16"; None takes bfloat16 on CUDA and float32 elsewhere.
        chat_template: A Jinja file to use instead of the tokenizer's template.
        stop_at_tool_call: See `ChatFormat`.

    Raises:
        PolicyError: The model cannot be loaded.
        ConfigError: Unknown dtype or device.
        ChatTemplateError: The template cannot be used token-exactly.
    """
    target = pick_device(device)
    dtype = dtype or ("bfloat16" if target.type == "cuda" else "float32")
    if dtype not in _DTYPES:
        raise ConfigError(f"dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}.")
    tokenizer = load_tokenizer(name, chat_template)
    model = _load_weights(name, _DTYPES[dtype])
    chat = ChatFormat(tokenizer, stop_at_tool_call=stop_at_tool_call)
    return LoadedModel(model.to(target).eval(), tokenizer, chat)


def _load_weights(name: str, dtype: torch.dtype) -> PreTrainedModel:
    """The weights of a model, those of a LoRA checkpoint merged into its base."""
    path = model_path(name)
    adapter = Path(path) / _ADAPTER
    try:
        if adapter.is_file():
            base = json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"]
            merged: PreTrainedModel = load_lora(_load_weights(base, dtype), adapter.parent).merge_and_unload()
            return merged.requires_grad_(True)  # peft had frozen the base
        config = AutoConfig.from_pretrained(path)
        # The policy that is trained must be the one that sampled, which it is not under dropout.
        config.update({key: 0.0 for key in config.to_dict() if key.endswith(("dropout", "pdrop"))})
        return AutoModelForCausalLM.from_pretrained(path, config=config, dtype=dtype, attn_implementation="sdpa")
    except AgentRLError:  # of the base
        raise
    except Exception as error:  # transformers raises anything at all for a file that is not what it should be
        raise PolicyError(_not_loadable(name, error)) from error


def add_lora(model: PreTrainedModel, *, rank: int, alpha: int, targets: Sequence[str] | str) -> Any:
    """Wraps a model so that only a low-rank adapter is trained (LoRA, arXiv:2106.09685).

    Raises:
        MissingExtraError: `peft` is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise MissingExtraError("peft", "LoRA") from error
    modules = targets if isinstance(targets, str) else list(targets)
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=modules, lora_dropout=0.0, task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def _not_loadable(name: str, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return (
        f"Model {name!r} cannot be loaded: {reason.rstrip('.')}. Give {EMBEDDED!r}, a folder with config.json and "
        "model.safetensors, or a hub id that this machine can reach."
    )


def load_lora(model: PreTrainedModel, folder: Path) -> Any:
    """Puts a saved adapter on its base model, to train it further.

    Raises:
        MissingExtraError: `peft` is not installed.
    """
    try:
        from peft import PeftModel
    except ImportError as error:
        raise MissingExtraError("peft", "LoRA") from error
    return PeftModel.from_pretrained(model, folder, is_trainable=True)
