"""The scheduler that rolls out groups of episodes: one thread drives the policy, tools run beside it."""

import concurrent.futures as cf
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import gymnasium

from agentrl.chat.template import ChatFormat
from agentrl.errors import ConfigError, InfrastructureError, InterruptedCallError
from agentrl.journal import Journal
from agentrl.policies.core import Completion, Failure, Policy, Request, Sampling, SequenceId
from agentrl.rollout.group import Group
from agentrl.rollout.plan import GroupPlan
from agentrl.rollout.track import Track, TurnOutcome, blocks, finished_leaf, invalid_leaf, play_turn
from agentrl.seeding import derive
from agentrl.trajectory import Leaf, Tree

INTERRUPTED = "interrupted"
"""Key that a tree's metadata has where episodes were discarded because they cannot be played again: their number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutLimits:
    """Bounds of a rollout.

    Raises:
        ConfigError: A bound below 1.
    """

    max_turn_tokens: int = 512
    max_episode_tokens: int = 4096
    """Prompt, turns and tool results together."""
    max_concurrent_episodes: int = 256
    lockstep: bool = False
    """Wait for every tool before the next token. Slower, but then even tools that answer at odd times leave no trace
    in the floating-point rounding of a batch."""

    def __post_init__(self) -> None:
        for name in ("max_turn_tokens", "max_episode_tokens", "max_concurrent_episodes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"rollout.{name} must be at least 1, got {getattr(self, name)}.")


class Collector:
    """Rolls out groups of episodes with one policy in one kind of environment.

    Args:
        policy: Engine to sample from.
        chat: Chat format of its model.
        make_env: Makes an environment; called once per episode.
        vocab_size: Of the model, to normalise entropies.
        limits: Bounds.

    Attributes:
        journal: Where tool calls are recorded; None, the default, for nowhere.
        max_episode_tokens: The bound that holds: that of `limits`, or the model's context where it is shorter.
    """

    def __init__(
        self,
        policy: Policy,
        chat: ChatFormat,
        make_env: Callable[[], gymnasium.Env[str, str]],
        *,
        vocab_size: int,
        limits: RolloutLimits | None = None,
    ) -> None:
        self.journal: Journal | None = None
        self._policy = policy
        self._chat = chat
        self._make_env = make_env
        self._vocab_size = vocab_size
        self._limits = limits or RolloutLimits()
        self.max_episode_tokens = min(self._limits.max_episode_tokens, policy.context_length)
        self._sampling = Sampling()
        self._sequence_ids = itertools.count()
        self._live: dict[SequenceId, tuple[Group, Track]] = {}
        self._generating = 0
        self._first_group = 0
        self._steps: dict[cf.Future[TurnOutcome], tuple[Group, Track]] = {}

    def collect(
        self,
        tasks: Sequence[int],
        plan: GroupPlan,
        *,
        seed: int,
        sampling: Sampling | None = None,
        on_tree: Callable[[Tree], None] | None = None,
        hints: Mapping[int, str] | Sequence[str | None] | None = None,
    ) -> list[Tree]:
        """Rolls out one group per task.

        A hint is told to the policy alone, at the end of what the user says last in the opening (STaR,
        arXiv:2203.14465). No environment sees it and no tree holds it: the tree's prompt is the plain one, and its
        `metadata` has "hinted". Log-probabilities and entropies are those that the policy had with the hint. Branches
        see their parent's.

        Args:
            tasks: Indices into the environment's split; a task may occur several times.
            plan: Size of a group, and when to branch.
            seed: With it, the same weights and deterministic tools give the same trees.
            sampling: Temperature 1 by default.
            on_tree: Called with every tree when it is complete, in order of completion.
            hints: One for every entry of `tasks` (None: without), or those of some tasks by index.

        Returns:
            One tree per task, in the order of `tasks`, each with exactly `plan.size` leaves.

        Raises:
            ConfigError: There are not as many hints as tasks, or a hinted task opens without a message of the user.
            PolicyError: The engine failed.
            ForkError: The plan branches and the environment cannot be copied.
        """
        self._sampling = sampling or Sampling()
        told = _hints_in_order(tasks, hints)
        self._first_group = 0 if self.journal is None else self.journal.claim_groups(len(tasks))
        waiting = iter([self._new_group(i, task, plan, seed, told[i]) for i, task in enumerate(tasks)])
        groups: list[Group] = []
        trees: dict[int, Tree] = {}
        done: set[int] = set()
        # A turn in a thread holds no lock while a tool waits, so there may be as many threads as episodes.
        with cf.ThreadPoolExecutor(self._limits.max_concurrent_episodes, "tool") as self._threads:
            try:
                while len(trees) < len(tasks):
                    self._start_groups(waiting, groups, plan.size, running=len(groups) - len(done))
                    self._advance()
                    for number, group in enumerate(groups):
                        if number in done:
                            continue
                        self._begin(group, group.new_tracks())
                        if group.complete:
                            done.add(number)
                            trees[number] = group.close()
                            if on_tree:
                                on_tree(trees[number])
            finally:
                cf.wait(self._steps)  # an environment must not be closed under a step
                for number, group in enumerate(groups):
                    if number not in done:
                        group.close()
                self._steps.clear()
                self._live.clear()
                self._generating = 0
        return [trees[i] for i in range(len(tasks))]

    # Scheduling ------------------------------------------------------------------------------------------------------

    def _new_group(self, number: int, task: int, plan: GroupPlan, seed: int, hint: str | None) -> Group:
        return Group(
            task,
            plan,
            derive(seed, "group", number, task),
            policy=self._policy,
            chat=self._chat,
            make_env=self._make_env,
            new_sequence=lambda: next(self._sequence_ids),
            vocab_size=self._vocab_size,
            hint=hint,
            journal=self._journal_of(number),
        )

    def _journal_of(self, number: int) -> tuple[Journal, int] | None:
        return None if self.journal is None else (self.journal, self._first_group + number)

    def _start_groups(self, waiting: Iterator[Group], groups: list[Group], size: int, running: int) -> None:
        room = max(1, self._limits.max_concurrent_episodes // size) - running
        for group in itertools.islice(waiting, room):
            groups.append(group)
            self._begin(group, group.start())

    def _begin(self, group: Group, tracks: Iterable[Track]) -> None:
        for track in tracks:
            self._request(group, track)

    def _advance(self) -> None:
        """One step of the engine, then every environment that has answered."""
        if self._steps and (self._limits.lockstep or not self._generating):
            when = cf.ALL_COMPLETED if self._limits.lockstep else cf.FIRST_COMPLETED
            cf.wait(self._steps, return_when=when)
        answered = [(self._steps.pop(future), future) for future in list(self._steps) if future.done()]
        for (group, track), future in sorted(answered, key=lambda item: (item[0][0].seed, item[0][1].key)):
            self._receive(group, track, future.result)
        if self._generating:
            finished = [(*self._live[outcome.sequence], outcome) for outcome in self._policy.poll()]
            # Engines finish in an order of their own; a fixed one keeps what follows reproducible.
            for group, track, outcome in sorted(finished, key=lambda item: (item[0].seed, item[1].key)):
                self._generating -= 1
                if isinstance(outcome, Failure):
                    self._discard(group, track, outcome.error)
                else:
                    self._complete_turn(group, track, outcome)

    # One turn --------------------------------------------------------------------------------------------------------

    def _request(self, group: Group, track: Track) -> None:
        room = self.max_episode_tokens - len(track.token_ids)
        if room < 1 and track.turn == 0:
            raise ConfigError(
                f"Task {group.task} opens with {len(track.token_ids)} tokens, and an episode may have "
                f"{self.max_episode_tokens}. Raise rollout.max_episode_tokens (the model's context is "
                f"{self._policy.context_length}), or leave the task out."
            )
        if room < 1:
            self._receive(group, track, lambda: play_turn(track.env, "", truncate=True))
            return
        self._live[track.sequence] = (group, track)
        self._generating += 1
        self._policy.submit(
            Request(
                sequence=track.sequence,
                token_ids=track.token_ids,
                max_tokens=min(room, self._limits.max_turn_tokens),
                stop=self._chat.stop_strings,
                seed=group.stream(track),
                sampling=self._sampling,
            )
        )

    def _complete_turn(self, group: Group, track: Track, completion: Completion) -> None:
        group.record_turn(track, completion)
        text = self._chat.turn_text(completion.token_ids)
        truncate = completion.cause == "length"
        if blocks(track.env) and not truncate:
            self._steps[self._threads.submit(play_turn, track.env, text, truncate=False)] = (group, track)
        else:
            self._receive(group, track, lambda: play_turn(track.env, text, truncate=truncate))

    def _receive(self, group: Group, track: Track, outcome_of: Callable[[], TurnOutcome]) -> None:
        """Takes the environment's answer: the episode ends, or its next turn is requested."""
        try:
            outcome = outcome_of()
        except InfrastructureError as error:
            if isinstance(error, InterruptedCallError):
                group.count(INTERRUPTED)
            self._discard(group, track, error)
            return
        track.rewards.append(outcome.reward)
        track.turn += 1
        track.state_key = outcome.state_key
        if outcome.stop_reason is not None:
            leaf = finished_leaf(
                outcome,
                track.segment,
                track.rewards,
                state_keys=track.state_keys,
                fork_of=track.fork_of,
                root=track.key[0],
            )
            self._finish(group, track, leaf)
            return
        suffix = self._chat.suffix_ids(track.token_ids[-1], outcome.messages)
        if len(track.token_ids) + len(suffix) < self.max_episode_tokens:
            group.record_answer(track, suffix)
            self._request(group, track)
        else:  # no room to react to the result: the episode ends here, and the result is not recorded
            self._receive(group, track, lambda: play_turn(track.env, "", truncate=True))

    def _discard(self, group: Group, track: Track, error: InfrastructureError) -> None:
        """Ends an episode that infrastructure has broken."""
        leaf = invalid_leaf(error, track.segment, track.turn, fork_of=track.fork_of, root=track.key[0])
        self._finish(group, track, leaf)

    def _finish(self, group: Group, track: Track, leaf: Leaf) -> None:
        self._live.pop(track.sequence, None)
        group.finish(track, leaf)


def _hints_in_order(
    tasks: Sequence[int], hints: Mapping[int, str] | Sequence[str | None] | None
) -> Sequence[str | None]:
    """One hint or None for every task."""
    if hints is None or isinstance(hints, Mapping):
        return [(hints or {}).get(task) for task in tasks]
    if len(hints) != len(tasks):
        raise ConfigError(f"There must be a hint or None for each of the {len(tasks)} tasks, got {len(hints)}.")
    return hints
