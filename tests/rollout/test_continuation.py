"""Going on from the middle of recorded episodes: same state, same path, independent completions."""

import re
from typing import Any

import pytest
from rollout_scripts import Counter, Counting, call, random_script

from agentrl.chat.template import ChatFormat
from agentrl.envs import Episode
from agentrl.errors import ConfigError
from agentrl.policies.core import Completion, Request, Sampling
from agentrl.policies.scripted import Reply, ScriptedPolicy
from agentrl.policies.transformers_engine import TransformersPolicy
from agentrl.rollout.collector import RolloutLimits
from agentrl.rollout.continuation import Continuer, Prefix
from agentrl.rollout.plan import BranchRule, GroupPlan
from agentrl.tasks import Task
from agentrl.trajectory import Leaf, Tree

BRANCHING = GroupPlan(size=6, initial=3, rule=BranchRule.RANDOM, alpha=1.0)


@pytest.fixture
def make_continuer(byte_tokenizer: Any, chat: ChatFormat) -> Any:
    def make(script: Any = random_script, env: Any = Counting, policy: Any = None, **limits: Any) -> Continuer:
        policy = policy or ScriptedPolicy(byte_tokenizer, script, end_of_turn_id=chat.end_of_turn_id)
        return Continuer(policy, chat, env, vocab_size=len(byte_tokenizer), limits=RolloutLimits(**limits))

    return make


def prefixes_of(trees: list[Tree]) -> list[Prefix]:
    return [Prefix(tree, s.id) for tree in trees for s in tree.segments if s.origin == "environment"]


class Diary(Counting):
    """Pays 1/4 for every turn, and keeps every finished episode."""

    ended: list[Episode]

    def turn_reward(self, task: Task, episode: Episode) -> float:
        return 0.25

    def reward(self, task: Task, episode: Episode) -> float:
        Diary.ended.append(episode)
        return super().reward(task, episode)


def test_completions_go_on_from_the_recorded_state(make_continuer: Any, byte_tokenizer: Any) -> None:
    continuer = make_continuer(env=Diary)
    Diary.ended = []
    trees = continuer.collect([3, 8], BRANCHING, seed=5)
    prefixes = prefixes_of(trees)
    assert max(len(prefix.tree.path(prefix.segment)) for prefix in prefixes) > 3  # also after several turns
    for prefix in prefixes:
        Diary.ended = []
        (leaves,) = continuer.continue_from([prefix], 4, seed=1)
        path = prefix.tree.path(prefix.segment)
        said = byte_tokenizer.decode([t for s in path[1:] for t in s.token_ids], skip_special_tokens=False)
        amounts = [int(amount) for amount in re.findall(r'"amount": (\d+)', said)]
        assert len(leaves) == len(Diary.ended) == 4
        for episode in Diary.ended:  # the counter went on from the recorded total, in each completion by itself
            made = [int(record.call.arguments["amount"]) for record in episode.calls]  # type: ignore[union-attr]
            assert made[: len(amounts)] == amounts
            totals = [int(record.result.text.split()[1]) for record in episode.calls]
            assert totals == [sum(made[: i + 1]) for i in range(len(made))]
        for leaf in leaves:
            assert leaf.num_turns > len(amounts)
            assert leaf.turn_rewards[: len(amounts)] == [0.25] * len(amounts)
            assert leaf.reward - 0.25 * leaf.num_turns in (0.0, 1.0)
        assert len({leaf.num_turns for leaf in leaves} | {leaf.answer for leaf in leaves}) > 1


def facts(leaves: list[list[Leaf]]) -> list[list[tuple[float, int, str | None]]]:
    return [[(leaf.reward, leaf.num_turns, leaf.answer) for leaf in own] for own in leaves]


def test_seeds_decide_and_the_company_does_not(make_continuer: Any) -> None:
    continuer = make_continuer()
    prefixes = prefixes_of(continuer.collect([3, 8], BRANCHING, seed=5))
    first = facts(continuer.continue_from(prefixes, 3, seed=1))
    assert facts(make_continuer(max_concurrent_episodes=1).continue_from(prefixes, 3, seed=1)) == first
    assert facts(continuer.continue_from(prefixes, 3, seed=2)) != first
    assert facts(continuer.continue_from(prefixes[:1], 3, seed=1)) == first[:1]


def test_it_still_collects_as_any_collector(make_continuer: Any, make_collector: Any) -> None:
    continuer = make_continuer()
    expected = make_collector().collect([3], BRANCHING, seed=5)
    assert continuer.collect([3], BRANCHING, seed=5) == expected
    continuer.continue_from(prefixes_of(expected), 2, seed=0)
    assert continuer.collect([3], BRANCHING, seed=5) == expected


def test_a_real_model_goes_on_as_if_it_had_never_stopped(
    make_continuer: Any, tiny_llama: Any, byte_tokenizer: Any, chat: ChatFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Greedy completions, forked from one computed prefix, equal what it says to that prefix as a single prompt."""

    def calls_once(request: Request, text: str) -> Reply:
        return Reply("done") if "tool_response" in text else Reply(call(3))

    (tree,) = make_continuer(calls_once).collect([7], GroupPlan(size=1), seed=0)
    (prefix,) = prefixes_of([tree])
    policy = TransformersPolicy(tiny_llama, byte_tokenizer, chat.end_ids)
    greedy = Sampling(temperature=0.0)
    tokens = tree.token_ids(prefix.segment)
    policy.submit(Request(sequence=999, token_ids=tokens, max_tokens=12, stop=chat.stop_strings, sampling=greedy))
    (alone,) = finished(policy)
    policy.release(999)
    said: list[list[int]] = []
    monkeypatch.setattr(policy, "poll", lambda: noted(TransformersPolicy.poll(policy), said))
    continuer = make_continuer(policy=policy, max_turn_tokens=12)
    (leaves,) = continuer.continue_from([prefix], 3, seed=0, sampling=greedy)
    assert len(leaves) == 3
    assert said[:3] == [alone.token_ids] * 3  # turns that end may be followed by others
    assert not policy._sequences  # nothing is left in the engine


def finished(policy: TransformersPolicy) -> list[Completion]:
    while not (completions := policy.poll()):
        pass
    return completions


def noted(completions: list[Completion], said: list[list[int]]) -> list[Completion]:
    said.extend(completion.token_ids for completion in completions)
    return completions


def test_an_environment_that_answers_otherwise_gives_no_completion(make_continuer: Any) -> None:
    class Moody(Counting):
        """Greets differently in every reset."""

        opened = 0

        def tasks(self, split: str) -> list[Task]:
            Moody.opened += 1
            return [Task("t", f"Hello number {Moody.opened}.", "x")]

    trees = make_continuer().collect([0, 1], GroupPlan(size=1), seed=0)
    assert make_continuer(env=Moody).continue_from(prefixes_of(trees[:1])[:1], 2, seed=0) == [[]]
    assert Counter.live == 0


def test_a_broken_tool_gives_no_completion(make_continuer: Any) -> None:
    """666 breaks the counter; the other prefix is completed all the same."""
    trees = make_continuer().collect([0], GroupPlan(size=1), seed=0)
    good = prefixes_of(trees)[0]
    continuer = make_continuer()
    bad = Prefix(Tree.from_json(trees[0].to_json()), good.segment)
    turn = bad.tree.path(good.segment)[1]
    turn.token_ids = continuer._chat.turn_ids(call(666))[:-1]
    turn.action_mask, turn.logprobs, turn.entropies = ([1] * len(turn.token_ids) for _ in range(3))
    broken, fine = continuer.continue_from([bad, good], 2, seed=0)
    assert (len(broken), len(fine)) == (0, 2)


def test_misuse(make_continuer: Any) -> None:
    continuer = make_continuer()
    (tree,) = continuer.collect([0], GroupPlan(size=1), seed=0)
    with pytest.raises(ConfigError, match="ends with what the environment said"):
        continuer.continue_from([Prefix(tree, 1)], 2, seed=0)
    (end, *_) = prefixes_of([tree])
    tree.metadata.clear()
    with pytest.raises(ConfigError, match="'train-0' does not say which task"):
        continuer.continue_from([end], 2, seed=0)
