"""`agentrl play`: a person, or the environment's oracle, plays an episode through the interface that models get."""

import contextlib
import random
import sys
from collections.abc import Callable, Sequence

import gymnasium
from rich.console import Console
from rich.text import Text

from agentrl.cli.play_input import Hint, read_move, usage
from agentrl.cli.tree_view import printable
from agentrl.envs import ToolEnv
from agentrl.errors import ConfigError
from agentrl.messages import JsonDict, Message
from agentrl.rollout.track import TurnOutcome, open_episode, play_turn
from agentrl.trajectory import StopReason

Player = Callable[[], str | None]
"""Gives the next turn; None: does not want to go on."""

_ROLE_STYLES = {"system": "dim", "user": "bold", "assistant": "cyan", "tool": "yellow"}
_MAX_ANSWER_CHARS = 400


def play(env: gymnasium.Env[str, str], *, task: int | None, oracle: bool) -> TurnOutcome | None:
    """Plays one episode, shows it, and closes the environment.

    Args:
        env: Any Gymnasium environment of text.
        task: Index into its split; None draws one.
        oracle: Let the environment's own solution play.

    Returns:
        What the environment said last; None if the person stopped before the end.

    Raises:
        ConfigError: No such task, or no oracle.
    """
    console = Console(highlight=False, soft_wrap=True)
    try:
        inner = env.unwrapped
        index, title = _chosen_task(inner, task)
        opening = open_episode(env, index)
        messages, tools = opening.messages, opening.tools
        console.print(Text(title, "bold cyan"))
        _show_messages(console, messages)
        if tools:
            console.print(Text(f"Tools: {', '.join(usage(tool['function']) for tool in tools)}"))
        player = _oracle(env, index) if oracle else _person(console, tools)
        outcome, reward = _play_turns(env, player, console, echo=oracle or not sys.stdin.isatty())
        if outcome is None:
            console.print(Text("Stopped before the end: no reward.", "magenta"))
        else:
            _show_end(console, outcome, reward, inner, index)
        return outcome
    finally:
        env.close()


def _play_turns(
    env: gymnasium.Env[str, str], player: Player, console: Console, *, echo: bool
) -> tuple[TurnOutcome | None, float]:
    """The last outcome and the sum of the rewards."""
    reward = 0.0
    while True:
        text = player()
        if text is None:
            return None, reward
        if echo:
            _show_messages(console, [{"role": "assistant", "content": text}])
        outcome = play_turn(env, text, truncate=False)
        reward += outcome.reward
        _show_messages(console, outcome.messages)
        if outcome.stop_reason is not None:
            return outcome, reward


def _chosen_task(env: gymnasium.Env[str, str], task: int | None) -> tuple[int, str]:
    if not isinstance(env, ToolEnv):
        index = random.randrange(2**31) if task is None else task
        return index, f"seed {index}"
    size = len(env.task_set())
    index = random.randrange(size) if task is None else task
    return index, f"task {index} of {size} in the {env.split} split, at most {env.max_turns} turns"


def _oracle(env: gymnasium.Env[str, str], index: int) -> Player:
    inner = env.unwrapped
    if not isinstance(inner, ToolEnv):
        raise ConfigError(f"{type(inner).__name__} has no oracle: only environments derived from agentrl.ToolEnv do.")
    task = inner.task_set()[index]
    return lambda: inner.oracle(task, inner.episode)


def _person(console: Console, tools: Sequence[JsonDict]) -> Player:
    asks = sys.stdin.isatty()
    if asks:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - gives input() a history and arrow keys
        console.print(Text("Type a tool and its argument, or your answer; ! for help.", "dim"))

    def read_line(prompt: str) -> str | None:
        try:
            return input(prompt if asks else "")
        except EOFError:
            return None

    def next_turn() -> str | None:
        while (line := read_line("> ")) is not None:
            move = read_move(line, tools, lambda: read_line("... "))
            if not isinstance(move, Hint):
                return move.text
            console.print(Text(move.text, "dim"))
        return None

    return next_turn


# Output ---------------------------------------------------------------------------------------------------------------


def _show_messages(console: Console, messages: Sequence[Message]) -> None:
    for message in messages:
        role = message["role"]
        console.print(Text(f"[{message.get('name', role)}] {printable(message['content'])}", _ROLE_STYLES[role]))


def _show_end(console: Console, outcome: TurnOutcome, reward: float, env: gymnasium.Env[str, str], index: int) -> None:
    success = bool(outcome.result.get("success", reward >= 1.0))
    verdict = "right" if success else "wrong"
    reason = "" if outcome.stop_reason is StopReason.ANSWERED else f" ({outcome.stop_reason})"
    console.print(Text(f"{verdict}, reward {reward:g}{reason}", "bold green" if success else "bold magenta"))
    if isinstance(env, ToolEnv) and not success:
        answer = env.task_set()[index].answer
        if answer is not None:
            shown = printable(str(answer))
            cut = "..." if len(shown) > _MAX_ANSWER_CHARS else ""
            console.print(Text(f"The answer is {shown[:_MAX_ANSWER_CHARS]}{cut}"))
