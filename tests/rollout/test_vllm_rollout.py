"""Rollouts over vLLM servers: the same trees as without them, also when one of them dies."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rollout_scripts import Counter, SlowCounting, random_script
from tiny_models import make_tiny_llama
from vllm_server import FakeVllm, Serve, serving

from agentrl.errors import InfrastructureError, PolicyError
from agentrl.policies.core import Completion, Failure, Request
from agentrl.policies.scripted import ScriptedPolicy
from agentrl.policies.vllm.connection import Deadlines
from agentrl.policies.vllm.policy import VllmPolicy
from agentrl.policies.vllm.server import open_servers
from agentrl.policies.vllm.weights import WeightFiles
from agentrl.rollout.plan import BranchRule, GroupPlan
from agentrl.trajectory import Tree

Open = Callable[..., VllmPolicy]
PLAN = GroupPlan(size=4)


def say(body: dict[str, Any], text: str) -> str:
    """The replies of the scripted policy."""
    if "assistant" not in text:
        return "Good morning."  # to the check at the beginning
    request: Any = SimpleNamespace(seed=body["sampling_params"]["seed"])
    return random_script(request, text).text


@pytest.fixture
def serve(byte_tokenizer: Any) -> Iterator[Serve]:
    with serving(byte_tokenizer) as start:
        yield start


@pytest.fixture
def open_policy(byte_tokenizer: Any, chat: Any, tmp_path: Path) -> Iterator[Open]:
    policies: list[VllmPolicy] = []

    def open_it(*servers: FakeVllm, **options: Any) -> VllmPolicy:
        urls = [server.url for server in servers]
        policy = VllmPolicy(
            lambda: open_servers(urls, context_length=2048, num_top=20, deadlines=Deadlines(turn_s=60)),
            tokenizer=byte_tokenizer,
            end_of_turn_ids=chat.end_ids,
            vocab_size=len(byte_tokenizer),
            context_length=2048,
            weights=WeightFiles(make_tiny_llama(64), tmp_path),
            **{"probe_s": 0.01} | options,
        )
        policies.append(policy)
        return policy

    yield open_it
    for policy in policies:
        policy.close()


def texts(trees: list[Tree]) -> list[Any]:
    """Everything in the trees that does not depend on the engine's arithmetic."""
    return [
        (
            [(s.id, s.parent, s.origin, s.token_ids, s.action_mask) for s in tree.segments],
            [(leaf.segment, leaf.stop_reason, leaf.reward, leaf.success) for leaf in tree.leaves],
        )
        for tree in trees
    ]


@pytest.fixture
def expected(make_collector: Any) -> list[Any]:
    return texts(make_collector(random_script).collect(range(4), PLAN, seed=3))


def test_the_trees_are_those_of_the_scripted_policy(
    make_collector: Any, open_policy: Open, serve: Serve, expected: list[Any]
) -> None:
    """Two servers, tools in threads; nothing of it shows. Prompts are found in the cache of the server they are at."""
    servers = serve(say, max_num_seqs=6), serve(say, max_num_seqs=6)
    policy = open_policy(*servers)
    trees = make_collector(env=SlowCounting, policy=policy).collect(range(4), PLAN, seed=3)
    assert texts(trees) == expected
    assert all(server.bodies for server in servers)
    assert max(server.most_running for server in servers) <= 6
    assert policy.counters.cached_tokens > policy.counters.prefilled_tokens
    sampled = [s for tree in trees for s in tree.segments if s.origin == "assistant"]
    assert all(all(p < 0 for p in s.logprobs) and all(h > 0 for h in s.entropies) for s in sampled)


@pytest.mark.parametrize("turns", [3, 4, 10, 20])
def test_one_of_two_servers_dies_and_nobody_notices(
    make_collector: Any, open_policy: Open, serve: Serve, expected: list[Any], turns: int
) -> None:
    """The first dies under a turn, with others in flight (two of the turns are those of the check at the beginning).

    The other one answers none before that, and holds at most four of the sixteen episodes: the twelve shortest have 31
    turns, so that the first gets its last one whichever episodes those are.
    """
    hang = threading.Event()
    dying, other = serve(say, dies_after=turns), serve(say, max_num_seqs=4)
    policy = open_policy(dying, other)
    other.hang, dying.on_death = hang, hang.set
    trees = make_collector(policy=policy).collect(range(4), PLAN, seed=3)
    assert texts(trees) == expected
    assert dying.is_dead
    assert policy.counters.lost_engines == 1
    assert policy.counters.retried >= 1


def test_a_server_that_is_started_again_takes_part_again(
    make_collector: Any, open_policy: Open, serve: Serve, expected: list[Any]
) -> None:
    """The other one answers no turn before that, so that without it nothing would get done."""
    hang = threading.Event()
    dying, other = serve(say, dies_after=4), serve(say)
    policy = open_policy(dying, other)
    other.hang = hang

    def restart() -> None:
        dying.on_turn = lambda body: hang.set()
        dying.restart()

    dying.on_death = lambda: threading.Thread(target=restart).start()
    trees = make_collector(policy=policy).collect(range(4), PLAN, seed=3)
    assert texts(trees) == expected
    assert dying.version == 0  # it got the current weights before its first turn
    assert policy.counters.lost_engines >= 1


def test_without_any_server_the_rollout_ends_with_their_errors(
    make_collector: Any, open_policy: Open, serve: Serve
) -> None:
    servers = serve(say, dies_after=4), serve(say, dies_after=6)
    policy = open_policy(*servers, grace_s=0.1)
    with pytest.raises(PolicyError, match=f"{servers[0].url}.*{servers[1].url}"):
        make_collector(policy=policy).collect(range(4), PLAN, seed=3)


def test_nan_ends_the_rollout(make_collector: Any, open_policy: Open, serve: Serve) -> None:
    server = serve(say)
    policy = open_policy(server)
    server.on_turn = lambda body: setattr(server, "is_nan", len(server.bodies) > 8)
    with pytest.raises(PolicyError, match="NaN"):
        make_collector(policy=policy).collect(range(4), PLAN, seed=3)


def test_an_update_between_two_rollouts(make_collector: Any, open_policy: Open, serve: Serve) -> None:
    servers = serve(say), serve(say)
    policy = open_policy(*servers)
    collector = make_collector(policy=policy)
    for version in (0, 1, 2):
        trees = collector.collect(range(2), PLAN, seed=3)
        assert {s.policy_version for tree in trees for s in tree.segments if s.origin == "assistant"} == {version}
        policy.weights_changed()
    assert [server.version for server in servers] == [3, 3]


class Failing(ScriptedPolicy):
    """Cannot answer some requests."""

    def __init__(self, *arguments: Any, fails: Callable[[Completion], bool], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._fails = fails

    def poll(self) -> Any:
        error = InfrastructureError("the engine is out of memory")
        return [Failure(sequence=c.sequence, error=error) if self._fails(c) else c for c in super().poll()]


def failing(byte_tokenizer: Any, chat: Any, fails: Callable[[Completion], bool]) -> Failing:
    return Failing(byte_tokenizer, random_script, end_of_turn_id=chat.end_of_turn_id, fails=fails)


def test_a_failed_request_makes_an_invalid_leaf_and_nothing_else(
    make_collector: Any, byte_tokenizer: Any, chat: Any, expected: list[Any]
) -> None:
    """The third sequence fails at its first turn, and every turn that is an answer of the sixth."""
    polled: dict[int, int] = {}

    def fails(completion: Completion) -> bool:
        polled[completion.sequence] = polled.get(completion.sequence, 0) + 1
        return completion.sequence == 2 or (completion.sequence == 5 and polled[5] == 2)

    trees = make_collector(policy=failing(byte_tokenizer, chat, fails)).collect(range(4), PLAN, seed=3)
    leaves = [leaf for tree in trees for leaf in tree.leaves]
    broken = [(leaf.num_turns, leaf.error) for leaf in leaves if not leaf.valid]
    assert broken == [
        (0, "InfrastructureError: the engine is out of memory"),
        (1, "InfrastructureError: the engine is out of memory"),
    ]
    assert len(leaves) == 16
    assert sum(leaf.success for leaf in leaves) <= sum(success for _, ends in expected for *_, success in ends)


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_group_that_branches_survives_failures(
    make_collector: Any, byte_tokenizer: Any, chat: Any, dynamic: bool
) -> None:
    """The very first request fails, which is the probe of a dynamic plan; the group is filled up all the same."""
    requests: list[Request] = []
    policy = failing(byte_tokenizer, chat, lambda completion: completion.sequence == requests[0].sequence)
    submit = policy.submit

    def watched(request: Request) -> None:
        requests.append(request)
        submit(request)

    policy.submit = watched  # type: ignore[method-assign]
    plan = GroupPlan(size=6, rule=BranchRule.AEPO, dynamic=True) if dynamic else GroupPlan(size=6)
    (tree,) = make_collector(policy=policy).collect([0], plan, seed=0)
    assert [leaf.valid for leaf in tree.leaves] == [False] + [True] * 5
    assert Counter.live == 0
