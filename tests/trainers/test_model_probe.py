"""What is found out about a model: its head, and whether packed trees may be given to it."""

import re
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PromptTuningConfig, get_peft_model
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaForCausalLM,
    LlamaModel,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)
from tree_cases import FAMILIES, SIZES, VOCAB, agent_tree, plain_scores, random_tree, tiny_model

from agentrl.errors import ConfigError
from agentrl.trainers.batch import lay_out_paths
from agentrl.trainers.forward import TokenScorer
from agentrl.trainers.model_probe import LogitTransform, why_not_packable
from agentrl.trajectory import Tree

TREES = [random_tree(1), agent_tree()]
SLIDING = {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 8}


def assert_scores_are_plain(scorer: TokenScorer, trees: list[Tree]) -> None:
    batch = lay_out_paths(trees)
    with torch.no_grad():
        given = scorer.score(trees).logprobs[batch.token_index[batch.mask]]
        expected, _ = plain_scores(scorer.model, trees)
    assert (given - expected).abs().max() <= 1e-5


# Heads ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "transform"),
    [
        (lambda: CohereForCausalLM(CohereConfig(**SIZES, logit_scale=0.25)), LogitTransform(scale=0.25)),
        (FAMILIES["granite"], LogitTransform(scale=1 / 8)),
        (FAMILIES["llama"], LogitTransform()),
    ],
)
def test_scaled_logits(make: Any, transform: LogitTransform) -> None:
    torch.manual_seed(0)
    model = make().eval()
    assert LogitTransform.of(model) == transform
    scorer = TokenScorer(model)
    assert scorer.packs
    assert scorer.split([agent_tree(), agent_tree()], 400) == [[0, 1]]  # 162 unique tokens each
    assert_scores_are_plain(scorer, TREES)


def test_softcapped_logits() -> None:
    model = tiny_model()
    assert LogitTransform.of(SimpleNamespace(config=Gemma2Config(final_logit_softcapping=5.0))).softcap == 5.0
    # 5 * tanh(10 / 5) = 5 * 0.9640276 = 4.820138
    assert LogitTransform(softcap=5.0)(torch.tensor([10.0])).item() == pytest.approx(4.820138, abs=1e-6)
    assert LogitTransform.of(model) == LogitTransform()


def test_an_unknown_head_is_refused() -> None:
    class Cubed(LlamaForCausalLM):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            output = super().forward(*args, **kwargs)
            output.logits = output.logits**3
            return output

    with pytest.raises(ConfigError, match="logits of Cubed are not its output embedding"):
        TokenScorer(Cubed(tiny_model().config))


def test_adapters_that_add_tokens_are_refused() -> None:
    model = get_peft_model(tiny_model(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(ConfigError, match="such as LoRA"):
        TokenScorer(model)


def test_what_is_no_causal_lm_is_refused() -> None:
    for model in (torch.nn.Linear(2, 2), LlamaModel(tiny_model().config)):
        with pytest.raises(ConfigError, match=f"got {type(model).__name__}"):
            TokenScorer(model)


# Layers --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES, **SLIDING)), "full_attention, sliding_attention"),
        (lambda: MistralForCausalLM(MistralConfig(**SIZES, **SLIDING)), "sliding_attention"),
        (lambda: BloomForCausalLM(BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4)), "it raised"),
        (lambda: MambaForCausalLM(MambaConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2)), "it raised"),
    ],
)
def test_layers_that_take_no_mask_fall_back_to_padding_with_one_warning(make: Any, reason: str) -> None:
    torch.manual_seed(0)
    model = make().eval()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        scorer = TokenScorer(model)
        assert_scores_are_plain(scorer, TREES)
    assert [warning.category for warning in caught] == [UserWarning]
    assert re.search(f"cannot run packed token trees: .*{reason}", str(caught[0].message))
    assert not scorer.packs
    assert scorer.pack(TREES).is_causal
    assert scorer.split([agent_tree(), agent_tree()], 400) == [[0], [1]]  # 6 * 47 padded tokens each, 162 unique


def deafen(body: torch.nn.Module, *dropped: str) -> None:
    """Makes a decoder body drop some arguments, as a careless model would."""
    hear = body.forward
    body.forward = lambda **kwargs: hear(**{name: value for name, value in kwargs.items() if name not in dropped})


@pytest.mark.parametrize("dropped", [("attention_mask",), ("position_ids",), ("attention_mask", "position_ids")])
@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_ignores_mask_or_positions_is_found_out(
    family: str, dropped: tuple[str, ...], dtype: torch.dtype
) -> None:
    model = tiny_model(family, dtype)
    assert why_not_packable(model) is None
    deafen(model.base_model, *dropped)
    assert "do not follow" in str(why_not_packable(model))


def test_another_attention_implementation_falls_back() -> None:
    model = tiny_model()
    model.config._attn_implementation = "flash_attention_2"
    assert "attn_implementation='flash_attention_2'" in str(why_not_packable(model))
    eager = tiny_model()
    eager.set_attn_implementation("eager")
    scorer = TokenScorer(eager)
    assert scorer.packs
    assert eager.config._attn_implementation == "eager"
    assert_scores_are_plain(scorer, TREES)


def test_probing_leaves_the_model_as_it_was() -> None:
    model = tiny_model().train()
    model.base_model.layers[0].eval()  # someone froze a layer's dropout
    modes = {name: module.training for name, module in model.named_modules()}
    state = torch.random.get_rng_state()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    TokenScorer(model)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
