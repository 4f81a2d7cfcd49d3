"""Starting vLLM from this process without changing this process."""

import contextlib
import multiprocessing
import os
import random
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from agentrl.errors import ConfigError, MissingExtraError, PolicyError
from agentrl.policies.vllm.settings import EngineSettings, engine_environment


def require_vllm() -> None:
    """Checks that vLLM is there, without the seconds that importing it takes.

    Raises:
        MissingExtraError: It is not.
    """
    spec = find_spec("vllm")
    if spec is None or spec.origin is None:  # without an origin it is some folder of that name
        raise MissingExtraError("vllm", "The vLLM engine")


def start_engine(settings: EngineSettings) -> Any:
    """Starts vLLM's `AsyncLLM`.

    Raises:
        MissingExtraError: vLLM is not installed.
        ConfigError: This is a script that starts itself again.
        PolicyError: vLLM cannot start with this model here.
    """
    require_vllm()
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise ConfigError(
            "vLLM starts its processes by importing the script that was run, and this script starts vLLM when it is "
            "imported. Put what it does under: if __name__ == '__main__':"
        )
    import_module("torch._dynamo")  # reads the environment when it is imported: not that of the `with` block

    with _unchanged():
        os.environ.update(engine_environment())
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        try:
            arguments = AsyncEngineArgs(**settings.arguments(), disable_log_stats=True, enable_log_requests=False)
            return AsyncLLM.from_engine_args(arguments)
        except Exception as error:  # pydantic, OSError, RuntimeError, ValueError of many modules
            raise PolicyError(
                f"vLLM cannot start with {settings.model!r}: {str(error).strip() or type(error).__name__} Its own "
                "messages above say more. A script that starts it needs a file and `if __name__ == '__main__':`."
            ) from error


@contextlib.contextmanager
def _unchanged() -> Iterator[None]:
    """Puts back what vLLM changes in the process that starts it: environment, random states and threads of PyTorch.

    Tools that the trainer starts would inherit the environment, and a seeded run would go on with other numbers.
    """
    environment = dict(os.environ)
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
    set_threads, threads = torch.set_num_threads, torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads = set_threads
        torch.set_num_threads(threads)
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
