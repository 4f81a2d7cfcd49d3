"""Episodes from a file instead of from the policy: the same trees, so that the same learners take them."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import gymnasium

from agentrl import messages as msg
from agentrl.chat.template import ChatFormat
from agentrl.envs import ToolEnv
from agentrl.errors import ConfigError
from agentrl.messages import JsonDict, Message
from agentrl.trainers.examples import Completion, Conversation, Example
from agentrl.trainers.rollouts import Harvest, OrderedSource, TaskOrder
from agentrl.trajectory import Leaf, StopReason, Tree


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What an environment says before every task; a row that says it itself is left as it is."""

    system_prompt: str = ""
    tools: tuple[JsonDict, ...] = ()
    """Schemas."""

    @classmethod
    def of(cls, make_env: Callable[[], gymnasium.Env[str, str]]) -> Self:
        """Those of an environment; nothing where it is no `ToolEnv`."""
        env = make_env()
        try:
            inner = env.unwrapped
            if not isinstance(inner, ToolEnv):
                return cls()
            return cls(inner.system_prompt, tuple(tool.schema for tool in inner.tools))
        finally:
            env.close()


class RecordedEpisodes(OrderedSource):
    """Draws rows of a file in a seeded order, every row once in each pass.

    Args:
        examples: The rows.
        order: Of the rows.
        chat: Turns messages into the tokens that a model reads and would have had to sample.
        surroundings: Of the environment that the agent is trained for.
        rows_per_update: As many as tasks in other runs.
        max_tokens: Longest trajectory.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        order: TaskOrder,
        chat: ChatFormat,
        surroundings: Surroundings,
        *,
        rows_per_update: int,
        max_tokens: int,
    ) -> None:
        super().__init__(order)
        self._examples = examples
        self._chat = chat
        self._surroundings = surroundings
        self._rows_per_update = rows_per_update
        self._max_tokens = max_tokens

    def sample(self, seed: int) -> Harvest:
        """The next rows; those that are too long are left out and counted.

        Args:
            seed: Without effect: the order of the rows is that of the run.

        Raises:
            ConfigError: All rows of this update are too long.
        """
        drawn = [self._examples[i] for i in self._order.draw(self._rows_per_update)]
        trees = [record(example, self._chat, self._surroundings) for example in drawn]
        kept = [tree for tree in trees if longest_path(tree) <= self._max_tokens]
        if not kept:
            raise ConfigError(
                f"All {len(trees)} rows of this update are too long: {drawn[0].name} has {longest_path(trees[0])} "
                f"tokens, and an episode may have {self._max_tokens}. Raise rollout.max_episode_tokens as far as the "
                "model's context allows, or shorten the rows."
            )
        metrics = {
            "rows": float(len(kept)),
            "rows_too_long": float(len(trees) - len(kept)),
            "unique_tokens": float(sum(tree.num_tokens for tree in kept)),
        }
        return Harvest(kept, kept, metrics)


def longest_path(tree: Tree) -> int:
    """Tokens of the longest trajectory, its prompt included."""
    return max(len(tree.token_ids(leaf.segment)) for leaf in tree.leaves)


def record(example: Example, chat: ChatFormat, surroundings: Surroundings) -> Tree:
    """A row as a tree: the prompt, and below it a leaf for every completion, good or not (reward 1 or 0).

    Tokens stand as in an episode: what the assistant says has mask 1 with its end of turn; tool results, and earlier
    turns of the assistant in the prompt, have mask 0.

    Args:
        example: The row.
        chat: Of the model.
        surroundings: What the environment says where the row says nothing.
    """
    tree = Tree(task_id=example.name)
    tools = surroundings.tools if example.tools is None else example.tools
    tree.add(None, "prompt", 0, _prompt_ids(chat, _instructed(example.prompt, surroundings.system_prompt), tools))
    for completion in example.completions:
        tree.leaves.append(_add_completion(tree, chat, completion))
    return tree


def _instructed(prompt: Conversation, system_prompt: str) -> Conversation:
    if not system_prompt or prompt[0]["role"] == "system":
        return prompt
    return (msg.system(system_prompt), *prompt)


def _prompt_ids(chat: ChatFormat, prompt: Conversation, tools: Sequence[JsonDict]) -> list[int]:
    """The opening, and what was said after it, up to where the assistant begins to speak."""
    opening = next((i for i, message in enumerate(prompt) if message["role"] == "assistant"), len(prompt))
    ids = chat.prompt_ids(prompt[:opening], tools)
    for turn, answer in _turns(prompt[opening:]):
        ids += chat.turn_ids(turn["content"])
        ids += chat.suffix_ids(chat.end_of_turn_id, answer)
    return ids


def _add_completion(tree: Tree, chat: ChatFormat, completion: Completion) -> Leaf:
    turns = list(_turns(completion.messages))
    segment = tree.segments[0]
    for number, (turn, answer) in enumerate(turns):
        segment = tree.add(segment.id, "assistant", number, chat.turn_ids(turn["content"]))
        if number + 1 < len(turns):  # nothing was said after the last answer
            segment = tree.add(segment.id, "environment", number, chat.suffix_ids(chat.end_of_turn_id, answer))
    return Leaf(
        segment.id,
        StopReason.ANSWERED,
        float(completion.good),
        completion.good,
        num_turns=len(turns),
        tool_calls=dict(Counter(m.get("name", "tool") for m in completion.messages if m["role"] == "tool")),
        root=len(tree.leaves),
    )


def _turns(messages: Conversation) -> Iterator[tuple[Message, Conversation]]:
    """Every turn of the assistant with what was answered to it; the first message is the assistant's."""
    starts = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    for start, end in pairwise([*starts, len(messages)]):
        yield messages[start], messages[start + 1 : end]
