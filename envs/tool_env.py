"""`ToolEnv`: a multi-turn environment in which a language model calls tools, as a `gymnasium.Env`."""

import copy
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Self

import gymnasium

from agentrl import messages as msg
from agentrl.chat.tool_calls import parse_tool_calls, visible_text
from agentrl.envs.episode import CallRecord, Episode
from agentrl.envs.exchange import as_text, checked_text, task_option
from agentrl.envs.reward_parts import parts_of_return
from agentrl.envs.spaces import TextSpace
from agentrl.errors import ConfigError, ForkError, InfrastructureError, UnforkableStateError
from agentrl.journal import CallLog
from agentrl.messages import JsonDict, MalformedCall, Message, ToolCall
from agentrl.tasks import Task
from agentrl.tools.core import Tool, ToolResult
from agentrl.tools.toolbox import Toolbox
from agentrl.trajectory import StopReason


class ToolEnv(gymnasium.Env[str, str]):
    """Base of all environments: subclasses give tasks, tools and a reward; turns, parsing and limits are inherited.

    Description:
        The agent reads a task, may call tools over several turns, and ends the episode with a turn that calls none.

    Action Space:
        Text: one assistant turn, tool calls included as `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`.

    Observation Space:
        Text: the task at first, then what the tools returned. `info["messages"]` has the same as chat messages.

    Starting State:
        A task of the split, drawn at random or named by `options={"task": index}`, and freshly opened tools.

    Rewards:
        `turn_reward` after every turn (0 by default) plus `reward`, a number or named parts of one, when it ends.

    Episode End:
        Terminated by a turn without a call; truncated after `max_turns` turns, or by `truncate` when the caller's
        token budget is spent.

    Arguments:
        split: "train" or "test"; which tasks `reset` draws from.
        render_mode: None or "ansi" (the transcript as text).
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 1}  # noqa: RUF012 - Gymnasium's own declaration
    tools: Sequence[Tool] = ()
    """Prototypes; every episode opens its own."""
    max_turns: int = 8
    system_prompt: str = ""
    """Instructions put before the task, unless it brings its own."""

    def __init__(self, *, split: str = "train", render_mode: str | None = None) -> None:
        if render_mode not in (None, "ansi"):
            raise ConfigError(f"render_mode must be None or 'ansi', got {render_mode!r}.")
        self.split = split
        self.render_mode = render_mode
        self.observation_space = TextSpace()
        self.action_space = TextSpace()
        self._task_sets: dict[str, Sequence[Task]] = {}
        self._task: Task | None = None
        self._episode = Episode(stop_reason=StopReason.TERMINATED)
        self._toolbox: Toolbox | None = None

    # What a subclass writes ------------------------------------------------------------------------------------------

    @abstractmethod
    def tasks(self, split: str) -> Sequence[Task]:
        """The tasks of a split; called once per split."""
        raise NotImplementedError

    @abstractmethod
    def reward(self, task: Task, episode: Episode) -> float | Mapping[str, float]:
        """The reward of a finished episode, or its named parts, whose sum is the reward; must be finite.

        Example:
            return {"answer": 1.0, "format": -0.5}
        """
        raise NotImplementedError

    def turn_reward(self, task: Task, episode: Episode) -> float:
        """The reward of the turn that just ended, before the episode's own; 0 unless overridden."""
        return 0.0

    def success(self, task: Task, episode: Episode, reward: float) -> bool:
        """Whether a finished episode counts as solved; by default a reward of at least 1."""
        return reward >= 1.0

    def state_key(self, task: Task, episode: Episode) -> str | None:
        """Names the state in which the next turn is taken, for algorithms that compare turns taken in the same state.

        Equal keys in episodes of one task say that nothing of relevance differs (GiGPO, arXiv:2505.10978). None, the
        default: the environment does not say; an environment names either all of its states or none.
        `agentrl.envs.observation_key` names a state by its observation.
        """
        return None

    def oracle(self, task: Task, episode: Episode) -> str:
        """The next action of an agent that solves every task: for demonstrations and for the contract test.

        Raises:
            ConfigError: The environment has no oracle.
        """
        raise ConfigError(f"{type(self).__name__} defines no oracle; override oracle(task, episode).")

    # The running episode ---------------------------------------------------------------------------------------------

    @property
    def task(self) -> Task:
        """The task of the running or just finished episode.

        Raises:
            gymnasium.error.ResetNeeded: No episode was started.
        """
        if self._task is None:
            raise gymnasium.error.ResetNeeded("No episode was started: call reset() first.")
        return self._task

    @property
    def episode(self) -> Episode:
        """The running or last episode; to look at, not to change."""
        return self._episode

    @property
    def toolbox(self) -> Toolbox:
        """The opened tools of the running episode; for calls outside of a turn, which the episode does not record.

        They are open until the episode has been judged, so that `reward` can look at what the agent has made.

        Raises:
            gymnasium.error.ResetNeeded: No episode is running.
        """
        if self._toolbox is None:
            raise gymnasium.error.ResetNeeded("No episode is running: call reset() first.")
        return self._toolbox

    def record_calls(self, log: CallLog | None) -> None:
        """Tells a log of every further call of the running episode; `reset` and `fork` begin without one."""
        self.toolbox.log = log

    @property
    def gives_state_keys(self) -> bool:
        """Whether this environment names its states, so that an algorithm that needs it can be refused beforehand."""
        return type(self).state_key is not ToolEnv.state_key

    @property
    def rewards_turns(self) -> bool:
        """Whether this environment rewards turns before the end, for algorithms that need it."""
        return type(self).turn_reward is not ToolEnv.turn_reward

    # Gymnasium -------------------------------------------------------------------------------------------------------

    def task_set(self, split: str | None = None) -> Sequence[Task]:
        """The tasks of a split, the environment's own by default.

        Raises:
            ConfigError: There are none.
        """
        split = split or self.split
        if split not in self._task_sets:
            tasks = self.tasks(split)
            if not len(tasks):
                raise ConfigError(f"{type(self).__name__} has no tasks in its {split} split.")
            self._task_sets[split] = tasks
        return self._task_sets[split]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, JsonDict]:
        """Starts an episode.

        Args:
            seed: Seeds the choice of the task, as in every Gymnasium environment.
            options: `{"task": index}` picks a task of the split instead.

        Returns:
            The task as text, and info with "task_id", "messages", "tools" (JSON schemas), and "state_key" if the
            environment names its states.

        Raises:
            ConfigError: An unknown option, or a task that does not exist.
        """
        super().reset(seed=seed)
        task_set = self.task_set()
        index = task_option(options or {})
        if index is None:
            index = int(self.np_random.integers(len(task_set)))
        if not 0 <= index < len(task_set):
            raise ConfigError(f"Task {index} does not exist: the {self.split} split has {len(task_set)} tasks.")
        self._close_toolbox()
        self._toolbox = Toolbox(self.tools)
        self._task = task_set[index]
        self._episode = Episode(messages=self._opening(self._task))
        info = {"task_id": self._task.id, "messages": self._episode.messages, "tools": self._toolbox.schemas}
        info |= self._named_state(self._task)
        return as_text(self._episode.messages, "user"), copy.deepcopy(info)

    def step(self, action: str) -> tuple[str, float, bool, bool, JsonDict]:
        """Plays one assistant turn.

        Args:
            action: The turn's text, end-of-turn token excluded. What UTF-8 cannot hold is replaced (see `clean_text`).

        Raises:
            gymnasium.error.ResetNeeded: The episode has ended, or none was started.
            gymnasium.error.InvalidAction: The action is not a string.
            InfrastructureError: A tool's surroundings failed; the episode is over and says nothing about the agent.
        """
        task, toolbox = self._running()
        episode = self._episode
        action = checked_text(action)
        calls = parse_tool_calls(action)
        episode.messages.append(msg.assistant(action))
        new: list[Message] = []
        for call in calls:
            result = self._call(toolbox, call)
            episode.calls.append(CallRecord(episode.num_turns, call, result))
            new.append(msg.tool_result(result.tool, result.text))
        episode.messages.extend(new)
        episode.num_turns += 1
        if not calls:
            episode.answer = visible_text(action)
            episode.stop_reason = StopReason.ANSWERED
        elif episode.num_turns >= self.max_turns:
            episode.stop_reason = StopReason.MAX_TURNS
        return self._outcome(task, new)

    def truncate(self, action: str) -> tuple[str, float, bool, bool, JsonDict]:
        """Ends the episode at a limit outside the environment, `action` being the unfinished last turn.

        The unfinished turn (empty if none was begun) runs no tool and is no answer; the reward function judges what
        there was before.

        Raises:
            gymnasium.error.ResetNeeded: The episode has ended, or none was started.
        """
        task, _ = self._running()
        action = checked_text(action)
        if action:
            self._episode.messages.append(msg.assistant(action))
            self._episode.num_turns += 1
        self._episode.stop_reason = StopReason.MAX_TOKENS
        return self._outcome(task, [], played=bool(action))

    def render(self) -> str | None:
        """The transcript so far, for render_mode "ansi"."""
        if self.render_mode is None:
            return None
        return "\n".join(f"[{message['role']}] {message['content']}" for message in self._episode.messages)

    def close(self) -> None:
        """Frees the tools of the running episode; safe to call twice."""
        self._close_toolbox()

    # Forking ---------------------------------------------------------------------------------------------------------

    def fork(self) -> Self:
        """An independent copy of the half-finished episode, tools and interpreters included.

        Tools that can copy themselves do; otherwise the recorded calls are repeated in fresh tools, whose results must
        come out the same. Attributes of a subclass are deep-copied.

        Raises:
            gymnasium.error.ResetNeeded: The episode has ended, or none was started.
            UnforkableStateError: A repeated call gave another result.
            ForkError: A tool can do neither (only idempotent calls are repeated), or an attribute cannot be copied.
        """
        _, toolbox = self._running()
        shared = (self._task_sets, self._task, self.tools, self.spec)
        memo: dict[int, Any] = {id(value): value for value in shared}
        memo[id(self._toolbox)] = None
        clone = copy.copy(self)
        try:
            clone.__dict__ = copy.deepcopy(self.__dict__, memo)
        except Exception as error:
            raise ForkError(
                f"An attribute of {type(self).__name__} cannot be copied ({type(error).__name__}: {error}). Give it a "
                "__deepcopy__, or keep it outside of the environment."
            ) from error
        try:
            clone._toolbox = toolbox.fork()
        except ForkError as error:
            clone._toolbox = self._replayed(error)
        return clone

    @property
    def inline(self) -> bool:
        """Whether no tool of this environment blocks, so that `step` may run in the scheduler's thread."""
        return all(tool.inline for tool in self.tools)

    def _replayed(self, reason: ForkError) -> Toolbox:
        unrepeatable = ", ".join(tool.name for tool in self.tools if not tool.idempotent)
        if unrepeatable:
            raise ForkError(
                f"{reason} Nor can its calls be repeated: {unrepeatable} may not be called again (idempotent=False). "
                "Give the tool a fork() of its own, or use a recipe without branching, such as grpo."
            ) from reason
        with ExitStack() as on_failure:
            toolbox = on_failure.enter_context(Toolbox(self.tools))
            for number, record in enumerate(self._episode.calls):
                text = toolbox.call(record.call).text
                if text != record.result.text:
                    raise UnforkableStateError(
                        f"Repeating call {number} of tool {record.result.tool!r} gave another result "
                        f"({text[:80]!r} instead of {record.result.text[:80]!r}); give the tool a fork() of its own."
                    ) from reason
            on_failure.pop_all()
        return toolbox

    # Internals -------------------------------------------------------------------------------------------------------

    def _opening(self, task: Task) -> list[Message]:
        prompt = (msg.user(task.prompt),) if isinstance(task.prompt, str) else task.prompt
        instructed = not self.system_prompt or prompt[0]["role"] == "system"
        return list(prompt) if instructed else [msg.system(self.system_prompt), *prompt]

    def _running(self) -> tuple[Task, Toolbox]:
        if self._task is None or self._toolbox is None or self._episode.done:
            raise gymnasium.error.ResetNeeded("No episode is running: call reset() first.")
        return self._task, self._toolbox

    def _call(self, toolbox: Toolbox, call: ToolCall | MalformedCall) -> ToolResult:
        try:
            return toolbox.call(call)
        except InfrastructureError:
            self._episode.stop_reason = StopReason.INVALID
            self._close_toolbox()
            raise

    def _outcome(
        self, task: Task, new: list[Message], *, played: bool = True
    ) -> tuple[str, float, bool, bool, JsonDict]:
        """Judges the position; `played` is false where the episode ended between two turns."""
        try:
            return self._judged_position(task, new, played)
        finally:
            if self._episode.done:
                self._close_toolbox()

    def _judged_position(self, task: Task, new: list[Message], played: bool) -> tuple[str, float, bool, bool, JsonDict]:
        episode = self._episode
        reward = float(self.turn_reward(task, episode)) if played else 0.0
        info: JsonDict = {"task_id": task.id, "messages": copy.deepcopy(new)}
        success = False
        if episode.done:
            final = self._judged(task, math.fsum([*episode.turn_rewards, reward]))
            success = self.success(task, episode, final)
            reward += final
        else:
            info |= self._named_state(task)
        if not math.isfinite(reward):
            raise ConfigError(f"{type(self).__name__} gave a reward of {reward} for task {task.id}; it must be finite.")
        if played or not episode.turn_rewards:
            episode.turn_rewards.append(reward)
        else:
            episode.turn_rewards[-1] += reward
        if episode.done:
            info["result"] = episode.summary(success)
        truncated = episode.stop_reason is not None and episode.stop_reason.is_truncation
        return as_text(new, "tool"), reward, episode.done and not truncated, truncated, info

    def _judged(self, task: Task, turns: float) -> float:
        """The reward of the finished episode; of one in parts, the episode keeps them."""
        judgement = self.reward(task, self._episode)
        if not isinstance(judgement, Mapping):
            return float(judgement)
        try:
            self._episode.reward_parts = parts_of_return(judgement, turns if self.rewards_turns else None)
        except ConfigError as error:
            raise ConfigError(f"{type(self).__name__}, task {task.id}: {error}") from error
        return math.fsum(judgement.values())

    def _named_state(self, task: Task) -> JsonDict:
        key = self.state_key(task, self._episode)
        return {} if key is None else {"state_key": key}

    def _close_toolbox(self) -> None:
        if self._toolbox is not None:
            toolbox, self._toolbox = self._toolbox, None
            toolbox.close()
