"""Builds the embedded policy from nothing: tokenizer, tiny Llama, and a warm start on demonstrations.

    python examples/build_quickstart_policy.py --out agentrl/policies/quickstart

First it imitates an agent that always calls the calculator, until it can copy numbers; then one that is careless: in
six of ten episodes it guesses a number instead. The policy thus knows how to call a tool and how to answer, but not
when to do which: that is left to reinforcement learning. Takes about ten minutes on two cores.
"""

import argparse
import itertools
import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from agentrl.chat.template import ChatFormat
from agentrl.envs import Episode, ToolEnv, make
from agentrl.policies.loading import LoadedModel
from agentrl.rollout.demonstration import demonstrate
from agentrl.seeding import generator
from agentrl.tasks import Task
from agentrl.trainers.settings import OptimizerSettings
from agentrl.trainers.supervised import fine_tune
from agentrl.trajectory import Tree

CONTROL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MARKERS = ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"]

TEMPLATE = r"""
{%- set system = messages[0].content if messages[0].role == 'system' else '' %}
{%- if tools %}
    {{- '<|im_start|>system\n' + (system + '\n\n' if system else '') + '# Tools\n<tools>' }}
    {%- for tool in tools %}{{- '\n' + tool | tojson }}{%- endfor %}
    {{- '\n</tools><|im_end|>\n' }}
{%- elif system %}
    {{- '<|im_start|>system\n' + system + '<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\n<tool_response>\n' + message.content + '\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\n' }}{%- endif %}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant\n' + (message.content or '') }}
        {%- for call in message.tool_calls or [] %}
            {%- set call = call.function or call %}
            {{- '\n' if message.content or not loop.first }}
            {{- '<tool_call>\n{"name": "' + call.name + '", "arguments": ' + call.arguments | tojson + '}' }}
            {{- '\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role != 'system' %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""


def act(task: Task, episode: Episode, *, env: ToolEnv, rng: np.random.Generator, guess_rate: float) -> str:
    """The oracle's turn, except that in some episodes it guesses a number as long as the answer."""
    if not episode.calls and rng.random() < guess_rate:
        size = len("".join(filter(str.isdigit, str(task.answer))))
        return f"The answer is {rng.integers(10 ** (size - 1), 10**size)}."
    return env.oracle(task, episode)


def transcripts(env: ToolEnv, count: int) -> Iterator[str]:
    """What the tokenizer learns its vocabulary from: whole demonstrations as text."""
    tokenizer = wrap(Tokenizer(models.BPE()))
    for index in range(count):
        _, info = env.reset(options={"task": index})
        messages, tools = list(info["messages"]), info["tools"]
        task = env.task_set()[index]
        while not env.episode.done:
            env.step(env.oracle(task, env.episode))
        messages = [dict(message) for message in env.episode.messages]
        yield str(tokenizer.apply_chat_template(messages, tools=tools, tokenize=False))


def wrap(backend: Tokenizer) -> PreTrainedTokenizerFast:
    """A backend as a Hugging Face tokenizer with the chat template."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def build_tokenizer(env: ToolEnv, vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE in which every digit is a token of its own, so that numbers can be copied digit by digit."""
    backend = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(r"\d| ?[^\s\d]+|\s"), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=CONTROL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        min_frequency=10,
        show_progress=False,
    )
    backend.train_from_iterator(transcripts(env, 3000), trainer)
    backend.add_tokens(MARKERS)
    return wrap(backend)


def build_model(vocab_size: int, hidden_size: int, num_layers: int) -> LlamaForCausalLM:
    """A Llama small enough to train on a laptop. The wide initialisation makes copying emerge sooner."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            intermediate_size=hidden_size * 5 // 2,
            num_hidden_layers=num_layers,
            num_attention_heads=hidden_size // 32,
            num_key_value_heads=hidden_size // 32,
            max_position_embeddings=2048,
            initializer_range=0.07,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=2,
            pad_token_id=0,
        )
    )


def demonstrations(
    env: ToolEnv, chat: ChatFormat, *, batch_size: int, careful_steps: int, guess_rate: float, seed: int
) -> Iterator[list[Tree]]:
    """Endless batches of demonstrations on training tasks, careless ones after `careful_steps` batches."""
    num_tasks = len(env.task_set())
    for step in itertools.count():
        rate = 0.0 if step < careful_steps else guess_rate
        indices = range(step * batch_size, (step + 1) * batch_size)
        actors = [partial(act, env=env, rng=generator(seed, "careless", i), guess_rate=rate) for i in indices]
        yield [demonstrate(env, chat, i % num_tasks, actor) for i, actor in zip(indices, actors, strict=True)]


def main() -> None:
    """Builds and saves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("agentrl/policies/quickstart"))
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--careful-steps", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--guess-rate", type=float, default=0.6)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--hidden-size", type=int, default=128)
    parser.add_argument("--num-layers", type=int, default=4)
    parser.add_argument("--vocab-size", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    torch.manual_seed(arguments.seed)
    env = make("agentrl/Arithmetic-v0", split="train", level=1).unwrapped
    assert isinstance(env, ToolEnv)
    tokenizer = build_tokenizer(env, arguments.vocab_size)
    model = build_model(len(tokenizer), arguments.hidden_size, arguments.num_layers)
    num_parameters = sum(p.numel() for p in model.parameters())
    chat = ChatFormat(tokenizer)
    loaded = LoadedModel(model, tokenizer, chat)
    print(f"{loaded.vocab_size} tokens, {num_parameters / 1e6:.2f}M parameters", flush=True)

    settings = OptimizerSettings(
        learning_rate=arguments.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=0.01,
        warmup_updates=50,
        schedule="linear",
    )
    batches = demonstrations(
        env,
        chat,
        batch_size=arguments.batch_size,
        careful_steps=arguments.careful_steps,
        guess_rate=arguments.guess_rate,
        seed=arguments.seed,
    )
    start = time.monotonic()
    for step, loss in enumerate(fine_tune(model, batches, settings, steps=arguments.steps), 1):
        if step % 50 == 0 or step == arguments.steps:
            print(f"step {step}  loss {loss:.4f}  {time.monotonic() - start:.0f} s", flush=True)

    if arguments.out.exists():
        shutil.rmtree(arguments.out)
    model.save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    print(f"saved to {arguments.out}")


if __name__ == "__main__":
    main()
