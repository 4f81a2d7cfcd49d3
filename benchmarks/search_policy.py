"""Builds a tiny policy for the search environments from nothing that would have to be downloaded.

    python benchmarks/search_policy.py --out runs/search-policy

Tokenizer and weights are new but for what the embedded policy knows already (its chat template, and the weights of all
layers). It then imitates a careless demonstrator: one that in some turns gives up and answers with whatever it read
last. So it knows the formats and how to copy names and numbers, and succeeds now and then: the rest is left to
reinforcement learning. Demonstrations are about other worlds than those of training and of held-out tasks.
"""

import argparse
import itertools
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from agentrl.chat.template import ChatFormat
from agentrl.chat.tool_calls import format_tool_call, parse_tool_calls
from agentrl.envs import Episode, ToolEnv, make
from agentrl.messages import ToolCall
from agentrl.policies.loading import LoadedModel, load_model
from agentrl.rollout.demonstration import demonstrate
from agentrl.seeding import generator
from agentrl.tasks import Task
from agentrl.trainers.settings import OptimizerSettings
from agentrl.trainers.supervised import fine_tune
from agentrl.trajectory import Tree

ENVS = ("agentrl/MultiHopSearch-v0", "agentrl/DeepResearch-v0")
WORLDS = range(1, 8)
"""Seeds of the worlds that demonstrations are about; reinforcement learning and evaluation take seed 0."""

TEMPLATE = r"""
{%- if tools %}
    {{- '<|im_start|>tools:' }}{%- for tool in tools %}{{- ' ' + tool.function.name }}{%- endfor %}{{- '\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {{- '<tool_response>' + message.content + '</tool_response>' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""
"""Far shorter than that of real models, which show the whole schema of every tool."""

_CALL = r"\{.name.: .\w+., .arguments.: \{.\w+.: .|., .top_k.: 1\}\}|\"\}\}"
_NAME = re.compile(r"(?:(?:River|The) )?[A-Z][a-z]+(?: (?:[A-Z][a-z]+|of [A-Z][a-z]+))*")


def act(task: Task, episode: Episode, *, env: ToolEnv, rng: np.random.Generator, slip_rate: float) -> str:
    """The oracle's turn with one passage per search; in some turns, an answer with anything that was read last."""
    text = env.oracle(task, episode)
    calls = parse_tool_calls(text)
    if rng.random() < slip_rate:
        last = str(episode.messages[-1]["content"]).removeprefix("[1] ")
        if "boxed" in env.system_prompt:
            numbers = re.findall(r"\d{2,}", last) or [str(rng.integers(100, 99_999))]
            return f"The answer is \\boxed{{{numbers[rng.integers(len(numbers))]}}}."
        facts = [*_NAME.findall(last.split(": ", 1)[-1]), *re.findall(r"\d{2,}", last)] or ["Nobody"]
        return f"Answer: {facts[rng.integers(len(facts))]}"
    if calls and isinstance(calls[0], ToolCall) and calls[0].name == "search":
        return format_tool_call(ToolCall("search", {**calls[0].arguments, "top_k": 1}))
    return text


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A part of the imitation."""

    name: str
    steps: int
    first: int = 0
    """Number of its first batch; tasks and slips depend on it."""
    levels: tuple[Sequence[int], ...] = ((1, 2), (1,))
    """By environment."""
    batch_sizes: tuple[int, ...] = (16, 16)
    slip_rate: float = 0.0
    """Share of turns in which the demonstrator gives up."""
    read_results: bool = True
    """Learn tool results too: names recur in them, which teaches to copy."""
    schedule: Literal["constant", "linear"] = "constant"


PHASES = (
    Phase(name="turns", steps=500, read_results=False),
    Phase(name="turns and results", steps=300),
    Phase(
        name="careless",
        steps=450,
        first=1250,
        levels=((1,), (1,)),
        batch_sizes=(16, 8),
        slip_rate=0.2,
        schedule="linear",
    ),
    Phase(
        name="careless turns",
        steps=350,
        first=2600,
        levels=((1,), (1,)),
        batch_sizes=(8, 24),
        slip_rate=0.1,
        read_results=False,
        schedule="linear",
    ),
)


def demonstrations(chat: ChatFormat, phase: Phase) -> Iterator[list[Tree]]:
    """Endless batches, of the environments in turn."""
    envs = [[_make(name, level, seed) for seed in WORLDS] for name, level in zip(ENVS, phase.levels, strict=True)]
    for step in itertools.count(phase.first):
        worlds, size = envs[step % len(envs)], phase.batch_sizes[step % len(envs)]
        batch = []
        for index in range(step * size, (step + 1) * size):
            env = worlds[index % len(worlds)]
            actor = partial(act, env=env, rng=generator(0, "careless", index), slip_rate=phase.slip_rate)
            batch.append(demonstrate(env, chat, index % len(env.task_set()), actor))
        yield [with_results(tree) for tree in batch] if phase.read_results else batch


def with_results(tree: Tree) -> Tree:
    """The same with tool results as part of what is learned."""
    segments = [
        replace(segment, action_mask=[1] * len(segment.token_ids)) if segment.origin == "environment" else segment
        for segment in tree.segments
    ]
    return replace(tree, segments=segments)


def _make(name: str, level: int | Sequence[int], seed: int) -> ToolEnv:
    env = make(name, split="train", level=level, seed=seed).unwrapped
    assert isinstance(env, ToolEnv)
    return env


def build_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE that cuts a name alike wherever it stands, and every digit, so that both can be copied."""
    backend = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(_CALL + r"|\d| ?[a-z]+|[A-Z][a-z]*|[^\w\s]|\s"), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts(), trainer)
    backend.add_tokens(["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def texts(count: int = 1500) -> Iterator[str]:
    """What the tokenizer learns its vocabulary from: whole episodes as text, without markers."""
    for (name, level), seed in itertools.product(zip(ENVS, (2, 1), strict=True), WORLDS):
        env = _make(name, level, seed)
        for index in range(count // len(WORLDS)):
            env.reset(options={"task": index})
            task = env.task_set()[index]
            while not env.episode.done:
                env.step(act(task, env.episode, env=env, rng=generator(0, "texts"), slip_rate=0.0))
            for message in env.episode.messages:
                yield re.sub(r"</?tool_call>", "", f"{message['role']}\n{message['content']}\ntools:")


def new_vocabulary(known: LoadedModel, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The model with an embedding for each token of another tokenizer; tokens that both have keep theirs."""
    config = LlamaConfig.from_pretrained(known.model.config.name_or_path, vocab_size=len(tokenizer))
    model = LlamaForCausalLM(config)
    old = known.model.state_dict()
    old_ids, rows = known.tokenizer.get_vocab(), model.get_input_embeddings().weight
    weights = {name: value for name, value in old.items() if value.shape[0] != known.vocab_size}
    model.load_state_dict(weights, strict=False)
    table = old["model.embed_tokens.weight"]
    with torch.no_grad():
        rows.normal_(std=float(table.std()), generator=torch.Generator().manual_seed(0))
        for token, number in tokenizer.get_vocab().items():
            if token in old_ids:
                rows[number] = table[old_ids[token]]
    return model


def build_policy(folder: Path, *, vocab_size: int = 1024) -> None:
    """Builds the policy and saves it.

    Args:
        folder: Where to.
        vocab_size: Of the new tokenizer, without markers.
    """
    known = load_model("quickstart", device="cpu")
    tokenizer = build_tokenizer(vocab_size)
    model = new_vocabulary(known, tokenizer)
    for phase in PHASES:
        imitate(model, ChatFormat(tokenizer), phase)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def imitate(model: LlamaForCausalLM, chat: ChatFormat, phase: Phase) -> None:
    """One phase, with a learning rate and moments of its own."""
    settings = OptimizerSettings(
        learning_rate=2e-3, betas=(0.9, 0.98), weight_decay=0.01, warmup_updates=30, schedule=phase.schedule
    )
    start, losses = time.monotonic(), list[float]()
    for step, loss in enumerate(fine_tune(model, demonstrations(chat, phase), settings, steps=phase.steps), 1):
        losses.append(loss)
        if step % 50 == 0:
            each = ", ".join(f"{np.mean(losses[-50:][i :: len(ENVS)]):.3f}" for i in range(len(ENVS)))
            print(f"{phase.name} {step}: loss {each}, {time.monotonic() - start:.0f} s", flush=True)


def main() -> None:
    """Builds and saves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/search-policy"))
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    build_policy(arguments.out)


if __name__ == "__main__":
    main()
