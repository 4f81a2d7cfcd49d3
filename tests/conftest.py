"""Fixtures of all tests."""

import pytest
from hypothesis import HealthCheck, settings
from tiny_models import make_byte_tokenizer, make_tiny_llama
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from agentrl.trainers.optimizer import MasterAdamW

# A busy machine must not fail a test; and a test that passed must not fail on another day without a change of the code.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("agentrl", patient, derandomize=True)
settings.register_profile("explore", patient, max_examples=1000)  # pytest --hypothesis-profile=explore
settings.load_profile("agentrl")


@pytest.fixture(scope="session")
def byte_tokenizer() -> PreTrainedTokenizerFast:
    return make_byte_tokenizer()


@pytest.fixture(scope="session")
def tiny_llama(byte_tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    return make_tiny_llama(len(byte_tokenizer))


@pytest.fixture
def gradients_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """After an optimizer step the weights have the gradients, unclipped, that they had before it."""
    step = MasterAdamW.step

    def stepped(self: MasterAdamW) -> float:
        gradients = [None if p.grad is None else p.grad.clone() for p in self._parameters]
        norm = step(self)
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        return norm

    monkeypatch.setattr(MasterAdamW, "step", stepped)
