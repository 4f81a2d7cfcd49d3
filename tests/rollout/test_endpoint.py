"""Episodes with a real server on this machine, which solves tasks, refuses, stalls, dies and lies."""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import pytest
from chat_server import Body, Brain, ModelServer, refuses, says, serving
from http_server import hang_up, reply, stall, unused_address
from rollout_scripts import Counting, call
from search_server import SkippingTime

from agentrl import json_service
from agentrl.envs import TextSpace
from agentrl.errors import ConfigError, PolicyError
from agentrl.evaluation import evaluate, format_report
from agentrl.json_service import Patience
from agentrl.policies.core import Sampling
from agentrl.rollout.chat_api import ChatServer
from agentrl.rollout.collector import RolloutLimits
from agentrl.rollout.endpoint import EndpointCollector
from agentrl.rollout.plan import BranchRule, GroupPlan
from agentrl.trajectory import StopReason, Tree

Serve = Callable[[Brain], ModelServer]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    with serving(monkeypatch) as start:
        yield start
    for thread in threading.enumerate():  # nobody waits for them after an error, but they end
        if thread.name == "episode":
            thread.join(60)


def counts(body: Body) -> Body:
    """Adds once, then tells the total: solves every task of Counting."""
    last = body["messages"][-1]
    if last["role"] == "tool":
        return says(last["content"], tokens=3)
    return says(None, ("add", f'{{"amount": {last["content"].split()[-1][:-1]}}}'), tokens=20)


def counts_in_text(body: Body) -> Body:
    """The same without structured calls."""
    last = body["messages"][-1]["content"]
    if "<tool_response>" in last:
        return says(last.split("\n")[1])
    return says(call(int(last.split()[-1][:-1])))


def collect(server: ModelServer, tasks: int = 1, size: int = 1, *, env: Any = Counting, **options: Any) -> list[Tree]:
    names = ("api_key", "timeout_s")
    model = ChatServer(server.url, "tiny", **{name: options.pop(name) for name in names if name in options})
    run = {name: options.pop(name) for name in ("seed", "sampling", "on_tree") if name in options}
    collector = EndpointCollector(model, env, limits=RolloutLimits(**options))
    return collector.collect(range(tasks), GroupPlan(size=size), **{"seed": 0, **run})


def asked_seeds(server: ModelServer) -> dict[tuple[str, int], list[int]]:
    """Seeds by task and turn."""
    seeds: dict[tuple[str, int], list[int]] = {}
    for body in server.bodies:
        turn = sum(message["role"] == "assistant" for message in body["messages"])
        seeds.setdefault((body["messages"][0]["content"], turn), []).append(body["seed"])
    return {key: sorted(values) for key, values in seeds.items()}


def test_a_solved_task_message_by_message(serve: Serve) -> None:
    server = serve(counts)
    (tree,) = collect(server, sampling=Sampling(temperature=0.5), max_turn_tokens=99)
    (leaf,) = tree.leaves
    assert (tree.task_id, leaf.success, leaf.reward, leaf.answer) == ("train-0", True, 1.0, "total 0")
    assert (leaf.num_turns, leaf.tool_calls, leaf.stop_reason) == (2, {"add": 1}, StopReason.ANSWERED)
    assert (tree.num_tokens, tree.metadata) == (0, {"task": 0, "sampled_tokens": [23]})  # 20 + 3
    first, second = server.bodies
    assert first.pop("seed") != second.pop("seed")
    question = {"role": "user", "content": "Count to 0."}
    function = {"name": "add", "arguments": '{"amount": 0}'}
    assert first == {
        "model": "tiny",
        "messages": [question],
        "tools": [Counting.tools[0].schema],
        "temperature": 0.5,
        "max_tokens": 99,
    }
    assert second["messages"] == [
        question,
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "id-0", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "id-0", "content": "total 0"},
    ]
    assert server.keys == [None, None]


def test_leaves_say_in_which_states_turns_were_taken_and_which_episode_they_are(serve: Serve) -> None:
    class Named(Counting):
        def state_key(self, task: Any, episode: Any) -> str:
            return f"after {len(episode.calls)}"

    leaves = collect(serve(counts), size=3, env=Named)[0].leaves
    assert [(leaf.root, leaf.state_keys) for leaf in leaves] == [(i, ["after 0", "after 1"]) for i in range(3)]


def test_truncated_sampling_is_sent_only_where_it_is_asked_for(serve: Serve) -> None:
    server = serve(counts)
    collect(server, sampling=Sampling(temperature=0.0, top_p=0.9, top_k=5))
    assert [(b["temperature"], b["top_p"], b["top_k"]) for b in server.bodies] == [(0.0, 0.9, 5)] * 2


def test_groups_come_back_in_order_whatever_finishes_first(serve: Serve) -> None:
    def brain(body: Body) -> Body:
        time.sleep(0.001 * (body["seed"] % 20))
        return counts(body)

    seen: list[str] = []
    trees = collect(serve(brain), tasks=6, size=3, on_tree=lambda tree: seen.append(tree.task_id))
    assert [tree.task_id for tree in trees] == [f"train-{i}" for i in range(6)]
    assert [[leaf.answer for leaf in tree.leaves] for tree in trees] == [[f"total {i}"] * 3 for i in range(6)]
    assert sorted(seen) == [tree.task_id for tree in trees]


def test_attempts_come_back_in_order_whatever_finishes_first(serve: Serve) -> None:
    def brain(body: Body) -> Body:
        time.sleep(0.001 * (body["seed"] % 20))
        return says(str(body["seed"]))

    one, many = (collect(serve(brain), tasks=2, size=8, max_concurrent_episodes=n) for n in (1, 8))
    assert [[leaf.answer for leaf in tree.leaves] for tree in many] == [
        [leaf.answer for leaf in tree.leaves] for tree in one
    ]


def test_seeds_depend_on_task_attempt_and_turn_alone(serve: Serve) -> None:
    runs = []
    for workers in (1, 8):
        server = serve(counts)
        collect(server, tasks=4, size=3, max_concurrent_episodes=workers, seed=5)
        runs.append(asked_seeds(server))
    assert runs[0] == runs[1]
    drawn = [seed for seeds in runs[0].values() for seed in seeds]
    assert len(set(drawn)) == len(drawn) == 4 * 3 * 2
    other = serve(counts)
    collect(other, tasks=4, size=3, seed=6)
    assert asked_seeds(other) != runs[0]


def test_requests_run_side_by_side_and_no_more_than_allowed(serve: Serve) -> None:
    lock, together = threading.Lock(), threading.Barrier(3)
    running, most = 0, 0

    def brain(body: Body) -> Body:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        if body["messages"][-1]["role"] == "tool":
            together.wait(60)  # breaks unless three are here at once
        with lock:
            running -= 1
        return counts(body)

    trees = collect(serve(brain), tasks=6, max_concurrent_episodes=3)
    assert all(tree.leaves[0].success for tree in trees)
    assert most == 3


def test_calls_in_the_text_work_as_well(serve: Serve) -> None:
    server = serve(counts_in_text)
    assert all(tree.leaves[0].success for tree in collect(server, tasks=3))
    assert all("tools" in body for body in server.bodies)


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ('"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set', 400),  # vLLM
        ("registry.ollama.ai/library/gemma does not support tools", 400),
        ("No endpoints found that support tool use.", 404),
    ],
)
def test_a_server_that_refuses_tools_gets_them_described(serve: Serve, text: str, status: int) -> None:
    def brain(body: Body) -> Any:
        if "tools" in body:
            return refuses(text, status)
        answer = counts_in_text(body)
        content = answer["choices"][0]["message"]["content"]
        return says(content.split("</tool_call>")[0] if body.get("stop") == ["</tool_call>"] else content)

    server = serve(brain)
    assert all(tree.leaves[0].success for tree in collect(server, tasks=4))
    assert sum("tools" in body for body in server.bodies) == 1  # asked once, and remembered for all
    assert {tuple(body.get("stop", ())) for body in server.bodies if "tools" not in body} == {("</tool_call>",)}
    instructions = server.bodies[-1]["messages"][0]
    assert instructions["role"] == "system"
    assert json.dumps(Counting.tools[0].schema) in instructions["content"]
    assert {message["role"] for body in server.bodies for message in body["messages"]} == {
        "system",
        "user",
        "assistant",
    }


def test_a_server_with_the_newer_name_of_the_limit(serve: Serve) -> None:
    def brain(body: Body) -> Any:
        if "max_tokens" in body:
            return refuses("'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.")
        return counts(body)

    server = serve(brain)
    assert collect(server, max_turn_tokens=50)[0].leaves[0].success
    assert [body.get("max_completion_tokens") for body in server.bodies] == [None, 50, 50]


def test_two_calls_in_a_turn_and_a_bad_one(serve: Serve) -> None:
    def brain(body: Body) -> Body:
        turn = sum(message["role"] == "assistant" for message in body["messages"])
        if turn == 0:
            return says(None, ("add", '{"amount": 1}'), ("add", '{"amount": 2}'))
        return says(None, ("add", '{"amount": ')) if turn == 1 else says("total 3")

    server = serve(brain)
    (leaf,) = collect(server)[0].leaves
    assert (leaf.num_turns, sum(leaf.tool_calls.values()), sum(leaf.tool_errors.values())) == (3, 3, 1)
    second, third = server.bodies[1]["messages"], server.bodies[2]["messages"]
    assert [(m.get("tool_call_id"), m["content"]) for m in second[2:]] == [("id-0", "total 1"), ("id-1", "total 3")]
    assert [message["role"] for message in third[4:]] == ["assistant", "user"]
    assert "Not valid JSON" in third[-1]["content"]


# Limits


def test_a_turn_that_was_cut_ends_the_episode_and_runs_no_tool(serve: Serve) -> None:
    def brain(body: Body) -> Body:
        return says(call(1), finish="length")

    (leaf,) = collect(serve(brain))[0].leaves
    assert (leaf.stop_reason, leaf.num_turns, leaf.tool_calls, leaf.success) == (StopReason.MAX_TOKENS, 1, {}, False)


def test_the_token_budget_of_an_episode(serve: Serve) -> None:
    def brain(body: Body) -> Body:
        return says(None, ("add", '{"amount": 1}'), tokens=20)  # 120 tokens with the conversation

    server = serve(brain)
    (leaf,) = collect(server, max_episode_tokens=130, max_turn_tokens=50)[0].leaves
    assert (leaf.stop_reason, leaf.num_turns) == (StopReason.MAX_TURNS, 6)
    assert [body["max_tokens"] for body in server.bodies] == [50, 10, 10, 10, 10, 10]
    server = serve(brain)
    (leaf,) = collect(server, max_episode_tokens=120)[0].leaves
    assert (leaf.stop_reason, len(server.bodies)) == (StopReason.MAX_TOKENS, 1)


def test_a_full_context_ends_the_episode_as_a_limit(serve: Serve) -> None:
    def brain(body: Body) -> Any:
        if len(body["messages"]) > 3:
            return refuses("This model's maximum context length is 2048 tokens.")
        return says(None, ("add", '{"amount": 1}'))

    (tree,) = collect(serve(brain))
    assert (tree.leaves[0].stop_reason, tree.leaves[0].num_turns) == (StopReason.MAX_TOKENS, 2)
    assert tree.leaves[0].valid


class Guessing(gymnasium.Env[str, str]):
    """A text environment that is no ToolEnv and never ends by itself."""

    observation_space = action_space = TextSpace()

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
        return "Guess.", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return "Lower.", float(action == "3"), action == "3", False, {}


def test_any_gymnasium_environment_of_text(serve: Serve) -> None:
    def brain(body: Body) -> Body:
        return says(str(10 - len(body["messages"])), tokens=None)  # 9, 7, 5, 3

    server = serve(brain)
    (tree,) = collect(server, env=Guessing)
    assert (tree.task_id, tree.leaves[0].success, tree.leaves[0].num_turns) == ("seed-0", True, 4)
    said = [message["content"] for message in server.bodies[-1]["messages"]]
    assert said == ["Guess.", "9", "Lower.", "7", "Lower.", "5", "Lower."]
    assert all("tools" not in body for body in server.bodies)


def test_an_episode_ends_even_if_nobody_counts(serve: Serve) -> None:
    (leaf,) = collect(serve(lambda body: says("", tokens=None)), env=Guessing, max_episode_tokens=60)[0].leaves
    # 4 + 6/4 for "Guess.", then 4 + 0 and 4 + 6/4 a turn: 5 + 9 n >= 60 at n = 7
    assert (leaf.stop_reason, leaf.num_turns) == (StopReason.MAX_TOKENS, 8)


# Failures


def failing_after_first(failure: Any) -> Brain:
    """Task 0 is solved; every other request fails."""
    return lambda body: counts(body) if body["messages"][0]["content"] == "Count to 0." else failure


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (hang_up, r"failed: .*\(tried \d+ times in 60 s\)"),
        (refuses("overloaded", 503), r"failed: .*\(tried \d+ times in 60 s\)"),
        (reply(b"later", 429, Retry_After="100"), r"HTTP status 429: 'later' \(tried once in 60 s\)"),
        (refuses("seed must be odd", 422), "refused the request with HTTP status 422.*seed must be odd"),
        (reply(b"<html>"), "does not speak the chat-completions protocol: Expecting value"),
        (reply({"choices": []}), 'protocol: "choices" is empty'),
        (reply(b"[" * 200_000), "protocol"),
    ],
)
def test_a_failure_after_the_first_answer_makes_its_episode_invalid(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, failure: Any, error: str
) -> None:
    monkeypatch.setattr(json_service, "time", SkippingTime())
    trees = collect(serve(failing_after_first(failure)), tasks=2, max_concurrent_episodes=1, timeout_s=60.0)
    assert_only_the_second_failed(trees, error)


def assert_only_the_second_failed(trees: list[Tree], error: str) -> None:
    first, second = trees
    assert first.leaves[0].success
    (leaf,) = second.leaves
    assert (second.task_id, leaf.stop_reason, leaf.valid) == ("train-1", StopReason.INVALID, False)
    assert re.search(error, leaf.error or "")


def test_a_server_that_falls_silent_makes_the_episode_invalid(serve: Serve) -> None:
    """Patience ends with the last answer, so that no other one can come too late."""

    def brain(body: Body) -> Any:
        if body["messages"][0]["content"] != "Count to 0.":
            return stall
        if body["messages"][-1]["role"] == "tool":
            model._service._patience = Patience(read_s=0.3, deadline_s=0.3)
        return counts(body)

    model = ChatServer(serve(brain).url, "tiny")
    collector = EndpointCollector(model, Counting, limits=RolloutLimits(max_concurrent_episodes=1))
    assert_only_the_second_failed(collector.collect(range(2), GroupPlan(size=1), seed=0), "Timeout")


def test_what_may_pass_is_tried_again(serve: Serve) -> None:
    failures = [
        hang_up,
        refuses("busy", 503),
        refuses("busy", 500),
        refuses("busy", 529),
        reply(b"", 429, Retry_After="0"),
    ]

    def brain(body: Body) -> Any:
        return failures.pop() if failures else counts(body)

    server = serve(brain)
    assert collect(server)[0].leaves[0].success
    assert len(server.bodies) == 5 + 2


def test_a_wait_that_the_server_asks_for_is_kept(serve: Serve) -> None:
    waits = [reply(b"", 429, Retry_After="1")]
    begun = time.monotonic()
    assert collect(serve(lambda body: waits.pop() if waits else counts(body)))[0].leaves[0].success
    assert time.monotonic() - begun >= 1.0


def test_a_broken_environment_makes_the_episode_invalid(serve: Serve) -> None:
    (leaf,) = collect(serve(lambda body: says(None, ("add", '{"amount": 666}'))))[0].leaves
    assert (leaf.valid, leaf.error) == (False, "InfrastructureError: the counter's server is gone")


def test_an_error_in_user_code_is_not_swallowed(serve: Serve) -> None:
    class Broken(Counting):
        def reward(self, task: Any, episode: Any) -> float:
            raise KeyError("a bug in the reward function")

    with pytest.raises(KeyError, match="bug in the reward"):
        collect(serve(counts), tasks=4, env=Broken)


def test_a_server_that_is_not_there_is_one_clear_error(serve: Serve) -> None:
    with unused_address() as address:
        url = f"http://{address}/v1"
        collector = EndpointCollector(ChatServer(url, "tiny"), Counting)
        with pytest.raises(PolicyError, match=rf"{url}/chat/completions failed: ConnectError.*Is the server running"):
            collector.collect(range(50), GroupPlan(size=4), seed=0)


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (refuses("no key", 401), "HTTP status 401: .*no key.*OPENAI_API_KEY"),
        (refuses("no such model", 404), "HTTP status 404: .*no such model.*Check the name of the model"),
        (refuses("temperature must be 1"), "HTTP status 400: .*temperature must be 1"),
        (refuses("no tools, no nothing"), "no tools, no nothing"),  # also refuses without them
        (refuses("maximum context length is 12 tokens"), "maximum context length is 12"),
        (reply(b"<html>"), "does not speak"),
        (reply(b"", 301, Location="http://127.0.0.1:1/"), "HTTP status 301"),
    ],
)
def test_a_failure_of_the_first_request_concerns_all(serve: Serve, failure: Any, message: str) -> None:
    server = serve(lambda body: failure)
    with pytest.raises(PolicyError, match=message):
        collect(server, tasks=20, max_concurrent_episodes=8)
    assert len(server.bodies) <= 2


def test_the_key_is_sent_and_never_shown(serve: Serve) -> None:
    server = serve(counts)
    collect(server, api_key="sk-12345")
    assert server.keys == ["Bearer sk-12345"] * 2
    echo = serve(lambda body: refuses("Incorrect key provided: sk-12345", 401))
    with pytest.raises(PolicyError, match=r"Incorrect key provided: \*\*\*") as caught:
        collect(echo, api_key="sk-12345")
    causes: list[str] = []
    error: BaseException | None = caught.value
    while error is not None:
        causes.append(repr(error))
        error = error.__cause__ or error.__context__
    assert "12345" not in " ".join(causes)


@pytest.mark.parametrize("key", ["", "sk\n1", "schlüssel"])
def test_a_key_that_no_header_can_hold_is_refused_unseen(key: str) -> None:
    with pytest.raises(ConfigError, match="API key") as caught:
        ChatServer("http://host", "m", api_key=key)
    assert not key or key not in str(caught.value)


def test_nobody_waits_for_a_stalled_server_after_an_error(serve: Serve) -> None:
    """As on Ctrl-C: the stalled request would take a minute."""

    def serves_who_came_first(body: Body) -> Any:
        if body["messages"][0] == server.bodies[0]["messages"][0]:
            return counts(body)
        return refuses("") if server.released.is_set() else stall

    server = serve(serves_who_came_first)

    def interrupt(tree: Tree) -> None:
        raise KeyboardInterrupt

    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        collect(server, tasks=2, max_concurrent_episodes=2, on_tree=interrupt)
    assert time.monotonic() - begun < 50
    server.released.set()


def test_a_served_model_cannot_branch(serve: Serve) -> None:
    collector = EndpointCollector(ChatServer("http://host", "m"), Counting)
    with pytest.raises(ConfigError, match="cannot branch"):
        collector.collect([0], GroupPlan(size=4, initial=2, rule=BranchRule.PAPER), seed=0)


# Reports


def report_on(server: ModelServer) -> str:
    collector = EndpointCollector(ChatServer(server.url, "tiny"), Counting)
    report, _ = evaluate(collector, range(3), environment="Counting train", policy="tiny", attempts=2)
    return format_report(report)


def test_the_report_counts_what_the_server_counted(serve: Serve) -> None:
    text = report_on(serve(counts))
    assert re.search(r"^success +100.0 % .* 6 of 6", text, re.MULTILINE)
    assert re.search(r"^tokens +23.0 sampled per episode$", text, re.MULTILINE)
    assert re.search(r"^tool add +1.00 calls per episode, 0 of 6 failed$", text, re.MULTILINE)


def test_tokens_that_nobody_counted_are_unknown_and_not_zero(serve: Serve) -> None:
    def sometimes_silent(body: Body) -> Body:
        answer = counts(body)
        if body["messages"][0]["content"] == "Count to 1.":
            del answer["usage"]
        return answer

    text = report_on(serve(sometimes_silent))
    assert re.search(r"^tokens +unknown: the server did not count them$", text, re.MULTILINE)
