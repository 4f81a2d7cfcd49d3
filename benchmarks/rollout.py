"""Sampled tokens per second of multi-turn rollouts: key/value rows kept between turns, against prefilling each turn.

    python benchmarks/rollout.py --model quickstart
    python benchmarks/rollout.py --model ~/models/smollm2-135m-instruct --tasks 2

Every episode has the same shape: a prompt, then turns of a fixed number of sampled tokens, a fixed tool result after
each. Both ways sample the same tokens, which is checked. One JSON line per measurement, and one with the ratio.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from agentrl.envs import Episode, ToolEnv
from agentrl.policies.core import Completion, Policy, Request, SequenceId
from agentrl.policies.loading import load_model
from agentrl.policies.transformers_engine import TransformersPolicy
from agentrl.rollout.collector import Collector, RolloutLimits
from agentrl.rollout.plan import GroupPlan
from agentrl.tasks import Task
from agentrl.tools import tool
from agentrl.trajectory import Tree


@tool(inline=True)
def lookup(key: str) -> str:
    """Look a key up.

    Args:
        key: What to look up.
    """
    return f"The value of {key} is written here in a result of some length, as a search tool would give it. " * 2


class FixedShape(ToolEnv):
    """Takes every turn for a call until the last one, so that a model that knows no tools plays full episodes."""

    tools = (lookup,)

    def __init__(self, *, split: str, prompt: str, num_turns: int) -> None:
        super().__init__(split=split)
        self._prompt = prompt
        self._num_turns = num_turns

    def tasks(self, split: str) -> Sequence[Task]:
        """A few equal tasks."""
        return [Task(f"{split}-{i}", f"{self._prompt} {i}") for i in range(64)]

    def reward(self, task: Task, episode: Episode) -> float:
        """Nothing is judged."""
        return 0.0

    def step(self, action: str) -> Any:
        """Calls the tool whatever was said, or ends."""
        last = self.episode.num_turns + 1 == self._num_turns
        call = '<tool_call>\n{"name": "lookup", "arguments": {"key": "k"}}\n</tool_call>'
        return super().step("done" if last else call)


class FixedLength(Policy):
    """An engine whose turns have a fixed length; optionally one that forgets what it computed in earlier turns."""

    def __init__(self, engine: Policy, *, forget: bool) -> None:
        self._engine = engine
        self._forget = forget
        self.version = engine.version
        self.context_length = engine.context_length

    def submit(self, request: Request) -> None:
        """Forgets the sequence first, if it should."""
        if self._forget:
            self._engine.release(request.sequence)
        self._engine.submit(replace(request, stop=()))

    def poll(self) -> list[Completion]:
        """Takes the length limit for the end of a turn."""
        return [replace(completion, cause="end_of_turn") for completion in self._engine.poll()]

    def fork(self, parent: SequenceId, child: SequenceId, num_tokens: int) -> None:
        """Does nothing for an engine that forgets: the child computes its prompt itself."""
        if not self._forget:
            self._engine.fork(parent, child, num_tokens)

    def release(self, sequence: SequenceId) -> None:
        """Passed on."""
        self._engine.release(sequence)


def run(arguments: argparse.Namespace, *, forget: bool) -> tuple[list[Tree], dict[str, Any]]:
    """One rollout; the figures of it."""
    loaded = load_model(arguments.model)
    engine = TransformersPolicy(loaded.model, loaded.tokenizer, end_of_turn_ids=())  # no turn ends by chance
    prompt = "Find what is asked for, step by step, with the tool. " * (arguments.prompt_words // 11)
    collector = Collector(
        FixedLength(engine, forget=forget),
        loaded.chat,
        lambda: FixedShape(split="train", prompt=prompt, num_turns=arguments.turns),
        vocab_size=loaded.vocab_size,
        limits=RolloutLimits(max_turn_tokens=arguments.turn_tokens, max_episode_tokens=2000),
    )
    start = time.perf_counter()
    trees = collector.collect(range(arguments.tasks), GroupPlan(size=arguments.group), seed=0)
    seconds = time.perf_counter() - start
    counters = engine.counters
    figures = {
        "benchmark": "rollout",
        "way": "prefill every turn" if forget else "keep key/value rows",
        "model": arguments.model,
        "threads": torch.get_num_threads(),
        "episodes": arguments.tasks * arguments.group,
        "turns": arguments.turns,
        "unique_tokens": sum(tree.num_tokens for tree in trees),
        "sampled_tokens": counters.sampled_tokens,
        "prefilled_tokens": counters.prefilled_tokens,
        "seconds": round(seconds, 2),
        "sampled_tokens_per_s": round(counters.sampled_tokens / seconds, 1),
    }
    return trees, figures


def main() -> None:
    """Measures both ways in one run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="quickstart")
    parser.add_argument("--tasks", type=int, default=4)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--turn-tokens", type=int, default=32)
    parser.add_argument("--prompt-words", type=int, default=220)
    arguments = parser.parse_args()
    kept_trees, kept = run(arguments, forget=False)
    again_trees, again = run(arguments, forget=True)
    for figures in (kept, again):
        print(json.dumps(figures), flush=True)
    same = [t.segments[-1].token_ids for t in kept_trees] == [t.segments[-1].token_ids for t in again_trees]
    ratio = kept["sampled_tokens_per_s"] / again["sampled_tokens_per_s"]
    print(json.dumps({"benchmark": "rollout", "speedup": round(ratio, 2), "same_tokens": same}))


if __name__ == "__main__":
    main()
