"""Demonstrations: episodes played by a function instead of a model, in the same token trees."""

from collections.abc import Callable
from typing import TypeAlias

from agentrl.chat.template import ChatFormat
from agentrl.envs import Episode, ToolEnv
from agentrl.journal import Journal
from agentrl.rollout.track import finished_leaf, open_episode, play_turn
from agentrl.tasks import Task
from agentrl.trajectory import Tree

Actor: TypeAlias = Callable[[Task, Episode], str]
"""From a task and what has happened to the next turn's text; an environment's `oracle` is one."""


def demonstrate(env: ToolEnv, chat: ChatFormat, task: int, actor: Actor, *, journal: Journal | None = None) -> Tree:
    """Plays one task.

    Args:
        env: Reset to the task here.
        chat: Turns text into the tokens that a model would have had to sample, the end of every turn included.
        task: Index into the environment's split.
        actor: Says what the agent says.
        journal: Where tool calls are recorded; None for nowhere.

    Returns:
        A tree with one leaf; the actor's tokens have mask 1.

    Raises:
        InfrastructureError: A tool's surroundings failed, or the journal knows of a call that may not be repeated.
    """
    opening = open_episode(env, task)
    log = None
    if journal is not None:
        log = journal.open_episode(journal.claim_groups(1), (0,), task=task, split=env.split)
        env.record_calls(log)
    tree = Tree(task_id=opening.task_id, metadata={"task": task})
    segment = tree.add(None, "prompt", 0, chat.prompt_ids(opening.messages, opening.tools))
    rewards: list[float] = []
    state_keys = [opening.state_key]
    for turn in range(env.max_turns):
        text = actor(env.task_set()[task], env.episode)
        segment = tree.add(segment.id, "assistant", turn, chat.turn_ids(text))
        outcome = play_turn(env, text, truncate=False)
        rewards.append(outcome.reward)
        if outcome.stop_reason is not None:
            break
        state_keys.append(outcome.state_key)
        segment = tree.add(segment.id, "environment", turn, chat.suffix_ids(chat.end_of_turn_id, outcome.messages))
    leaf = finished_leaf(outcome, segment.id, rewards, state_keys=state_keys)
    leaf.episode = None if log is None else log.name
    tree.leaves.append(leaf)
    return tree
