"""Episodes with a model behind an OpenAI-compatible endpoint, for evaluation: text only, no token is seen."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import gymnasium

from agentrl.errors import ConfigError, InfrastructureError
from agentrl.policies.core import Sampling
from agentrl.rollout.chat_api import ChatReply, ChatServer, ContextFullError, Conversation
from agentrl.rollout.collector import RolloutLimits
from agentrl.rollout.plan import BranchRule, GroupPlan
from agentrl.rollout.track import TurnOutcome, finished_leaf, invalid_leaf, open_episode, play_turn
from agentrl.seeding import derive
from agentrl.trajectory import Leaf, Tree

_FAREWELL_S = 1.0
"""After a failure, time for the other episodes to close what they have open."""


@dataclass(frozen=True, slots=True)
class _Job:
    """One episode to play."""

    group: int
    task: int
    attempt: int
    seed: int


@dataclass(frozen=True, slots=True)
class _Episode:
    """What became of a job."""

    task_id: str
    leaf: Leaf
    sampled_tokens: int | None


class EndpointCollector:
    """Plays groups of independent episodes, each in a thread of its own; `Collector` for a served model.

    Args:
        server: The model.
        make_env: Makes an environment; called once per episode.
        limits: Bounds. `max_concurrent_episodes` is the number of requests that the server gets at a time;
            `max_episode_tokens` is counted as the server does, or estimated where it does not.
    """

    def __init__(
        self,
        server: ChatServer,
        make_env: Callable[[], gymnasium.Env[str, str]],
        *,
        limits: RolloutLimits | None = None,
    ) -> None:
        self.server = server
        self._make_env = make_env
        self._limits = limits or RolloutLimits(max_concurrent_episodes=16)

    def collect(
        self,
        tasks: Sequence[int],
        plan: GroupPlan,
        *,
        seed: int,
        sampling: Sampling | None = None,
        on_tree: Callable[[Tree], None] | None = None,
    ) -> list[Tree]:
        """Plays `plan.size` episodes of every task.

        Args:
            tasks: Indices into the environment's split; a task may occur several times.
            plan: Size of a group; without branching.
            seed: Sent along, derived for every turn; whether it makes anything repeatable is up to the server.
            sampling: Temperature 1 by default.
            on_tree: Called with every tree when it is complete, in order of completion.

        Returns:
            One tree per task, in the order of `tasks`, with one leaf per episode. Segments hold no tokens;
            `metadata["sampled_tokens"]` has what the server counted for each leaf, or None.

        Raises:
            ConfigError: The plan branches.
            PolicyError: The very first request failed.
        """
        if plan.rule is not BranchRule.NONE:
            raise ConfigError("A served model cannot branch: its sequences cannot be forked. Use the rule 'none'.")
        sampling = sampling or Sampling()
        jobs = [
            _Job(number, task, attempt, derive(seed, "group", number, task, attempt))
            for number, task in enumerate(tasks)
            for attempt in range(plan.size)
        ]
        groups: list[dict[int, _Episode]] = [{} for _ in tasks]
        trees: dict[int, Tree] = {}
        episodes = _in_threads(jobs, lambda job: self._play(job, sampling), self._limits.max_concurrent_episodes)
        with contextlib.closing(episodes):
            for job, episode in episodes:
                group = groups[job.group]
                group[job.attempt] = episode
                if len(group) == plan.size:
                    trees[job.group] = _tree(job.task, [group[attempt] for attempt in range(plan.size)])
                    if on_tree:
                        on_tree(trees[job.group])
        return [trees[number] for number in range(len(tasks))]

    def _play(self, job: _Job, sampling: Sampling) -> _Episode:
        env = self._make_env()
        rewards: list[float] = []
        state_keys: list[str | None] = []
        counts: list[int | None] = []
        used = 0
        try:
            opening = open_episode(env, job.task)
            task_id, state_key = opening.task_id, opening.state_key
            conversation = Conversation(list(opening.messages), list(opening.tools))
            while True:
                try:
                    seed = derive(job.seed, "turn", len(rewards))
                    reply = self._next_turn(conversation, used, sampling, seed)
                    outcome = _play_reply(env, reply)
                except InfrastructureError as error:
                    return _Episode(task_id, invalid_leaf(error, 0, len(rewards)), None)
                rewards.append(outcome.reward)
                if reply:
                    state_keys.append(state_key)
                    counts.append(reply.sampled_tokens)
                    conversation.record(reply, outcome.messages)
                    used = conversation.estimated_tokens if reply.total_tokens is None else reply.total_tokens
                state_key = outcome.state_key
                if outcome.stop_reason is not None:
                    leaf = finished_leaf(outcome, 0, rewards, state_keys=state_keys)
                    return _Episode(task_id, leaf, _total(counts))
        finally:
            env.close()

    def _next_turn(self, conversation: Conversation, used: int, sampling: Sampling, seed: int) -> ChatReply | None:
        """The model's turn, or None if there is no room for one."""
        room = self._limits.max_episode_tokens - used
        if room < 1:
            return None
        try:
            max_tokens = min(room, self._limits.max_turn_tokens)
            return self.server.complete(conversation, max_tokens=max_tokens, sampling=sampling, seed=seed)
        except ContextFullError:
            return None


def _play_reply(env: gymnasium.Env[str, str], reply: ChatReply | None) -> TurnOutcome:
    if reply is None:
        return play_turn(env, "", truncate=True)
    return play_turn(env, reply.text, truncate=reply.cut)


def _total(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _tree(task: int, episodes: Sequence[_Episode]) -> Tree:
    """The episodes of a task, each with a segment of its own that is empty."""
    counts = [episode.sampled_tokens for episode in episodes]
    tree = Tree(episodes[0].task_id, metadata={"task": task, "sampled_tokens": counts})
    root = tree.add(None, "prompt", 0, [])
    for number, episode in enumerate(episodes):
        episode.leaf.segment = tree.add(root.id, "assistant", 0, []).id
        episode.leaf.root = number
        tree.leaves.append(episode.leaf)
    return tree


def _in_threads(
    jobs: Sequence[_Job], play: Callable[[_Job], _Episode], num_threads: int
) -> Generator[tuple[_Job, _Episode]]:
    """Plays jobs in their order and gives them back as they finish.

    The threads are daemons that nobody waits for long after a failure: a request can take minutes, and Ctrl-C must not.
    """
    waiting: queue.SimpleQueue[_Job] = queue.SimpleQueue()
    for job in jobs:
        waiting.put(job)
    done: queue.SimpleQueue[tuple[_Job, _Episode | BaseException]] = queue.SimpleQueue()
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            try:
                job = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((job, play(job)))
            except BaseException as error:
                done.put((job, error))

    threads = [threading.Thread(target=work, name="episode", daemon=True) for _ in range(min(num_threads, len(jobs)))]
    for thread in threads:
        thread.start()
    try:
        for _ in jobs:
            job, outcome = done.get()
            if isinstance(outcome, BaseException):
                raise outcome
            yield job, outcome
    finally:
        stop.set()
        ends_at = time.monotonic() + _FAREWELL_S
        for thread in threads:
            thread.join(max(0.0, ends_at - time.monotonic()))
