"""Networks that say what is still to come: V(s_t) from the hidden state from which the model drew token t.

Like log-probabilities, values are computed on unique tokens: trajectories that share a token share its value.
"""

import copy
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from agentrl.errors import ConfigError
from agentrl.trainers.forward import TokenScorer
from agentrl.trainers.model_probe import find_decoder
from agentrl.trainers.settings import CriticSettings
from agentrl.trainers.tree_attention import run_body
from agentrl.trajectory import Tree


class ValueNetwork(Protocol):
    """A part of a critic."""

    @property
    def trained(self) -> torch.nn.Module:
        """What is trained and saved."""
        ...

    def __call__(self, trees: Sequence[Tree]) -> Tensor:
        """[U] with gradient: the value before each unique sampled token, numbered as in `lay_out_paths`."""
        ...


class ValueModel(ValueNetwork):
    """A transformer of its own, which starts as a copy of the policy's without its vocabulary, and a linear head.

    The head starts at zero: before it has learned, the critic expects nothing, and advantages are plain returns.

    Args:
        scorer: Of the policy, at the start of training.
    """

    def __init__(self, scorer: TokenScorer) -> None:
        body = copy.deepcopy(find_decoder(scorer.model).base_model)
        self._scorer = scorer
        self._body = body
        self._head = _with_zero_output(torch.nn.Linear(_width(scorer), 1)).to(body.device, _head_dtype(body.dtype))
        self._trained = torch.nn.ModuleDict({"body": body, "head": self._head})

    @property
    def trained(self) -> torch.nn.Module:
        """Body and head."""
        return self._trained

    def __call__(self, trees: Sequence[Tree]) -> Tensor:
        """[U] with gradient."""
        packed = self._scorer.pack(trees).to(self._body.device)
        states = run_body(self._body, packed)[packed.row, packed.column]
        values: Tensor = self._head(states.to(self._head.weight.dtype))
        return values[:, 0]


class ValueHead(ValueNetwork):
    """A small network on the policy's own hidden states, which costs one forward pass and hardly any memory.

    No gradient flows into the policy. It would have to share its layers between two losses whose scales have nothing to
    do with each other (a knob more, and the usual cause of a language model that forgets how to write), its step
    would no longer be the recipe's, and under a trust region it would not even be a step of the policy. The price is
    that the states were made to predict the next token, so values are coarser than those of a model of their own.

    Args:
        scorer: Of the policy.
    """

    def __init__(self, scorer: TokenScorer) -> None:
        decoder, width = find_decoder(scorer.model), _width(scorer)
        hidden, output = torch.nn.Linear(width, width), _with_zero_output(torch.nn.Linear(width, 1))
        torch.nn.init.orthogonal_(hidden.weight, generator=torch.Generator().manual_seed(0))
        torch.nn.init.zeros_(hidden.bias)
        self._scorer = scorer
        self._dtype = _head_dtype(decoder.dtype)
        self._trained = torch.nn.Sequential(hidden, torch.nn.Tanh(), output).to(decoder.device, self._dtype)

    @property
    def trained(self) -> torch.nn.Module:
        """The two layers."""
        return self._trained

    def __call__(self, trees: Sequence[Tree]) -> Tensor:
        """[U] with gradient."""
        with torch.no_grad():
            states = self._scorer.states(trees)
        values: Tensor = self._trained(states.to(self._dtype))
        return values[:, 0]


def value_network(settings: CriticSettings, scorer: TokenScorer) -> ValueNetwork:
    """The network of a critic.

    Args:
        settings: Say which.
        scorer: Of the policy.

    Raises:
        ConfigError: A whole model is asked for beside an adapter.
    """
    if settings.kind == "head":
        return ValueHead(scorer)
    if any(not parameter.requires_grad for parameter in scorer.model.parameters()):
        raise ConfigError(
            "critic.kind='model' trains a second model of the policy's size, which is what model.lora is there to "
            "avoid. Set critic.kind=head, which learns values on the hidden states of the policy."
        )
    return ValueModel(scorer)


def _with_zero_output(layer: torch.nn.Linear) -> torch.nn.Linear:
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    return layer


def _width(scorer: TokenScorer) -> int:
    return int(find_decoder(scorer.model).config.get_text_config().hidden_size)


def _head_dtype(dtype: torch.dtype) -> torch.dtype:
    """The head is small, and a value in bfloat16 has three digits."""
    return torch.promote_types(dtype, torch.float32)
