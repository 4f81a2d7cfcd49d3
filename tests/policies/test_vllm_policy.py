"""`VllmPolicy` over engines in memory: the pump, failures, weights, memory, threads."""

import asyncio
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_models import make_tiny_llama
from vllm_engines import MemoryEngine, MemoryWeights, refusal

from agentrl.errors import ConfigError, InfrastructureError, PolicyError
from agentrl.policies.core import Completion, Failure, Request, Sampling
from agentrl.policies.vllm.engine import BrokenModelError, EngineLostError
from agentrl.policies.vllm.policy import VllmPolicy
from agentrl.policies.vllm.weights import WeightFiles

Open = Callable[..., tuple[VllmPolicy, list[MemoryEngine]]]


@pytest.fixture
def open_policy(byte_tokenizer: Any) -> Iterator[Open]:
    """Opens policies over engines of some sizes."""
    policies: list[VllmPolicy] = []

    def open_it(*sizes: int, **options: Any) -> tuple[VllmPolicy, list[MemoryEngine]]:
        engines: list[MemoryEngine] = []

        async def make() -> list[MemoryEngine]:
            engines.extend(MemoryEngine(f"engine {i}", size) for i, size in enumerate(sizes))
            return engines

        parts: dict[str, Any] = {
            "tokenizer": byte_tokenizer,
            "end_of_turn_ids": [2],
            "vocab_size": 261,
            "context_length": 50,
            "weights": MemoryWeights(),
            "probe_s": 0.0,
        }
        policies.append(VllmPolicy(make, **parts | options))
        return policies[-1], engines

    yield open_it
    for policy in policies:
        policy.close()


def request(sequence: int, **changes: Any) -> Request:
    return Request(**({"sequence": sequence, "token_ids": [1, 2, 3], "max_tokens": 4, "seed": sequence} | changes))


def gather(policy: VllmPolicy, count: int) -> dict[int, Completion | Failure]:
    """Polls until so many requests are answered."""
    done: dict[int, Completion | Failure] = {}
    while len(done) < count:
        done.update({outcome.sequence: outcome for outcome in policy.poll()})
    return done


def in_loop(policy: VllmPolicy, act: Callable[[], object]) -> None:
    """Runs something in the policy's loop, where its engines live, and waits for it."""

    async def run() -> None:
        act()

    policy._loop.run(run())


def test_turns_come_back_by_sequence(open_policy: Open) -> None:
    policy, _ = open_policy(4, 4)
    for i in range(20):
        policy.submit(request(i))
    done = gather(policy, 20)
    assert {i: outcome.token_ids for i, outcome in done.items() if isinstance(outcome, Completion)} == {
        i: [i] for i in range(20)
    }
    assert policy.poll() == []


def test_a_slow_turn_delays_no_other(open_policy: Open) -> None:
    policy, (first, second) = open_policy(1, 8)
    policy.submit(request(0))  # brings the weights; goes to the second, which has more room
    gather(policy, 1)
    in_loop(policy, second.gate.clear)
    policy.submit(request(0))
    for i in range(1, 4):
        policy.submit(request(i))
    finished: set[int] = set()
    in_loop(policy, lambda: None)
    assert policy._in_flight.keys() == {0, 1, 2, 3}
    in_loop(policy, second.gate.set)
    finished = set(gather(policy, 4))
    assert finished == {0, 1, 2, 3}
    assert first.most_in_flight <= 1


def test_misuse(open_policy: Open) -> None:
    policy, _ = open_policy(4)
    with pytest.raises(PolicyError, match="exceeds the model's context of 50"):
        policy.submit(request(0, token_ids=[1] * 47))
    with pytest.raises(ConfigError, match="samples at temperature"):
        policy.submit(request(0, sampling=Sampling(temperature=3.0)))
    policy.submit(request(0))
    with pytest.raises(PolicyError, match="in flight already"):
        policy.submit(request(0))
    policy.release(99)


def test_a_released_turn_is_cancelled_and_never_heard_of(open_policy: Open) -> None:
    policy, (engine,) = open_policy(4)
    policy.weights_changed()
    in_loop(policy, engine.gate.clear)
    for i in (0, 1):
        policy.submit(request(i))
    while len(engine.seeds) < 2:
        in_loop(policy, lambda: None)
    policy.release(0)
    policy.submit(request(0, seed=7))  # the same name for something else
    while len(engine.seeds) < 3:
        in_loop(policy, lambda: None)
    assert engine.num_cancelled == 1
    in_loop(policy, engine.gate.set)
    done = gather(policy, 2)
    assert {i: outcome.token_ids for i, outcome in done.items() if isinstance(outcome, Completion)} == {0: [7], 1: [1]}


def test_turns_that_are_released_before_they_begin_leave_nothing(open_policy: Open) -> None:
    policy, _ = open_policy(4)
    policy.weights_changed()
    hold = threading.Event()
    policy._loop.post(hold.wait)  # nothing begins before all are released
    for sequence in range(50):
        policy.submit(request(sequence))
        policy.release(sequence)
    hold.set()
    policy.submit(request(50))
    gather(policy, 1)
    in_loop(policy, lambda: None)
    assert policy._tasks == {}


def test_a_turn_that_ended_before_its_release_is_not_handed_out(open_policy: Open) -> None:
    policy, _ = open_policy(4)
    policy.submit(request(0))
    while policy._outcomes.empty():
        in_loop(policy, lambda: None)
    policy.release(0)
    policy.submit(request(1))
    assert set(gather(policy, 1)) == {1}


def test_a_turn_s_own_failure_is_an_outcome(open_policy: Open) -> None:
    policy, (engine,) = open_policy(4)
    policy.weights_changed()
    engine.errors = [InfrastructureError("out of memory")]
    policy.submit(request(0))
    policy.submit(request(1))
    done = gather(policy, 2)
    failures = [outcome for outcome in done.values() if isinstance(outcome, Failure)]
    assert [str(failure.error) for failure in failures] == ["out of memory"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (BrokenModelError("NaN"), "NaN"),
        (PolicyError("no"), "no"),
        (ZeroDivisionError("oops"), "ZeroDivisionError oops"),
    ],
)
def test_what_concerns_everybody_is_raised(open_policy: Open, error: Exception, message: str) -> None:
    policy, (engine,) = open_policy(4)
    policy.weights_changed()
    engine.errors = [error]
    policy.submit(request(0))
    with pytest.raises(PolicyError, match=message):
        gather(policy, 1)


def test_no_engine_left(open_policy: Open) -> None:
    policy, engines = open_policy(4, 4, grace_s=0.0)
    policy.weights_changed()
    for engine in engines:
        engine.is_alive = False
    for i in range(8):
        policy.submit(request(i))
    with pytest.raises(PolicyError, match="engine 0 is dead"):
        gather(policy, 8)


def test_engines_that_cannot_be_opened(byte_tokenizer: Any) -> None:
    async def fail() -> list[MemoryEngine]:
        raise EngineLostError("nobody there")

    threads = set(threading.enumerate())
    parts: Any = {"tokenizer": byte_tokenizer, "end_of_turn_ids": [2], "vocab_size": 261, "context_length": 50}
    with pytest.raises(EngineLostError, match="nobody there"):
        VllmPolicy(fail, weights=MemoryWeights(), **parts)
    assert set(threading.enumerate()) <= threads  # threads of other tests may have ended meanwhile


# Weights -------------------------------------------------------------------------------------------------------------


def test_the_first_request_brings_the_weights_that_are_trained(open_policy: Open) -> None:
    """A run that is resumed at version 7 must not begin with what the server was started with."""
    policy, engines = open_policy(4, 4, version=7)
    policy.submit(request(0))
    (done,) = gather(policy, 1).values()
    assert isinstance(done, Completion)
    assert done.policy_version == 7
    assert [[version for _, version in engine.loads] for engine in engines] == [[7], [7]]


def test_updates_count(open_policy: Open) -> None:
    weights = MemoryWeights()
    policy, (engine,) = open_policy(4, weights=weights)
    for version in (1, 2, 3):
        policy.weights_changed()
        assert policy.version == version
        assert engine.loads[-1] == (Path(f"v{version}.safetensors"), version)
        policy.submit(request(0))
        (done,) = gather(policy, 1).values()
        assert isinstance(done, Completion)
        assert done.policy_version == version
    assert weights.loaded == [1, 2, 3]
    assert weights.num_closed == 0
    policy.close()
    assert weights.num_closed == 1


def test_refused_weights_are_not_counted(open_policy: Open) -> None:
    weights = MemoryWeights()
    policy, (engine,) = open_policy(4, weights=weights)
    policy.weights_changed()
    engine.load_errors = [refusal()]
    with pytest.raises(PolicyError, match="No vLLM engine took"):
        policy.weights_changed()
    assert policy.version == 1
    assert (weights.loaded, weights.refused) == ([1], [2])


def test_an_engine_that_comes_back_finds_the_weights_in_force(open_policy: Open, tmp_path: Path) -> None:
    """Also when those after them were refused, and when the same version has been written twice."""
    policy, (engine,) = open_policy(4, weights=WeightFiles(make_tiny_llama(64), tmp_path), sleeps=True)
    policy.weights_changed()
    with policy.yield_memory():
        pass
    engine.load_errors = [refusal()]
    with pytest.raises(PolicyError, match="No vLLM engine took"):
        policy.submit(request(0))
    engine.load_errors = [refusal()]
    with pytest.raises(PolicyError, match="No vLLM engine took"):
        policy.weights_changed()
    policy._is_blank = False  # or else the next request would bring them itself
    policy.submit(request(0))
    gather(policy, 1)
    path, version = engine.loads[-1]
    assert version == 1
    assert list(path.parent.iterdir()) == [path]
    policy.close()
    assert list(tmp_path.iterdir()) == []


def test_a_thread_updates_while_another_one_samples(open_policy: Open) -> None:
    """Versions never go back within a sequence of turns, and every turn has one that existed when it was asked for."""
    policy, _ = open_policy(4, 4)
    seen: list[tuple[int, int]] = []
    halt = threading.Event()

    def sample() -> None:
        sequence = 0
        while not halt.is_set():
            asked_at = policy.version
            policy.submit(request(sequence))
            (done,) = gather(policy, 1).values()
            assert isinstance(done, Completion)
            seen.append((asked_at, done.policy_version))
            sequence += 1

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        for _ in range(50):
            policy.weights_changed()
    finally:
        halt.set()
        thread.join()
    assert all(version >= asked_at for asked_at, version in seen)
    assert [version for _, version in seen] == sorted(version for _, version in seen)
    assert policy.version == 50


# Memory --------------------------------------------------------------------------------------------------------------


def test_memory_is_yielded_and_the_weights_come_back(open_policy: Open) -> None:
    policy, (engine,) = open_policy(4, sleeps=True)
    policy.weights_changed()
    with policy.yield_memory():
        assert engine.is_asleep
        with pytest.raises(PolicyError, match="asleep"):
            policy.submit(request(0))
    assert not engine.is_asleep
    policy.weights_changed()
    policy.submit(request(0))
    gather(policy, 1)
    assert [version for _, version in engine.loads] == [1, 2]
    with policy.yield_memory():
        pass
    policy.submit(request(0))  # without an update: the same weights again
    gather(policy, 1)
    assert [version for _, version in engine.loads] == [1, 2, 2]


def test_the_trainer_gives_back_what_it_does_not_use_before_the_engine_wakes(
    open_policy: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, (engine,) = open_policy(4, sleeps=True)
    asleep: list[bool] = []
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: asleep.append(engine.is_asleep))
    with policy.yield_memory():
        assert asleep == []
    assert asleep == [True]


def test_memory_is_kept_unless_it_was_set_up(open_policy: Open) -> None:
    policy, (engine,) = open_policy(4)
    with policy.yield_memory():
        assert not engine.is_asleep


def test_nobody_sleeps_under_a_turn(open_policy: Open) -> None:
    policy, _ = open_policy(4, sleeps=True)
    policy.submit(request(0))
    with pytest.raises(PolicyError, match="1 turns are being sampled"), policy.yield_memory():
        pass
    gather(policy, 1)


# Life ----------------------------------------------------------------------------------------------------------------


def test_metrics_are_those_since_the_last_time(open_policy: Open) -> None:
    policy, _ = open_policy(4)
    for count in (3, 2):
        for i in range(count):
            policy.submit(request(i))
        gather(policy, count)
        metrics = policy.metrics()
        names = ("engine_requests", "engine_cached_tokens", "engine_prefilled_tokens")
        assert [metrics[name] for name in names] == [count, count, 2 * count]
        assert metrics["engine_live_engines"] == 1
        assert metrics["engine_mean_in_flight"] > 0
    assert policy.counters.requests == 5


def test_closing(open_policy: Open) -> None:
    threads = set(threading.enumerate())
    policy, engines = open_policy(4, 4)
    with policy:
        policy.weights_changed()
        in_loop(policy, engines[0].gate.clear)
        policy.submit(request(0))
    assert [engine.num_closed for engine in engines] == [1, 1]
    assert set(threading.enumerate()) <= threads
    policy.close()
    for act in (policy.poll, policy.weights_changed, lambda: policy.submit(request(1)), policy.sleep):
        with pytest.raises(PolicyError):
            act()
    policy.release(0)


def test_a_loop_that_dies_is_noticed(open_policy: Open) -> None:
    policy, (engine,) = open_policy(4)
    policy.weights_changed()
    in_loop(policy, engine.gate.clear)
    policy.submit(request(0))

    async def wait() -> None:
        await asyncio.Event().wait()

    policy._loop.post(policy._loop._loop.stop)
    with pytest.raises(PolicyError, match="has ended"):
        gather(policy, 1)
    with pytest.raises(PolicyError, match="has ended"):
        policy._loop.run(wait())
    policy.close()


def test_a_forked_process_is_told_and_harms_nobody(open_policy: Open) -> None:
    policy, (engine,) = open_policy(4)
    policy.submit(request(0))
    gather(policy, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads is what is tested
        child = os.fork()
    if child == 0:
        told = 0
        for act in (policy.poll, policy.weights_changed, lambda: policy.submit(request(1))):
            try:
                act()
            except PolicyError as error:
                told += "forked" in str(error)
        policy.close()
        os._exit(0 if told == 3 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    policy.submit(request(1))
    gather(policy, 1)
    assert engine.num_closed == 0
