"""Rows as trees: the tokens of an episode, the right masks, a seeded order that goes on after a resume."""

from typing import Any

import pytest

from agentrl.chat.template import ChatFormat
from agentrl.envs import Episode, ToolEnv, make
from agentrl.errors import ConfigError
from agentrl.rollout.demonstration import demonstrate
from agentrl.tasks import Task
from agentrl.trainers.examples import Example, read_example
from agentrl.trainers.recorded import RecordedEpisodes, Surroundings, longest_path, record
from agentrl.trainers.rollouts import TaskOrder
from agentrl.trajectory import Tree

QUESTION = {"role": "user", "content": "6 * 7?"}
ANSWERED = [{"role": "assistant", "content": "C"}, {"role": "tool", "content": "42"}]
RIGHT = {"role": "assistant", "content": "It is 42."}
TOOL = {"type": "function", "function": {"name": "sum_up", "description": "Sums.", "parameters": {}}}


@pytest.fixture(scope="module")
def chat(byte_tokenizer: Any) -> ChatFormat:
    return ChatFormat(byte_tokenizer)


def tree_of(chat: ChatFormat, surroundings: Surroundings | None = None, **row: Any) -> Tree:
    return record(read_example(row, "row 1"), chat, surroundings or Surroundings())


def learned(chat: ChatFormat, tree: Tree, leaf: int = 0) -> list[str]:
    """The text of every segment in which something is learned; elsewhere the mask is 0 throughout."""
    path = tree.path(tree.leaves[leaf].segment)
    assert all(set(segment.action_mask) == {int(segment.origin == "assistant")} for segment in path)
    return [text_of(chat, segment.token_ids) for segment in path if segment.origin == "assistant"]


def text_of(chat: ChatFormat, ids: list[int]) -> str:
    return str(chat.tokenizer.decode(ids, skip_special_tokens=False))


def test_the_tokens_are_those_of_an_episode(chat: ChatFormat) -> None:
    """A demonstration of the oracle, written down as messages and read again, is the same tree."""
    env = make("agentrl/Arithmetic-v0", level=1).unwrapped
    assert isinstance(env, ToolEnv)
    surroundings = Surroundings.of(lambda: make("agentrl/Arithmetic-v0", level=1))
    turns = set()
    for task in range(5):
        played = demonstrate(env, chat, task, env.oracle)
        said = [m for m in env.episode.messages if m["role"] != "system"]
        tree = tree_of(chat, surroundings, messages=said)
        assert [s.token_ids for s in tree.segments] == [s.token_ids for s in played.segments]
        assert [s.action_mask for s in tree.segments] == [s.action_mask for s in played.segments]
        assert [(s.parent, s.origin, s.turn) for s in tree.segments] == [
            (s.parent, s.origin, s.turn) for s in played.segments
        ]
        assert tree.leaves[0].num_turns == played.leaves[0].num_turns
        assert tree.leaves[0].tool_calls == played.leaves[0].tool_calls
        turns.add(tree.leaves[0].num_turns)
    assert max(turns) > 1  # tool results among them


def test_a_pair_is_a_tree_with_two_leaves(chat: ChatFormat) -> None:
    tree = tree_of(chat, prompt="6 * 7?", chosen=[*ANSWERED, RIGHT], rejected="41")
    assert [(leaf.reward, leaf.success, leaf.root, leaf.valid) for leaf in tree.leaves] == [
        (1.0, True, 0, True),
        (0.0, False, 1, True),
    ]
    end = text_of(chat, [chat.end_of_turn_id])
    assert learned(chat, tree) == [f"C{end}", f"It is 42.{end}"]
    assert learned(chat, tree, 1) == [f"41{end}"]
    assert [s.origin for s in tree.segments] == ["prompt", "assistant", "environment", "assistant", "assistant"]
    assert "42" in text_of(chat, tree.segments[2].token_ids)
    assert [leaf.tool_calls for leaf in tree.leaves] == [{"tool": 1}, {}]  # the row does not say which tool
    assert Tree.from_json(tree.to_json()) == tree


def test_a_label_is_a_tree_with_one_leaf(chat: ChatFormat) -> None:
    for label in (True, False):
        tree = tree_of(chat, prompt="6 * 7?", completion="x", label=label)
        assert [(leaf.reward, leaf.success) for leaf in tree.leaves] == [(float(label), label)]


def test_earlier_turns_in_the_prompt_are_read_and_not_learned(chat: ChatFormat) -> None:
    tree = tree_of(chat, prompt=[QUESTION, *ANSWERED], completion=[RIGHT])
    apart = tree_of(chat, messages=[QUESTION, *ANSWERED, RIGHT])
    assert tree.token_ids(tree.leaves[0].segment) == apart.token_ids(apart.leaves[0].segment)
    assert [len(learned(chat, t)) for t in (tree, apart)] == [1, 2]
    assert len(tree.segments) == 2  # the whole prompt is one segment


def test_what_the_environment_says_is_put_before_unless_the_row_does(chat: ChatFormat) -> None:
    around = Surroundings("Be brief.", (TOOL,))
    bare = text_of(chat, tree_of(chat, around, messages=[QUESTION, RIGHT]).segments[0].token_ids)
    assert "Be brief." in bare
    assert "sum_up" in bare
    own = [{"role": "system", "content": "Shout."}, QUESTION, RIGHT]
    text = text_of(chat, tree_of(chat, around, messages=own, tools=[]).segments[0].token_ids)
    assert "Shout." in text
    assert "Be brief." not in text
    assert "sum_up" not in text


class Instructing(ToolEnv):
    system_prompt = "Count."

    def tasks(self, split: str) -> list[Task]:
        return [Task("t", "x")]

    def reward(self, task: Task, episode: Episode) -> float:
        return 0.0


def test_the_surroundings_of_an_environment() -> None:
    assert Surroundings.of(Instructing) == Surroundings("Count.", ())
    (tool,) = Surroundings.of(lambda: make("agentrl/Arithmetic-v0")).tools
    assert tool["function"]["name"] == "calculator"


# The source ----------------------------------------------------------------------------------------------------------


def source(chat: ChatFormat, lengths: list[int], max_tokens: int = 10_000, rows_per_update: int = 2) -> Any:
    examples: list[Example] = [
        read_example({"prompt": "?", "completion": "x" * length}, f"row {number}")
        for number, length in enumerate(lengths, 1)
    ]
    order = TaskOrder(len(examples), seed=3)
    return RecordedEpisodes(
        examples, order, chat, Surroundings(), rows_per_update=rows_per_update, max_tokens=max_tokens
    )


def names(source: RecordedEpisodes, updates: int) -> list[str]:
    return [tree.task_id for number in range(updates) for tree in source.sample(number).kept]


def test_every_row_once_in_a_pass_and_the_rest_after_a_resume(chat: ChatFormat) -> None:
    whole = source(chat, [1] * 6)
    drawn = names(whole, 6)
    assert sorted(drawn[:6]) == sorted(drawn[6:]) == [f"row {n}" for n in range(1, 7)]
    assert drawn[:6] != drawn[6:]  # every pass has a shuffle of its own
    assert whole.position == 12
    resumed = source(chat, [1] * 6)
    resumed.position = 4
    assert names(resumed, 4) == drawn[4:]


def test_rows_that_are_too_long_are_left_out_and_counted(chat: ChatFormat) -> None:
    longest = longest_path(source(chat, [5]).sample(0).kept[0])
    harvest = source(chat, [5, 6, 5], longest, rows_per_update=3).sample(0)
    assert sorted(tree.task_id for tree in harvest.kept) == ["row 1", "row 3"]
    assert (harvest.metrics["rows"], harvest.metrics["rows_too_long"]) == (2.0, 1.0)
    with pytest.raises(ConfigError, match=rf"All 1 rows .* too long: row 1 has {longest} tokens, .* {longest - 1}"):
        source(chat, [5], longest - 1, rows_per_update=1).sample(0)
