"""What the environment says of a trajectory beside its return: states, parts of the reward, and where it began."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from rollout_scripts import Counting, call

from agentrl.chat.template import ChatFormat
from agentrl.chat.tool_calls import format_tool_call
from agentrl.envs import Episode, observation_key
from agentrl.errors import ConfigError
from agentrl.messages import ToolCall
from agentrl.policies.core import Request
from agentrl.policies.scripted import Reply
from agentrl.rollout.demonstration import demonstrate
from agentrl.rollout.plan import BranchRule, GroupPlan
from agentrl.tasks import Task
from agentrl.trajectory import Leaf, StopReason, Tree


class Named(Counting):
    """States are named by the counter's total."""

    def state_key(self, task: Task, episode: Episode) -> str | None:
        results = episode.results("add")
        return results[-1].text if results else "start"


class Parted(Named):
    """An answer, a price of calls, and something for every turn."""

    def turn_reward(self, task: Task, episode: Episode) -> float:
        return 0.125

    def reward(self, task: Task, episode: Episode) -> Mapping[str, float]:
        return {"answer": float(super().reward(task, episode)), "calls": -0.25 * len(episode.calls)}  # type: ignore[arg-type]


PLANS = [
    GroupPlan(size=5),
    *(GroupPlan(size=8, initial=4, rule=rule, alpha=0.7) for rule in BranchRule if rule is not BranchRule.NONE),
]


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.rule.value)
def test_every_turn_has_the_key_of_the_state_it_was_taken_in(
    make_collector: Any, byte_tokenizer: Any, plan: GroupPlan
) -> None:
    """The state is the counter's total, which the text before the turn tells: for branches their parent's, too."""
    branches = 0
    for tree in make_collector(env=Named).collect(range(6), plan, seed=2):
        for leaf in tree.leaves:
            expected = ["start"]
            for segment in tree.path(leaf.segment)[1:]:
                if segment.origin == "environment":
                    text = byte_tokenizer.decode(segment.token_ids, skip_special_tokens=False)
                    expected.append(text.split("<tool_response>\n")[1].split("\n")[0])
            assert leaf.state_keys == expected
            assert len(leaf.state_keys) == leaf.num_turns
            branches += leaf.fork_of is not None
    assert branches > 0 or plan.rule is BranchRule.NONE


def test_an_environment_that_does_not_say_leaves_them_out(make_collector: Any) -> None:
    assert all(not leaf.state_keys for leaf in make_collector().collect([0], GroupPlan(size=3), seed=0)[0].leaves)


def test_an_episode_cut_between_turns_has_one_key_for_each_turn(make_collector: Any) -> None:
    def caller(request: Request, text: str) -> Reply:
        return Reply(call(1))

    tree = make_collector(caller, Named, max_episode_tokens=700).collect([0], GroupPlan(size=1), seed=0)[0]
    (leaf,) = tree.leaves
    assert leaf.stop_reason is StopReason.MAX_TOKENS
    assert len(leaf.state_keys) == leaf.num_turns == sum(s.origin == "assistant" for s in tree.segments)
    assert leaf.state_keys[:3] == ["start", "total 1", "total 2"]


def test_naming_some_states_only_is_refused(make_collector: Any) -> None:
    class Sometimes(Named):
        def state_key(self, task: Task, episode: Episode) -> str | None:
            return None if episode.num_turns == 0 else super().state_key(task, episode)

    with pytest.raises(ConfigError, match=r"named 1 of the 2 states|named \d of the \d states"):
        make_collector(env=Sometimes).collect([0], GroupPlan(size=1), seed=0)


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.rule.value)
def test_parts_of_the_reward_add_up_to_the_return(make_collector: Any, plan: GroupPlan) -> None:
    """Eighths and quarters are exact: 1 or 0, minus 1/4 for each call, plus 1/8 for each turn."""
    for tree in make_collector(env=Parted).collect(range(3), plan, seed=1):
        for leaf in tree.leaves:
            calls = leaf.tool_calls["add"]
            assert leaf.reward_parts == {
                "answer": float(leaf.reward_parts["answer"] == 1.0),
                "calls": -0.25 * calls,
                "turns": 0.125 * leaf.num_turns,
            }
            assert sum(leaf.reward_parts.values()) == leaf.reward == sum(leaf.turn_rewards)


def test_a_plain_number_has_no_parts(make_collector: Any) -> None:
    assert make_collector().collect([0], GroupPlan(size=1), seed=0)[0].leaves[0].reward_parts == {}


def test_a_broken_episode_keeps_its_root(make_collector: Any) -> None:
    def script(request: Request, text: str) -> Reply:
        return Reply(call(666))

    tree = make_collector(script, Named).collect([0], GroupPlan(size=3), seed=0)[0]
    assert [(leaf.valid, leaf.root) for leaf in tree.leaves] == [(False, 0), (False, 1), (False, 2)]


def test_a_branch_has_the_root_of_its_parent(make_collector: Any) -> None:
    plan = GroupPlan(size=12, initial=3, rule=BranchRule.RANDOM, alpha=0.9)
    for tree in make_collector().collect(range(5), plan, seed=7):
        first_turns = {root: set() for root in range(12)}  # type: dict[int, set[int]]
        for leaf in tree.leaves:
            first_turns[leaf.root].add(tree.path(leaf.segment)[1].id)
        used = [turns for turns in first_turns.values() if turns]
        assert all(len(turns) == 1 for turns in used)  # branches share their first turn with their root
        assert len(set.union(*used)) == len(used)


def test_demonstrations_have_them_too(chat: ChatFormat) -> None:
    def actor(task: Task, episode: Episode) -> str:
        return format_tool_call(ToolCall("add", {"amount": 2})) if episode.num_turns < 2 else "total 4"

    (leaf,) = demonstrate(Parted(), chat, 0, actor).leaves
    assert leaf.state_keys == ["start", "total 2", "total 4"]
    assert leaf.reward_parts == {"answer": 1.0, "calls": -0.5, "turns": 0.375}
    assert leaf.reward == 0.875  # 1 - 2/4 + 3/8


def test_trees_come_back_from_json_and_old_ones_still_load() -> None:
    tree = Tree("t")
    tree.add(None, "prompt", 0, [1])
    tree.leaves.append(
        Leaf(0, StopReason.ANSWERED, 1.5, True, root=3, state_keys=["a", "b"], reward_parts={"x": 1.0, "y": 0.5})
    )
    data = json.loads(json.dumps(tree.to_json()))
    assert Tree.from_json(data) == tree
    for name in ("root", "state_keys", "reward_parts"):
        del data["leaves"][0][name]
    (old,) = Tree.from_json(data).leaves
    assert (old.root, old.state_keys, old.reward_parts) == (0, [], {})
    assert Tree.from_json(data).in_path_order().leaves == [old]


def test_the_key_of_an_observation() -> None:
    """It is what was said since the agent's last turn that counts."""
    env = Counting()
    keys = []
    for amounts in ([], [2], [1, 1], [2, 0]):
        env.reset(options={"task": 1})
        for amount in amounts:
            env.step(call(amount))
        keys.append(observation_key(env.episode))
    start, two, twice, stayed = keys
    assert two == twice == stayed != start  # "total 2" each time
    env.reset(options={"task": 1})
    assert observation_key(env.episode) == start
    env.reset(options={"task": 2})
    assert observation_key(env.episode) != start
    env.close()
