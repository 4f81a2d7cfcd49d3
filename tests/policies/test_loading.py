"""Models by name: what loads is what was saved, and what does not load says why in one line."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import CHATML, make_byte_tokenizer, make_tiny_llama
from transformers import GPT2Config, GPT2LMHeadModel

from agentrl.chat.template import ChatFormat
from agentrl.errors import AgentRLError, ChatTemplateError, ConfigError, PolicyError
from agentrl.policies.core import Request, Sampling
from agentrl.policies.loading import EMBEDDED, add_lora, load_model, load_tokenizer, model_path, pick_device


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder like any other."""
    tokenizer = make_byte_tokenizer()
    make_tiny_llama(len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment variable is read when `huggingface_hub` is imported, which was before."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def refusal(kind: type[AgentRLError], name: str, **options: Any) -> str:
    with pytest.raises(kind) as error:
        load_model(name, **options)
    text = str(error.value)
    assert "\n" not in text
    return text


def test_a_folder_loads_as_it_was_saved(folder: Path, tiny_llama: Any, byte_tokenizer: Any) -> None:
    loaded = load_model(str(folder), device="cpu")
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert torch.equal(loaded.model(ids).logits, tiny_llama(ids).logits)
    assert loaded.vocab_size == len(byte_tokenizer) == 261
    assert (loaded.model.dtype, loaded.model.device.type, loaded.model.training) == (torch.float32, "cpu", False)
    assert loaded.chat.end_ids == {2}
    assert loaded.chat.stop_strings == ("</tool_call>",)
    assert load_model(str(folder), stop_at_tool_call=False).chat.stop_strings == ()
    assert load_model(str(folder), dtype="bfloat16").model.dtype is torch.bfloat16


def test_its_policy_samples_from_that_very_model(folder: Path) -> None:
    loaded = load_model(str(folder))
    policy = loaded.policy()
    assert policy.model is loaded.model
    with torch.no_grad():
        loaded.model.lm_head.weight.zero_()  # every token is now equally likely
    policy.submit(Request(sequence=0, token_ids=[5], max_tokens=1))
    (completion,) = policy.poll()
    assert completion.logprobs == [pytest.approx(-math.log(261), abs=1e-5)]
    with torch.no_grad():
        hidden = loaded.model.model(torch.tensor([[5]])).last_hidden_state[0, 0]
        loaded.model.lm_head.weight[2] = hidden  # and now the end of turn is the likeliest: its logit is |hidden|^2
    policy.submit(Request(sequence=1, token_ids=[5], max_tokens=9, sampling=Sampling(temperature=0.0)))
    (completion,) = policy.poll()
    assert (completion.token_ids, completion.cause) == ([2], "end_of_turn")


def test_names_of_places(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert model_path(str(folder)) == str(folder)
    assert model_path("owner/name") == "owner/name"
    assert Path(model_path(EMBEDDED)).parts[-3:] == ("agentrl", "policies", "quickstart")
    monkeypatch.setenv("HOME", str(folder.parent))
    assert model_path("~/model") == str(folder)
    monkeypatch.chdir(folder.parent)
    assert model_path("model") == "model"  # a folder wins over a hub id of that name


def test_places_without_a_model(folder: Path, tmp_path: Path) -> None:
    assert "has no config.json" in refusal(ConfigError, str(tmp_path))
    for name in (f"{tmp_path}/nothing", "./nothing", "~/nothing", "some/long/path"):
        text = refusal(ConfigError, name)
        assert "no model folder" in text
        assert name in text
        assert "Repo id" not in text  # nobody who gave a path asked for a repository


def test_a_hub_id_that_cannot_be_reached() -> None:
    text = refusal(PolicyError, "nobody/no-such-model")
    assert text.startswith("Model 'nobody/no-such-model' cannot be loaded: ")
    assert "Give 'quickstart', a folder" in text


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model.safetensors", lambda file: file.unlink()),
        ("model.safetensors", lambda file: file.write_bytes(file.read_bytes()[:1000])),
        ("model.safetensors", lambda file: file.write_bytes(b"")),
        ("config.json", lambda file: file.write_text("{")),
        ("config.json", lambda file: file.write_text('{"model_type": "none_such"}')),
        (
            "config.json",
            lambda file: file.write_text(file.read_text().replace('"hidden_size": 32', '"hidden_size": 48')),
        ),
        ("tokenizer.json", lambda file: file.unlink()),
        ("tokenizer.json", lambda file: file.write_text("{")),
        # `tokenizers` raises a bare Exception for this one.
        ("tokenizer.json", lambda file: file.write_text('{"added_tokens": [], "model": {"type": "BPE"}}')),
    ],
)
def test_damaged_folders(folder: Path, name: str, damage: Callable[[Path], object]) -> None:
    damage(folder / name)
    text = refusal(PolicyError, str(folder))
    assert text.startswith(f"Model '{folder}' cannot be loaded: ")
    assert "Give 'quickstart', a folder" in text


def test_dtype_and_device_are_checked(folder: Path) -> None:
    assert refusal(ConfigError, str(folder), dtype="float16") == (
        "dtype must be one of float32, bfloat16, got 'float16'."
    )
    for device in ("gpu", "cpu:x", "ipu"):
        assert f"device={device!r}" in refusal(ConfigError, str(folder), device=device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the message is for machines without CUDA")
def test_without_cuda() -> None:
    assert pick_device(None) == pick_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match="sees no CUDA device"):
        pick_device("cuda:1")


def test_another_chat_template(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "template.jinja"
    file.write_text(CHATML.replace("<|im_start|>", "<|endoftext|>"))
    loaded = load_model(str(folder), chat_template=file)
    assert loaded.tokenizer.decode(loaded.chat.prompt_ids([{"role": "user", "content": "x"}], [])) == (
        "<|endoftext|>user\nx<|im_end|>\n<|endoftext|>assistant\n"
    )
    for unreadable in (tmp_path / "none.jinja", tmp_path):
        assert str(unreadable) in refusal(ConfigError, str(folder), chat_template=unreadable)
    file.write_bytes(b"\xff\xfe")
    assert "utf-8" in refusal(ConfigError, str(folder), chat_template=file)


def test_a_model_without_a_chat_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert "set model.chat_template" in refusal(ChatTemplateError, str(folder))
    assert load_tokenizer(str(folder)).chat_template is None  # which is fine for whoever does not chat


def test_dropout_is_off_also_in_training(tmp_path: Path, byte_tokenizer: Any) -> None:
    """GPT-2 drops a tenth by default, Llama what its config says."""
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=261, n_embd=32, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0))
    ids = torch.tensor([[5, 6, 7]])
    for number, model in enumerate((gpt2, make_tiny_llama(261, attention_dropout=0.5))):
        folder = tmp_path / str(number)
        model.save_pretrained(folder)
        byte_tokenizer.save_pretrained(folder)
        assert not torch.equal(model.train()(ids).logits, model.eval()(ids).logits)
        loaded = load_model(str(folder)).model
        assert torch.equal(loaded.train()(ids).logits, model(ids).logits)


# Adapters ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def adapter(folder: Path, byte_tokenizer: Any) -> Path:
    """A LoRA checkpoint of the model in `folder`, far from zero."""
    model = add_lora(load_model(str(folder)).model, rank=2, alpha=4, targets="all-linear")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    target = folder.parent / "adapter"
    model.save_pretrained(target)
    byte_tokenizer.save_pretrained(target)
    return target


def test_an_adapter_loads_merged_into_its_base(folder: Path, adapter: Path) -> None:
    """W + alpha / rank * B A, with B = 0.1 everywhere: 0.2 times the column sums of A in every row."""
    base, merged = (load_model(str(path)).model.state_dict() for path in (folder, adapter))
    assert merged.keys() == base.keys()
    name = "model.layers.0.mlp.up_proj"
    a = load_file(adapter / "adapter_model.safetensors")[f"base_model.model.{name}.lora_A.weight"]
    torch.testing.assert_close(merged[f"{name}.weight"] - base[f"{name}.weight"], 0.2 * a.sum(0).expand(64, -1))
    assert torch.equal(merged["lm_head.weight"], base["lm_head.weight"])


@pytest.mark.parametrize(
    ("name", "content", "kind", "complaint"),
    [
        ("adapter_config.json", "{", PolicyError, "cannot be loaded"),
        ("adapter_config.json", "{}", PolicyError, "base_model_name_or_path"),
        ("adapter_config.json", '{"base_model_name_or_path": "/nowhere/base"}', ConfigError, "folder '/nowhere/base'"),
        ("adapter_model.safetensors", "", PolicyError, "cannot be loaded"),
    ],
)
def test_damaged_adapters(adapter: Path, name: str, content: str, kind: type[AgentRLError], complaint: str) -> None:
    (adapter / name).write_text(content)
    assert complaint in refusal(kind, str(adapter))


def test_a_loaded_model_is_a_record(folder: Path) -> None:
    loaded = load_model(str(folder))
    assert isinstance(loaded.chat, ChatFormat)
    with pytest.raises(dataclasses.FrozenInstanceError):
        loaded.model = None  # type: ignore[misc]
