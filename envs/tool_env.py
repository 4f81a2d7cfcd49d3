"""`ToolEnv`: a multi-turn environment in which a language model calls tools, as a `gymnasium.Env`."""

import copy
import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import gymnasium

from agentrl import messages as msg
from agentrl.chat.tool_calls import parse_tool_calls, visible_text
from agentrl.envs.episode import CallRecord, Episode
from agentrl.envs.spaces import TextSpace
from agentrl.errors import ConfigError, ForkError
from agentrl.messages import JsonDict, Message
from agentrl.tasks import Task
from agentrl.tools.core import Tool
from agentrl.tools.toolbox import Toolbox
from agentrl.trajectory import StopReason


class ToolEnv(gymnasium.Env[str, str]):
    """Base of all environments: subclasses give tasks, tools and a reward; turns, parsing and limits are inherited.

    Description:
        The agent reads a task, may call tools over several turns, and ends the episode with a turn that calls none.

    Action space:
        Text: one assistant turn, tool calls included as `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`.

    Observation space:
        Text: the task at first, then what the tools returned. `info["messages"]` has the same as chat messages.

    Rewards:
        `turn_reward` after every turn (0 by default) plus `reward` when the episode ends.

    Episode end:
        Terminated by a turn without a call; truncated after `max_turns` turns, or by `truncate` when the caller's
        token budget is spent.

    Arguments:
        split: "train" or "test"; which tasks `reset` draws from.
        render_mode: None or "ansi" (the transcript as text).
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"]}  # noqa: RUF012 - Gymnasium's own declaration
    tools: Sequence[Tool] = ()
    """Prototypes; every episode opens its own."""
    max_turns: int = 8
    system_prompt: ClassVar[str] = ""

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
    def reward(self, task: Task, episode: Episode) -> float:
        """The reward of a finished episode; must be finite."""
        raise NotImplementedError

    def turn_reward(self, task: Task, episode: Episode) -> float:
        """The reward of the turn that just ended, before the episode's own; 0 unless overridden."""
        return 0.0

    def success(self, task: Task, episode: Episode, reward: float) -> bool:
        """Whether a finished episode counts as solved; by default a reward of at least 1."""
        return reward >= 1.0

    def oracle(self, task: Task, episode: Episode) -> str:
        """The next action of an agent that solves every task: for demonstrations and for the contract test.

        Raises:
            ConfigError: The environment has no oracle.
        """
        raise ConfigError(f"{type(self).__name__} defines no oracle; override oracle(task, episode).")

    # Gymnasium -------------------------------------------------------------------------------------------------------

    def task_set(self, split: str | None = None) -> Sequence[Task]:
        """The tasks of a split, the environment's own by default."""
        split = split or self.split
        if split not in self._task_sets:
            self._task_sets[split] = self.tasks(split)
        return self._task_sets[split]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, JsonDict]:
        """Starts an episode.

        Args:
            seed: Seeds the choice of the task, as in every Gymnasium environment.
            options: `{"task": index}` picks a task of the split instead.

        Returns:
            The task as text, and info with "task_id", "messages" and "tools" (JSON schemas).
        """
        super().reset(seed=seed)
        task_set = self.task_set()
        index = (options or {}).get("task")
        if index is None:
            index = int(self.np_random.integers(len(task_set)))
        if not 0 <= index < len(task_set):
            raise ConfigError(f"Task {index} does not exist: the {self.split} split has {len(task_set)} tasks.")
        self._close_toolbox()
        self._toolbox = Toolbox(self.tools)
        self._task = task_set[index]
        self._episode = Episode(messages=self._opening(self._task))
        info = {"task_id": self._task.id, "messages": list(self._episode.messages), "tools": self._toolbox.schemas}
        return _as_text(self._episode.messages, "user"), info

    def step(self, action: str) -> tuple[str, float, bool, bool, JsonDict]:
        """Plays one assistant turn.

        Args:
            action: The turn's text, end-of-turn token excluded.

        Raises:
            gymnasium.error.ResetNeeded: The episode has ended, or none was started.
            InfrastructureError: A tool's surroundings failed; the episode says nothing about the agent.
        """
        task, toolbox = self._running()
        episode = self._episode
        calls = parse_tool_calls(action)
        episode.messages.append(msg.assistant(action))
        new: list[Message] = []
        for call in calls:
            result = toolbox.call(call)
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

        The unfinished turn (empty if none was begun) runs no tool and is no answer; the reward function judges what there was before.
        """
        task, _ = self._running()
        if action:
            self._episode.messages.append(msg.assistant(action))
            self._episode.num_turns += 1
        self._episode.stop_reason = StopReason.MAX_TOKENS
        return self._outcome(task, [])

    def render(self) -> str | None:  # type: ignore[override]
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
            ForkError: A tool can do neither, or a repeated call gave another result.
        """
        _, toolbox = self._running()
        shared = (self._task_sets, self._task, self.tools, self.spec)
        memo: dict[int, Any] = {id(value): value for value in shared}
        memo[id(self._toolbox)] = None
        clone = copy.copy(self)
        clone.__dict__ = copy.deepcopy(self.__dict__, memo)
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
        if not all(tool.replayable for tool in self.tools):
            raise reason
        toolbox = Toolbox(self.tools)
        for number, record in enumerate(self._episode.calls):
            text = toolbox.call(record.call).text
            if text != record.result.text:
                toolbox.close()
                raise ForkError(
                    f"Repeating call {number} of tool {record.result.tool!r} gave another result "
                    f"({text[:80]!r} instead of {record.result.text[:80]!r}); give the tool a fork() of its own."
                ) from reason
        return toolbox

    # Internals -------------------------------------------------------------------------------------------------------

    def _opening(self, task: Task) -> list[Message]:
        opening = [msg.system(self.system_prompt)] if self.system_prompt else []
        return [*opening, msg.user(task.prompt)] if isinstance(task.prompt, str) else [*opening, *task.prompt]

    def _running(self) -> tuple[Task, Toolbox]:
        if self._task is None or self._toolbox is None or self._episode.done:
            raise gymnasium.error.ResetNeeded("No episode is running: call reset() first.")
        return self._task, self._toolbox

    def _outcome(self, task: Task, new: list[Message]) -> tuple[str, float, bool, bool, JsonDict]:
        episode = self._episode
        reward = self.turn_reward(task, episode)
        info: JsonDict = {"task_id": task.id, "messages": new}
        if episode.stop_reason is not None:
            final = self.reward(task, episode)
            success = self.success(task, episode, final)
            reward += final
        if not math.isfinite(reward):
            raise ValueError(f"{type(self).__name__} gave a reward of {reward} for task {task.id}; it must be finite.")
        episode.turn_rewards.append(float(reward))
        if episode.stop_reason is not None:
            info["result"] = episode.summary(success)
            self._close_toolbox()
        truncated = episode.stop_reason is not None and episode.stop_reason.is_truncation
        return _as_text(new, "tool"), float(reward), episode.done and not truncated, truncated, info

    def _close_toolbox(self) -> None:
        if self._toolbox is not None:
            self._toolbox.close()
            self._toolbox = None


def _as_text(messages: Sequence[Message], role: msg.Role) -> str:
    return "\n\n".join(message["content"] for message in messages if message["role"] == role)
