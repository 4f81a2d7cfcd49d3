"""The engine that samples for a run, and how it comes to know the weights that are trained."""

import contextlib
from collections.abc import Sequence
from typing import Protocol

from agentrl.policies.core import Policy
from agentrl.policies.loading import LoadedModel
from agentrl.trainers.settings import TrainSettings

_SHARED = frozenset({"cuda"})
"""Kinds of devices whose memory an engine in this process reads the weights from."""


class TrainedPolicy(Policy, Protocol):
    """A policy whose weights are being trained."""

    def weights_changed(self) -> None:
        """Counts an update, and has everything sampled from now on come from the new weights.

        Raises:
            PolicyError: The engine could not take them.
        """
        ...

    def yield_memory(self) -> contextlib.AbstractContextManager[None]:
        """Leaves the device's memory to an update inside the `with` block, if it was set up to.

        The next thing that is asked of it must be `weights_changed`.
        """
        ...

    def metrics(self) -> dict[str, float]:
        """What there is to say about sampling since the last call."""
        ...

    def close(self) -> None:
        """Ends what belongs to it; safe to call twice."""
        ...


def open_policy(settings: TrainSettings, loaded: LoadedModel, *, version: int) -> TrainedPolicy:
    """The policy of a run.

    Args:
        settings: Of the run.
        loaded: The model that is trained, with the weights to begin with.
        version: Updates so far.

    Raises:
        MissingExtraError: vllm is asked for and not installed.
        PolicyError: The engine cannot be started or reached.
    """
    if settings.policy.engine == "transformers":
        policy = loaded.policy()
        policy.version = version
        return policy
    return _open_vllm(settings, loaded, version)


def _open_vllm(settings: TrainSettings, loaded: LoadedModel, version: int) -> TrainedPolicy:
    from agentrl.policies.vllm.engine import Engine
    from agentrl.policies.vllm.in_process import InProcessEngine
    from agentrl.policies.vllm.policy import VllmPolicy
    from agentrl.policies.vllm.server import open_servers
    from agentrl.policies.vllm.weights import WeightFiles

    wanted, rollout = settings.policy, settings.rollout
    lora = settings.model.lora
    context_length = min(loaded.context_length, rollout.max_episode_tokens)
    weights = WeightFiles(loaded.model, wanted.shared_folder)

    async def engines() -> Sequence[Engine]:
        if wanted.servers:
            return await open_servers(
                wanted.servers,
                context_length=context_length,
                num_top=wanted.entropy_top,
            )
        engine = await InProcessEngine.open(
            settings.model.name,
            context_length=context_length,
            max_in_flight=rollout.max_concurrent_episodes,
            num_top=wanted.entropy_top,
            dtype=str(loaded.model.dtype).removeprefix("torch."),
            lora_rank=None if lora is None else lora.rank,
            gpu_memory=wanted.gpu_memory,
            can_sleep=wanted.sleep,
        )
        if lora is None and wanted.shared_folder is None and loaded.model.device.type in _SHARED:
            try:
                await weights.share(engine.rehearse)
            except BaseException:
                await engine.close()
                raise
        return [engine]

    return VllmPolicy(
        engines,
        tokenizer=loaded.tokenizer,
        end_of_turn_ids=loaded.chat.end_ids,
        vocab_size=loaded.vocab_size,
        context_length=context_length,
        weights=weights,
        num_top=wanted.entropy_top,
        version=version,
        sleeps=wanted.sleep,
    )
