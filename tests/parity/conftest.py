"""A model that TRL's constructors can load from disk."""

from pathlib import Path

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast


@pytest.fixture(scope="session")
def model_dir(
    tmp_path_factory: pytest.TempPathFactory, tiny_llama: LlamaForCausalLM, byte_tokenizer: PreTrainedTokenizerFast
) -> Path:
    directory = tmp_path_factory.mktemp("tiny_llama")
    tiny_llama.save_pretrained(directory)
    byte_tokenizer.save_pretrained(directory)
    return directory
