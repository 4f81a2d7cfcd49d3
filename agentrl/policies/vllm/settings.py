"""How a vLLM engine has to be set up, said once for the engine in this process and for a server."""

import json
import os
from dataclasses import dataclass
from typing import Any

import torch

from agentrl.errors import ConfigError
from agentrl.sandbox.owner import owner_id

OWNER_VARIABLE = "AGENTRL_VLLM_OWNER"
"""Environment variable with the `owner_id` of the process whose end must be the engine's end, too."""

_DTYPES = ("float32", "bfloat16")
_KV_CACHE_GIB = "1"
"""Of main memory, for keys and values on a CPU; vLLM would take half of the machine."""
_BLOCK_TOKENS = 32
"""On a CPU. Only whole blocks are cached, and vLLM's 128 there are longer than many a prompt."""
_CPU_ADAPTERS = 4
"""LoRA adapters of earlier updates that stay loaded for requests that began with them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """One vLLM engine.

    Raises:
        ConfigError: A value that vLLM would not take, or that this machine cannot serve.

    Example:
        EngineSettings(model="Qwen/Qwen2.5-0.5B-Instruct", context_length=4096, max_in_flight=64, num_top=20)
    """

    model: str
    """A folder or a hub id."""
    context_length: int | None = None
    """Longest sequence in tokens; by default what the model was made for."""
    max_in_flight: int = 64
    """Sequences in one batch."""
    num_top: int = 20
    """Most log-probabilities per token that a request may ask for, the sampled token's not counted."""
    dtype: str | None = None
    """"float32" or "bfloat16"; by default bfloat16 on CUDA and float32 elsewhere."""
    lora_rank: int | None = None
    """Largest rank of the adapters to come; None takes whole weights instead of adapters."""
    gpu_memory: float = 0.9
    """Fraction of each GPU's whole memory; without effect on a CPU."""
    gpus: int = 1
    """That the model is split over (tensor parallelism)."""
    can_sleep: bool = False
    """Whether the engine can give its GPU memory back and take it again."""

    def __post_init__(self) -> None:
        if self.dtype not in (None, *_DTYPES):
            raise ConfigError(f"dtype must be one of {', '.join(_DTYPES)}, got {self.dtype!r}.")
        for name in ("context_length", "max_in_flight", "num_top", "lora_rank", "gpus"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value!r}.")
        if not 0.0 < self.gpu_memory <= 1.0:
            raise ConfigError(f"gpu_memory is a fraction of the GPU's memory, in (0, 1]; got {self.gpu_memory!r}.")
        if self.can_sleep and not on_gpu():
            raise ConfigError(
                "A vLLM engine on a CPU cannot sleep: it shares no GPU memory with the trainer, and vLLM frees none. "
                "Leave that off."
            )
        if self.gpus > 1 and not on_gpu():
            raise ConfigError(f"gpus={self.gpus} was asked for, but PyTorch sees no CUDA device. Leave it out.")

    def arguments(self) -> dict[str, Any]:
        """What vLLM's `AsyncEngineArgs` take."""
        arguments: dict[str, Any] = {
            "model": self.model,
            "dtype": self.dtype or ("bfloat16" if on_gpu() else "float32"),
            "max_num_seqs": self.max_in_flight,
            "tensor_parallel_size": self.gpus,
            "logprobs_mode": "processed_logprobs",  # of the distribution that was drawn from
            "max_logprobs": self.num_top + 1,
            "enable_prefix_caching": True,
            "generation_config": "vllm",  # or else a file of the model changes temperature and stop tokens unseen
            "seed": 0,
            "use_tqdm_on_load": False,
            "worker_extension_cls": "agentrl.policies.vllm.worker.WorkerExtension",
        }
        if self.context_length is not None:
            arguments["max_model_len"] = self.context_length
        if self.lora_rank is None:
            arguments["weight_transfer_config"] = {"backend": "agentrl_file"}
        else:
            arguments |= {"enable_lora": True, "max_loras": 2, "max_cpu_loras": _CPU_ADAPTERS}
            arguments["max_lora_rank"] = _allowed_rank(self.lora_rank)
        if on_gpu():
            arguments["gpu_memory_utilization"] = self.gpu_memory
            arguments["enable_sleep_mode"] = self.can_sleep
        else:
            arguments |= {"enforce_eager": True, "block_size": _BLOCK_TOKENS}
            # Of a seeded prompt that is computed in parts, vLLM takes back what the parts have drawn; the random
            # generators of CPUs cannot do that, and the engine dies (vLLM 0.32).
            arguments["enable_chunked_prefill"] = False
        return arguments

    def flags(self) -> list[str]:
        """The same on the command line of vLLM's server."""
        flags: list[str] = []
        for name, value in self.arguments().items():
            flag = f"--{name.replace('_', '-')}"
            if value is True:
                flags.append(flag)
            elif value is False:
                flags.append(f"--no-{name.replace('_', '-')}")
            else:
                flags += [flag, json.dumps(value) if isinstance(value, dict) else str(value)]
        return flags


def engine_environment() -> dict[str, str]:
    """Environment variables that vLLM's processes need beside the settings; what the user has set wins."""
    wanted = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    if not on_gpu():
        # The first request for log-probabilities would otherwise compile a kernel with the C++ compiler, for 30 s.
        wanted |= {"VLLM_CPU_KVCACHE_SPACE": _KV_CACHE_GIB, "TORCH_COMPILE_DISABLE": "1"}
    chosen = {name: os.environ.get(name, value) for name, value in wanted.items()}
    return chosen | {"VLLM_WORKER_MULTIPROC_METHOD": "spawn", OWNER_VARIABLE: owner_id()}


def on_gpu() -> bool:
    """Whether vLLM runs on CUDA here."""
    return torch.cuda.is_available()


def _allowed_rank(rank: int) -> int:
    """The smallest of the ranks that vLLM has kernels for that is large enough."""
    allowed = (1, 8, 16, 32, 64, 128, 256, 320, 512)
    if rank > allowed[-1]:
        raise ConfigError(f"vLLM serves LoRA adapters up to rank {allowed[-1]}, got {rank}.")
    return next(size for size in allowed if size >= rank)
