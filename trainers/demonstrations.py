"""Episodes to imitate: the oracle's, and those that the policy itself got right, with a hint if it must be (STaR)."""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import gymnasium

from agentrl.chat.template import ChatFormat
from agentrl.envs import ToolEnv
from agentrl.errors import ConfigError, InterruptedCallError
from agentrl.policies.core import Sampling
from agentrl.rollout.collector import Collector
from agentrl.rollout.demonstration import demonstrate
from agentrl.seeding import derive
from agentrl.trainers.imitation import SelfTaughtRecipe, solutions
from agentrl.trainers.rollouts import Harvest, OrderedSource, TaskOrder, require_valid, rollout_metrics
from agentrl.trajectory import Leaf, Segment, Tree


class OracleEpisodes(OrderedSource):
    """Lets the environment's oracle play.

    Args:
        make_env: Makes an environment with an oracle.
        chat: Turns text into tokens.
        order: Of the tasks.
        tasks_per_update: Episodes in an update.
    """

    def __init__(
        self,
        make_env: Callable[[], gymnasium.Env[str, str]],
        chat: ChatFormat,
        order: TaskOrder,
        *,
        tasks_per_update: int,
    ) -> None:
        super().__init__(order)
        self._make_env = make_env
        self._chat = chat
        self._tasks_per_update = tasks_per_update

    def sample(self, seed: int) -> Harvest:
        """One episode of each of the next tasks; the same whatever the seed.

        Raises:
            ConfigError: The environment has no oracle.
        """
        env = self._make_env()
        try:
            inner = env.unwrapped
            if not isinstance(inner, ToolEnv):
                raise ConfigError(f"{env} has no oracle to imitate; give data.path, or use a ToolEnv with one.")
            trees = list(self._play(inner))
        finally:
            env.close()
        leaves = [leaf for tree in trees for leaf in tree.leaves]
        metrics = {
            "oracle_success": sum(leaf.success for leaf in leaves) / max(1, len(leaves)),
            "unique_tokens": float(sum(tree.num_tokens for tree in trees)),
        }
        return Harvest(trees, trees, metrics)

    def _play(self, env: ToolEnv) -> Iterator[Tree]:
        for task in self._order.draw(self._tasks_per_update):
            with contextlib.suppress(InterruptedCallError):  # the journal keeps count
                yield demonstrate(env, self._chat, task, env.oracle, journal=self.journal)


class SelfTaughtRollouts(OrderedSource):
    """Plays tasks, plays those again with a hint that no episode solved, and keeps what was right.

    What is kept of an episode with a hint is the episode without it: no tree ever holds a hint (`Collector.collect`),
    and an episode in which the agent speaks of it is thrown away.

    Args:
        collector: Policy, environment, limits.
        order: Of the tasks.
        recipe: Its sampling plan, its hint, its bound on solutions per task.
        chat: Of the policy's model.
        answer_of: The answer of a task as text; None where it has none, so that no hint can be given.
        tasks_per_update: Tasks in an update.
        sampling: How tokens are drawn.
    """

    def __init__(
        self,
        collector: Collector,
        order: TaskOrder,
        recipe: SelfTaughtRecipe,
        chat: ChatFormat,
        answer_of: Callable[[int], str | None],
        *,
        tasks_per_update: int,
        sampling: Sampling,
    ) -> None:
        super().__init__(order)
        self._collector = collector
        self._recipe = recipe
        self._chat = chat
        self._answer_of = answer_of
        self._tasks_per_update = tasks_per_update
        self._sampling = sampling

    def sample(self, seed: int) -> Harvest:
        """One iteration: generate, filter, rationalise; metrics of episodes are those without a hint.

        Args:
            seed: Of this update.

        Raises:
            ConfigError: No episode is valid.
        """
        tasks = self._order.draw(self._tasks_per_update)
        trees = self._collector.collect(
            tasks, self._recipe.sampling, seed=derive(seed, "batch", 0), sampling=self._sampling
        )
        require_valid(trees)
        hints = self._hints(trees)
        told = self._collector.collect(
            list(hints), self._recipe.sampling, seed=derive(seed, "rationalise"), sampling=self._sampling, hints=hints
        )
        seen: dict[str, set[tuple[int, ...]]] = {}
        own = [tree for tree in (self._choose(tree, seen) for tree in trees) if tree]
        rationalised = [tree for tree in (self._choose(tree, seen, hints) for tree in told) if tree]
        metrics = {
            **rollout_metrics(trees),
            "kept_episodes": float(sum(len(tree.leaves) for tree in own)),
            "hinted_tasks": float(len(told)),
            "kept_hinted_episodes": float(sum(len(tree.leaves) for tree in rationalised)),
        }
        return Harvest(trees, [*own, *rationalised], metrics)

    def _hints(self, trees: Sequence[Tree]) -> dict[int, str]:
        """By task, for those that were played and not solved."""
        if self._recipe.hint is None:
            return {}
        failed = [tree.metadata["task"] for tree in trees if tree.valid_leaves and solutions(tree) is None]
        answers = {task: self._answer_of(task) for task in failed}
        return {
            task: self._recipe.hint.replace("{answer}", answer)
            for task, answer in answers.items()
            if answer is not None
        }

    def _choose(
        self, tree: Tree, seen: dict[str, set[tuple[int, ...]]], hints: Mapping[int, str] | None = None
    ) -> Tree | None:
        """The solutions that are new, as many as a task may have."""
        good = solutions(tree)
        if good is None:
            return None
        known = seen.setdefault(tree.task_id, set())
        hint = None if hints is None else hints[tree.metadata["task"]]
        chosen: list[Leaf] = []
        for leaf in good.leaves:
            ids = tuple(good.token_ids(leaf.segment))
            if ids in known or len(known) >= self._recipe.max_per_task:
                continue
            if hint is None or not self._gives_away(good, leaf, hint):
                known.add(ids)
                chosen.append(leaf)
        return replace(good, leaves=chosen) if chosen else None

    def _gives_away(self, tree: Tree, leaf: Leaf, hint: str) -> bool:
        """Whether the agent says that there was a hint, which would show in what is imitated."""
        path = tree.path(leaf.segment)
        asked = self._text(path[0])
        said = "\n".join(self._text(segment) for segment in path if segment.origin == "assistant")
        phrases = [phrase.casefold() for phrase in (hint, *self._recipe.giveaways)]
        return any(phrase in said and phrase not in asked for phrase in phrases)

    def _text(self, segment: Segment) -> str:
        return self._chat.turn_text(segment.token_ids).casefold()


def answers_in(make_env: Callable[[], gymnasium.Env[str, str]]) -> Callable[[int], str | None]:
    """A function from a task of an environment's split to its answer as text.

    Of a list of answers that will all do it is the first. None where the task names none, or the environment is no
    `ToolEnv`.
    """
    env = make_env()
    try:
        tasks = env.unwrapped.task_set() if isinstance(env.unwrapped, ToolEnv) else None
    finally:
        env.close()
    return lambda number: None if tasks is None else answer_text(tasks[number].answer)


def answer_text(answer: Any) -> str | None:
    """An answer as one would say it.

    >>> answer_text(["Paris", "paris"]), answer_text(4.5), answer_text(None)
    ('Paris', '4.5', None)
    """
    if isinstance(answer, list | tuple):
        answer = answer[0] if answer else None
    return answer if answer is None or isinstance(answer, str) else json.dumps(answer)
