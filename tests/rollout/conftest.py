"""Collectors over the counting environment, and a check that nothing stays open."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from rollout_scripts import Counter, Counting, random_script

from agentrl.chat.template import ChatFormat
from agentrl.envs import ToolEnv
from agentrl.policies.core import Request
from agentrl.policies.scripted import Reply, ScriptedPolicy
from agentrl.rollout.collector import Collector, RolloutLimits

Script = Callable[[Request, str], Reply]
MakeCollector = Callable[..., Collector]


@pytest.fixture(scope="session")
def chat(byte_tokenizer: Any) -> ChatFormat:
    return ChatFormat(byte_tokenizer)


@pytest.fixture
def make_collector(byte_tokenizer: Any, chat: ChatFormat) -> MakeCollector:
    def make(
        script: Script = random_script, env: Callable[[], ToolEnv] = Counting, policy: Any = None, **limits: Any
    ) -> Collector:
        policy = policy or ScriptedPolicy(byte_tokenizer, script, end_of_turn_id=chat.end_of_turn_id)
        return Collector(policy, chat, env, vocab_size=len(byte_tokenizer), limits=RolloutLimits(**limits))

    return make


@pytest.fixture(autouse=True)
def no_leaked_tools() -> Iterator[None]:
    before, threads = Counter.live, threading.active_count()
    yield
    assert Counter.live == before, "a tool was opened or forked and never closed"
    ends_at = time.monotonic() + 60
    while threading.active_count() > threads + 1 and time.monotonic() < ends_at:
        time.sleep(0.01)  # threads of servers that have sent their answer end by themselves
    assert threading.active_count() <= threads + 1
