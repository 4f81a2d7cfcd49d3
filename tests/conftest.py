"""Fixtures of all tests."""

import pytest
from hypothesis import settings
from tiny_models import make_byte_tokenizer, make_tiny_llama
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

settings.register_profile("agentrl", deadline=None)  # a busy machine must not fail a test
settings.load_profile("agentrl")


@pytest.fixture(scope="session")
def byte_tokenizer() -> PreTrainedTokenizerFast:
    return make_byte_tokenizer()


@pytest.fixture(scope="session")
def tiny_llama(byte_tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    return make_tiny_llama(len(byte_tokenizer))
