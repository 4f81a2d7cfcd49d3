"""Going on from the middle of an episode: several completions of one prefix, for Monte Carlo values of its turns."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gymnasium

from agentrl.envs import ToolEnv
from agentrl.errors import ConfigError, InfrastructureError, UnforkableStateError
from agentrl.journal import RepeatedCalls
from agentrl.policies.core import Sampling
from agentrl.rollout.collector import Collector
from agentrl.rollout.group import Group
from agentrl.rollout.plan import GroupPlan
from agentrl.rollout.track import Track, fork_env, invalid_leaf, open_episode, play_turn
from agentrl.seeding import derive
from agentrl.trajectory import Leaf, Segment, Tree


@dataclass(frozen=True, slots=True)
class Prefix:
    """The beginning of an episode: everything up to the end of a segment of a tree."""

    tree: Tree
    segment: int
    """An answer of the environment, after which it is the policy's turn."""

    @property
    def task(self) -> int:
        """Index of the task.

        Raises:
            ConfigError: The tree does not say, as it was not collected here.
        """
        if "task" not in self.tree.metadata:
            raise ConfigError(f"Tree {self.tree.task_id!r} does not say which task it belongs to: metadata['task'].")
        return int(self.tree.metadata["task"])


class Continuer(Collector):
    """A collector that also plays episodes to their end from where a prefix stops; arguments as `Collector`.

    The environment of a prefix is rebuilt: reset to the task, and given the recorded turns again. What it answers must
    come out as recorded. Every completion then starts from a fork of it. Calls that are not idempotent are not
    repeated: a prefix that holds one is refused.
    """

    _prefixes: Sequence[Prefix] = ()

    def continue_from(
        self, prefixes: Sequence[Prefix], num_completions: int, *, seed: int, sampling: Sampling | None = None
    ) -> list[list[Leaf]]:
        """Completes every prefix several times.

        Args:
            prefixes: Each ends with an answer of the environment.
            num_completions: Of each prefix.
            seed: With it, the same weights and deterministic tools give the same completions.
            sampling: Temperature 1 by default.

        Returns:
            The valid leaves of each prefix; their returns include what the prefix had earned. There are none where
            infrastructure failed or a recorded turn got another answer this time.

        Raises:
            ConfigError: A prefix ends elsewhere, or its tree does not name its task.
            ForkError: Environments of this kind cannot be copied, or a prefix holds a call that may not be repeated.
            PolicyError: The engine failed.
        """
        for prefix in prefixes:
            if prefix.tree.segments[prefix.segment].origin != "environment":
                raise ConfigError("A prefix ends with what the environment said, so that the policy has its turn.")
        tasks = [prefix.task for prefix in prefixes]
        self._prefixes = prefixes
        try:
            trees = self.collect(tasks, GroupPlan(size=num_completions), seed=seed, sampling=sampling)
        finally:
            self._prefixes = ()
        return [tree.valid_leaves for tree in trees]

    def _new_group(self, number: int, task: int, plan: GroupPlan, seed: int, hint: str | None) -> Group:
        if not self._prefixes:
            return super()._new_group(number, task, plan, seed, hint)
        return _Continuation(
            self._prefixes[number],
            task,
            plan,
            derive(seed, "continuation", number, task),
            policy=self._policy,
            chat=self._chat,
            make_env=self._make_env,
            new_sequence=lambda: next(self._sequence_ids),
            vocab_size=self._vocab_size,
            hint=hint,
            journal=self._journal_of(number),
        )


class _Continuation(Group):
    """A group whose trajectories start at the end of a prefix; all are invalid if that cannot be rebuilt."""

    def __init__(self, prefix: Prefix, *arguments: Any, **parts: Any) -> None:
        super().__init__(*arguments, **parts)
        self._prefix = prefix
        self._origin: Track | None = None
        self._envs: list[gymnasium.Env[str, str]] = []

    def start(self) -> Iterator[Track]:
        """The completions; see `Group.start`."""
        path = self._prefix.tree.path(self._prefix.segment)
        for number, segment in enumerate(path):
            self._tree.segments.append(replace(segment, id=number, parent=number - 1 if number else None))
        try:
            self._rebuild(path)
        except (InfrastructureError, UnforkableStateError) as error:
            leaf = invalid_leaf(error, len(path) - 1, len(path) // 2)
            self._leaves = {(number,): replace(leaf, root=number) for number in range(self.plan.size)}
            return
        yield from super().start()

    def close(self) -> Tree:
        """As `Group.close`; also closes what was not begun."""
        for env in self._envs:
            env.close()
        return super().close()

    def _from_prompt(self) -> Track:
        assert self._origin is not None
        track = self._origin.copy()
        track.key, track.sequence, track.env = (self._num_roots,), self._new_sequence(), self._envs.pop()
        self._num_roots += 1
        self._record_calls(track)
        if self._root is None:
            self._root = track.sequence
        else:
            self._policy.fork(self._root, track.sequence, len(track.token_ids))
        self.running[track.key] = track
        return track

    def _rebuild(self, path: Sequence[Segment]) -> None:
        """Plays the prefix again in one environment, and copies that for every completion."""
        env = self._make_env()
        self._envs.append(env)
        opening = open_episode(env, self.task)
        self._tree.task_id = opening.task_id
        self._check(self._chat.prompt_ids(opening.messages, opening.tools), path[0])
        if isinstance(env.unwrapped, ToolEnv):
            env.unwrapped.record_calls(RepeatedCalls())
        track = Track(
            (0,),
            -1,
            env,
            segment=len(path) - 1,
            token_ids=[],
            state_key=opening.state_key,
            episode=self._recorded_as(),
        )
        for turn, answer in zip(path[1::2], path[2::2], strict=True):
            outcome = play_turn(env, self._chat.turn_text(turn.token_ids), truncate=False)
            self._check(self._chat.suffix_ids(turn.token_ids[-1], outcome.messages), answer)
            track.rewards.append(outcome.reward)
            track.state_keys.append(track.state_key)
            track.state_key = outcome.state_key
            track.turn += 1
        track.token_ids = [token for segment in path for token in segment.token_ids]
        self._origin = track
        self._envs.extend(fork_env(env) for _ in range(self.plan.size - 1))

    def _recorded_as(self) -> str | None:
        """What the journal calls an episode that the prefix is the beginning of."""
        tree = self._prefix.tree
        return next(
            (
                leaf.episode
                for leaf in tree.leaves
                if any(segment.id == self._prefix.segment for segment in tree.path(leaf.segment))
            ),
            None,
        )

    def _check(self, token_ids: list[int], recorded: Segment) -> None:
        if token_ids != recorded.token_ids:
            raise UnforkableStateError(
                f"Played again, task {self.task} answered otherwise in turn {recorded.turn} than was recorded, so its "
                "turns cannot be completed anew. Make the environment's answers a function of task and turns."
            )
