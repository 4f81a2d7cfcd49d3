"""One task's tree while it grows: trajectories from the prompt, branches, and the top-up at the end."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import gymnasium

from agentrl.chat.template import ChatFormat
from agentrl.errors import ConfigError, InfrastructureError, UnforkableStateError
from agentrl.policies.core import Completion, Policy, SequenceId
from agentrl.rollout.branching import BranchLedger, Moment, TrackKey, opening_entropy
from agentrl.rollout.plan import BranchRule, GroupPlan
from agentrl.rollout.track import Track, fork_env, opening_messages
from agentrl.seeding import derive
from agentrl.trajectory import Leaf, Tree


@dataclass(slots=True)
class _Snapshot:
    """What it takes to branch at a moment: the environment, and the sequence up to the tool result."""

    env: gymnasium.Env[str, str]
    sequence: SequenceId
    template: Track
    """The parent as it was when it began the turn that branches will resample."""


class Group:
    """The episodes of one task.

    Args:
        task: Index of the task in the environment's split.
        plan: How many trajectories, and when to branch.
        seed: Of this group; every random stream in it derives from it.
        policy: Engine that holds the sequences.
        chat: Chat format of the policy's model.
        make_env: Makes an environment.
        new_sequence: Gives an unused sequence id.
        vocab_size: Normalises entropies.
    """

    def __init__(
        self,
        task: int,
        plan: GroupPlan,
        seed: int,
        *,
        policy: Policy,
        chat: ChatFormat,
        make_env: Callable[[], gymnasium.Env[str, str]],
        new_sequence: Callable[[], SequenceId],
        vocab_size: int,
    ) -> None:
        self.task = task
        self.plan = plan
        self.seed = seed
        self.running: dict[TrackKey, Track] = {}
        self._policy = policy
        self._chat = chat
        self._make_env = make_env
        self._new_sequence = new_sequence
        self._vocab_size = vocab_size
        self._ledger = BranchLedger(plan, seed)
        self._snapshots: dict[Moment, _Snapshot] = {}
        self._leaves: dict[TrackKey, Leaf] = {}
        self._num_roots = 0
        self._root: SequenceId | None = None
        self._tree = Tree(task_id="")
        self._opening: object = None

    def start(self) -> Iterator[Track]:
        """The trajectories that start at the prompt; each must be requested before the next is taken.

        The first one computes the prompt, and the others fork it, which needs a sequence to fork.
        """
        for _ in range(self.plan.num_initial):
            yield self._from_prompt()

    def record_turn(self, track: Track, completion: Completion) -> None:
        """Appends a sampled turn to the tree, and keeps what is needed to branch before it if the rule wants that."""
        opening = opening_entropy(completion.entropies, self.plan.probe_tokens, self._vocab_size)
        if track.baseline is None:
            track.baseline = opening
        if self.plan.rule is not BranchRule.NONE and track.turn == track.next_moment:
            self._offer(track, opening)
        track.lead = opening
        segment = self._tree.add(
            track.segment,
            "assistant",
            track.turn,
            completion.token_ids,
            logprobs=completion.logprobs,
            raw_logprobs=completion.raw_logprobs,
            entropies=completion.entropies,
            policy_version=completion.policy_version,
        )
        track.segment = segment.id
        track.token_ids = track.token_ids + completion.token_ids

    def record_answer(self, track: Track, token_ids: list[int]) -> None:
        """Appends what the environment said."""
        segment = self._tree.add(track.segment, "environment", track.turn - 1, token_ids)
        track.segment = segment.id
        track.token_ids = track.token_ids + token_ids

    def finish(self, track: Track, leaf: Leaf) -> None:
        """Ends a trajectory."""
        self._leaves[track.key] = leaf
        del self.running[track.key]
        track.env.close()
        if track.sequence != self._root:  # the root's row serves the top-up
            self._policy.release(track.sequence)

    def new_tracks(self) -> list[Track]:
        """Branches that were decided by now; when nothing runs any more, all that is missing, from the prompt."""
        born: list[Track] = []
        while settled := self._ledger.settle({key: track.next_moment for key, track in self.running.items()}):
            for moment, granted in settled:
                born.extend(self._branches(moment, granted))
        if not self.running and not self._ledger.unsettled:
            missing = self.plan.size - len(self._leaves)
            self._ledger.budget = 0  # the top-up takes what is left of it
            born.extend(self._from_prompt() for _ in range(missing))
        return born

    @property
    def complete(self) -> bool:
        """Whether all trajectories have ended."""
        return len(self._leaves) == self.plan.size

    def close(self) -> Tree:
        """Frees everything and returns the tree, in an order that does not depend on how the episodes ran."""
        for moment in list(self._snapshots):
            self._forget(moment)
        for track in self.running.values():
            track.env.close()
            self._policy.release(track.sequence)
        if self._root is not None:
            self._policy.release(self._root)
        self._tree.leaves = [leaf for _, leaf in sorted(self._leaves.items())]
        return self._tree.in_path_order()

    # Beginnings ------------------------------------------------------------------------------------------------------

    def _from_prompt(self) -> Track:
        env = self._make_env()
        try:
            task_id, messages, tools = opening_messages(env, self.task)
        except Exception:
            env.close()
            raise
        opening = (task_id, list(messages), list(tools))
        if self._root is None:
            prompt = self._chat.prompt_ids(messages, tools)
            self._tree.task_id = task_id
            self._tree.metadata["task"] = self.task
            self._tree.add(None, "prompt", 0, prompt)
            self._opening = opening
        elif opening != self._opening:
            env.close()
            raise ConfigError(
                f"{env} starts task {self.task} differently from one reset to the next; the episodes of a group must "
                "start alike. Make reset(options={'task': index}) deterministic."
            )
        prompt = self._tree.segments[0].token_ids
        track = Track((self._num_roots,), self._new_sequence(), env, segment=0, token_ids=list(prompt))
        self._num_roots += 1
        if self._root is None:
            self._root = track.sequence
        else:
            self._policy.fork(self._root, track.sequence, len(prompt))
        self.running[track.key] = track
        return track

    def _offer(self, track: Track, opening: float) -> None:
        """Tells the ledger of a moment and, if it may branch there, keeps the state that branches start from."""
        assert track.baseline is not None
        moment = Moment(
            track=track.key,
            turn=track.turn,
            change=opening - track.baseline,
            lagged_change=track.lead - track.baseline,
        )
        if not self._ledger.wish(moment):
            return
        try:
            env = fork_env(track.env)
        except (InfrastructureError, UnforkableStateError):
            self._ledger.withdraw(moment)  # the budget stays for another moment, or for the top-up
            self._count_failed_fork()
            return
        template = track.copy()
        sequence = self._new_sequence()
        self._policy.fork(track.sequence, sequence, len(track.token_ids))
        self._snapshots[moment] = _Snapshot(env, sequence, template)
        for loser in self._ledger.outranked():
            self._forget(loser)

    def _branches(self, moment: Moment, granted: int) -> Iterator[Track]:
        snapshot = self._snapshots[moment]
        for number in range(granted):
            child = snapshot.template.copy()
            child.key = (*moment.track, moment.turn, number)
            try:
                child.env = fork_env(snapshot.env)
            except (InfrastructureError, UnforkableStateError):
                self._count_failed_fork()
                continue  # the top-up makes up for it
            child.sequence = self._new_sequence()
            child.fork_of = child.segment
            child.first_turn = moment.turn
            self._policy.fork(snapshot.sequence, child.sequence, len(child.token_ids))
            self.running[child.key] = child
            yield child
        self._forget(moment)

    def _count_failed_fork(self) -> None:
        self._tree.metadata["failed_forks"] = self._tree.metadata.get("failed_forks", 0) + 1

    def _forget(self, moment: Moment) -> None:
        snapshot = self._snapshots.pop(moment)
        snapshot.env.close()
        self._policy.release(snapshot.sequence)

    def stream(self, track: Track) -> int:
        """The seed of a trajectory's next turn: a function of where it is in the tree, not of when it runs."""
        return derive(self.seed, "turn", *track.key, track.turn)
