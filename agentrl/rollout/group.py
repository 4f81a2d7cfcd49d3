"""One task's tree while it grows: trajectories from the prompt, branches, and the top-up at the end."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import gymnasium

from agentrl.chat.template import ChatFormat
from agentrl.envs import ToolEnv
from agentrl.errors import ConfigError, InfrastructureError, UnforkableStateError
from agentrl.journal import Journal
from agentrl.messages import Message
from agentrl.messages import user as user_message
from agentrl.policies.core import Completion, Policy, SequenceId
from agentrl.rollout.branching import Moment, TrackKey, num_global, opening_entropy
from agentrl.rollout.plan import BranchRule, GroupPlan
from agentrl.rollout.random_nodes import ledger_for
from agentrl.rollout.track import Opening, Track, fork_env, open_episode
from agentrl.seeding import derive
from agentrl.trajectory import Leaf, Tree


@dataclass(slots=True)
class _Snapshot:
    """What it takes to branch at a moment: the environment, and the sequence up to the tool result."""

    env: gymnasium.Env[str, str]
    sequence: SequenceId
    template: Track
    """The parent as it was when it began the turn that branches will resample."""
    num_children: int = 0


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
        hint: Told to the policy besides the task, and to nobody else.
        journal: Where tool calls are recorded, and the number of this group in it; None for nowhere.
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
        hint: str | None = None,
        journal: tuple[Journal, int] | None = None,
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
        self._hint = hint
        self._journal = journal
        self._ledger = ledger_for(plan, seed)
        self._snapshots: dict[Moment, _Snapshot] = {}
        self._leaves: dict[TrackKey, Leaf] = {}
        self._num_roots = 0
        self._root: SequenceId | None = None
        self._tree = Tree(task_id="")
        self._opening: Opening | None = None
        self._prompt: list[int] = []
        self._probing = plan.dynamic
        self._probed: list[float] = []

    def start(self) -> Iterator[Track]:
        """The trajectories that start at the prompt; each must be requested before the next is taken.

        The first one computes the prompt, and the others fork it, which needs a sequence to fork.
        """
        for _ in range(self.plan.num_initial):
            yield self._from_prompt()

    def record_turn(self, track: Track, completion: Completion) -> None:
        """Appends a sampled turn to the tree, and keeps what is needed to branch before it if the rule wants that."""
        opening = opening_entropy(completion.entropies, self.plan.probe_tokens, self._vocab_size)
        if self._probing:
            self._probed.append(opening)
        if track.baseline is None:
            track.baseline = opening
        if self.plan.rule is not BranchRule.NONE and track.turn == track.next_moment:
            self._offer(track, opening)
        track.lead = opening
        track.state_keys.append(track.state_key)
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
        leaf.episode = track.episode
        self._leaves[track.key] = leaf
        del self.running[track.key]
        track.env.close()
        if track.sequence != self._root:  # the root's row serves the top-up
            self._policy.release(track.sequence)

    def new_tracks(self) -> list[Track]:
        """Branches that were decided by now; when nothing runs any more, all that is missing, from the prompt."""
        if self._probing and self.running:
            return []  # how many branches there may be is not known yet
        born = self._after_probe() if self._probing else []
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

    def _after_probe(self) -> list[Track]:
        """Divides the group between the prompt and branches by what the probe has shown; it counts as one of it."""
        self._probing = False
        root, *later = self._probed or [0.0]  # one whose first turn failed has shown nothing
        initial = num_global(root, sum(later) / len(later) if later else root, self.plan)
        self._ledger.budget = self.plan.size - initial
        return [self._from_prompt() for _ in range(initial - 1)]

    def _from_prompt(self) -> Track:
        env = self._make_env()
        try:
            opening = open_episode(env, self.task)
            self._take_opening(opening)
        except Exception:
            env.close()
            raise
        track = Track(
            (self._num_roots,),
            self._new_sequence(),
            env,
            segment=0,
            token_ids=list(self._prompt),
            first_moment=0 if self.plan.rule is BranchRule.RANDOM_NODES else 1,
            state_key=opening.state_key,
        )
        self._num_roots += 1
        self._record_calls(track)
        if self._root is None:
            self._root = track.sequence
        else:
            self._policy.fork(self._root, track.sequence, len(self._prompt))
        self.running[track.key] = track
        return track

    def _record_calls(self, track: Track) -> None:
        """Opens the journal of a trajectory, whose `episode` is still that of the one it was forked from, if any."""
        env = track.env.unwrapped
        if not isinstance(env, ToolEnv):
            return
        if self._journal is None:
            env.record_calls(None)
            return
        journal, group = self._journal
        log = journal.open_episode(
            group,
            track.key,
            task=self.task,
            split=env.split,
            parent=track.episode,
            num_calls=len(env.episode.calls),
        )
        env.record_calls(log)
        track.episode = log.name

    def _take_opening(self, opening: Opening) -> None:
        """Begins the tree with the first opening; the policy's prompt differs from the tree's if there is a hint."""
        if self._opening is not None:
            if opening != self._opening:
                raise ConfigError(
                    f"Task {self.task} starts differently from one reset to the next; the episodes of a group must "
                    "start alike. Make reset(options={'task': index}) deterministic."
                )
            return
        prompt = self._chat.prompt_ids(opening.messages, opening.tools)
        self._tree.task_id = opening.task_id
        self._tree.metadata["task"] = self.task
        self._tree.add(None, "prompt", 0, prompt)
        self._opening = opening
        self._prompt = prompt
        if self._hint:
            self._tree.metadata["hinted"] = True
            self._prompt = self._chat.prompt_ids(_with_hint(opening.messages, self._hint), opening.tools)

    def _offer(self, track: Track, opening: float) -> None:
        """Tells the ledger of a moment and, if it may branch there, keeps the state that branches start from."""
        assert track.baseline is not None
        moment = Moment(
            track=track.key,
            turn=track.turn,
            change=opening - track.baseline,
            lagged_change=track.lead - track.baseline,
            streak=track.streak,
        )
        wanted = self._ledger.wish(moment)
        track.streak = track.streak + 1 if wanted else 0
        if not wanted:
            return
        try:
            env = fork_env(track.env)
        except (InfrastructureError, UnforkableStateError):
            self._ledger.withdraw(moment)  # the budget stays for another moment, or for the top-up
            self.count("failed_forks")
            return
        template = track.copy()
        sequence = self._new_sequence()
        self._policy.fork(track.sequence, sequence, len(track.token_ids))
        self._snapshots[moment] = _Snapshot(env, sequence, template)
        for loser in self._ledger.outranked():
            self._forget(loser)

    def _branches(self, moment: Moment, granted: int) -> Iterator[Track]:
        snapshot = self._snapshots[moment]
        for _ in range(granted):
            child = snapshot.template.copy()
            child.key = (*moment.track, moment.turn, snapshot.num_children)
            snapshot.num_children += 1
            try:
                child.env = fork_env(snapshot.env)
            except (InfrastructureError, UnforkableStateError):
                self.count("failed_forks")
                continue  # the top-up makes up for it
            child.sequence = self._new_sequence()
            child.fork_of = child.segment if moment.turn else None  # before the first turn is the prompt
            child.first_moment = moment.turn + 1
            self._record_calls(child)
            self._policy.fork(snapshot.sequence, child.sequence, len(child.token_ids))
            self.running[child.key] = child
            yield child
        if moment not in self._ledger:
            self._forget(moment)

    def count(self, event: str) -> None:
        """Counts something that happened to the group in the metadata of its tree."""
        self._tree.metadata[event] = self._tree.metadata.get(event, 0) + 1

    def _forget(self, moment: Moment) -> None:
        snapshot = self._snapshots.pop(moment)
        snapshot.env.close()
        self._policy.release(snapshot.sequence)

    def stream(self, track: Track) -> int:
        """The seed of a trajectory's next turn: a function of where it is in the tree, not of when it runs."""
        return derive(self.seed, "turn", *track.key, track.turn)


def _with_hint(messages: Sequence[Message], hint: str) -> list[Message]:
    """The same opening with the hint at the end of what the user says last.

    Raises:
        ConfigError: The user says nothing.
    """
    for place in reversed(range(len(messages))):
        if messages[place]["role"] == "user":
            hinted = user_message(f"{messages[place]['content']}\n\n{hint}")
            return [*messages[:place], hinted, *messages[place + 1 :]]
    raise ConfigError("A hint goes into a message of the user, and this task opens without one.")
