"""The contract of an environment as tests to inherit.

    class TestLetters(EnvContract):
        env_id = "agentrl/Letters-v0"

and pytest checks everything below. Nothing here needs pytest itself.
"""

import copy
import json
import math
import unittest
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, TypeAlias

import gymnasium
import numpy as np
from gymnasium.utils.env_checker import check_env

from agentrl.chat.tool_calls import format_tool_call
from agentrl.envs.registration import make
from agentrl.envs.tool_env import ToolEnv
from agentrl.messages import JsonDict, ToolCall
from agentrl.seeding import generator
from agentrl.tasks import task_key

Player: TypeAlias = Callable[[ToolEnv], str]
"""What chooses the next action."""


class Transition(NamedTuple):
    """What `step` returned."""

    observation: str
    reward: float
    terminated: bool
    truncated: bool
    info: JsonDict


class EnvContract:
    """Inherit it in a class called `Test...`, and set `env_id` or override `make_env`."""

    env_id: ClassVar[str] = ""
    """As registered; without it the checks that need `gymnasium.make` are skipped."""
    arguments: ClassVar[Mapping[str, Any]] = {}
    """Arguments for every environment that is made."""
    variants: ClassVar[Sequence[Mapping[str, Any]]] = ({},)
    """Further arguments of which each is tested, `({"level": 1}, {"level": 2})` for example."""
    splits: ClassVar[Sequence[str]] = ("train", "test")
    num_tasks: ClassVar[int] = 8
    """Tasks tried of every variant and split."""
    floor: ClassVar[float] = 0.05
    """Highest share of tasks that agents which do not work may solve, and highest mean reward they may get."""

    def make_env(self, **arguments: Any) -> ToolEnv:
        """A new environment.

        Args:
            arguments: Such as `split`; they go before `arguments` of the class.
        """
        env = make(self.env_id, **{**self.arguments, **arguments}).unwrapped
        assert isinstance(env, ToolEnv), f"{self.env_id} is a {type(env).__name__}, no ToolEnv."
        return env

    # Gymnasium -------------------------------------------------------------------------------------------------------

    def test_gymnasium_check_env(self) -> None:
        """`check_env` passes without a warning."""
        for variant in self.variants:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                if not self.env_id:  # what cannot be made anew cannot be rendered in every mode
                    warnings.filterwarnings("ignore", ".*not having a spec.*")
                check_env(self.make_env(**variant))

    def test_gymnasium_make(self) -> None:
        """`gymnasium.make` knows the id, passes arguments on, and every render mode that is promised exists."""
        env = gymnasium.make(self._registered_id(), **self.arguments, render_mode="ansi")
        env.reset(seed=1)
        assert env.spec is not None
        assert env.spec.id == self._registered_id(), f"The spec has the id {env.spec.id}."
        assert isinstance(env.render(), str), "render_mode='ansi' must give the transcript as text."
        env.close()
        env.close()

    def test_gymnasium_make_vec(self) -> None:
        """Vector environments work, in this process and in others."""
        for mode, options in (("sync", {}), ("async", {"shared_memory": False})):
            envs = gymnasium.make_vec(
                self._registered_id(), 2, vectorization_mode=mode, vector_kwargs=options, **self.arguments
            )
            try:
                observations, _ = envs.reset(seed=3)
                assert len(observations) == 2, f"{mode}: got {len(observations)} observations for 2 environments."
                _, rewards, terminated, truncated, _ = envs.step(("", ""))
                assert np.isfinite(rewards).all(), f"{mode}: rewards {rewards}"
                assert (terminated | truncated).all(), f"{mode}: an empty turn must end the episode."
            finally:
                envs.close()

    def test_observations_are_in_the_space(self) -> None:
        """What `reset` and `step` return belongs to the observation space."""
        for env, index in self._tasks(2):
            observation, _ = env.reset(options={"task": index})
            for text in (observation, *(step.observation for step in _play(env, _oracle))):
                assert text in env.observation_space, f"not in {env.observation_space}: {text!r}"

    # Determinism and isolation ---------------------------------------------------------------------------------------

    def test_seed_decides_the_episode(self) -> None:
        """Two environments with one seed are alike; over ten seeds the tasks differ."""
        for variant in self.variants:
            first, second = self.make_env(**variant), self.make_env(**variant)
            seen = set()
            for seed in range(10):
                one, two = first.reset(seed=seed), second.reset(seed=seed)
                assert one == two, f"seed {seed} gave two different starts:\n{one}\n{two}"
                seen.add(one[1]["task_id"])
            assert len(seen) > 1 or len(first.task_set()) == 1, "ten seeds always gave the same task"
            for player in (_oracle, _random_caller(5)):
                first.reset(seed=1)
                second.reset(seed=1)
                assert _play(first, player) == _play(second, _again(player)), "the same actions had different effects"
            first.close()
            second.close()

    def test_instances_are_isolated(self) -> None:
        """An episode goes the same way when another instance is used between its steps."""
        for env, index in self._tasks(2):
            alone = self._reference(env, index)
            other = self.make_env()
            disturb = _random_caller(index)
            env.reset(options={"task": index})
            between = []
            while not env.episode.done:
                if other.episode.done:
                    other.reset(seed=index)
                between.append(Transition(*env.step(_oracle(env))))
                other.step(disturb(other))
            other.close()
            assert between == alone, "using another instance changed the episode"

    def test_info_belongs_to_the_caller(self) -> None:
        """Whoever changes what `info` holds does not change the episode."""
        for env, index in self._tasks(1):
            _, info = env.reset(options={"task": index})
            start = copy.deepcopy(info)
            while True:
                before = copy.deepcopy(env.episode)
                _spoil(info)
                assert env.episode == before, "changing info changed the episode"
                if env.episode.done:
                    break
                info = env.step(_oracle(env))[-1]
            assert env.reset(options={"task": index})[1] == start, "changing info changed later episodes"

    # Episodes --------------------------------------------------------------------------------------------------------

    def test_info_is_json_clean_and_rewards_are_finite(self) -> None:
        """Every info survives JSON unchanged; every reward is a finite float."""
        for env, index in self._tasks(2):
            for player in (_oracle, _random_caller(index), _silent):
                _, info = env.reset(options={"task": index})
                _check_json(info)
                for step in _play(env, player):
                    _check_json(step.info)
                    assert type(step.reward) is float, f"a reward of type {type(step.reward).__name__}"
                    assert math.isfinite(step.reward), f"a reward of {step.reward}"

    def test_finished_episode_needs_reset(self) -> None:
        """Before the first reset and after the end `step` raises ResetNeeded; after a reset it works again."""
        env = self.make_env()
        _expect_reset_needed(env)
        env.reset(seed=1)
        _play(env, _silent)
        _expect_reset_needed(env)
        env.reset(seed=2)
        assert _play(env, _silent), "no step was possible after a reset"
        env.close()
        env.close()

    def test_step_limit_truncates(self) -> None:
        """An agent that only calls tools is stopped by `max_turns`; a cut-off one by `truncate`."""
        for env, index in self._tasks(1):
            env.reset(options={"task": index})
            steps = _play(env, lambda _: "<tool_call>{}</tool_call>")
            ends = [(step.terminated, step.truncated) for step in steps]
            assert ends == [(False, False)] * (env.max_turns - 1) + [(False, True)], f"{env.max_turns} turns: {ends}"
            env.reset(options={"task": index})
            step = Transition(*env.truncate("half a tur"))
            assert (step.terminated, step.truncated) == (False, True), "truncate() must truncate the episode"
            _expect_reset_needed(env)

    def test_fork_is_equal_and_independent(self) -> None:
        """A copy made in the middle goes on like the original, whatever happens to the other of the two."""
        for env, index in self._tasks(1):
            reference = self._reference(env, index)
            for start in range(len(reference)):
                for disturb_copy in (False, True):
                    env.reset(options={"task": index})
                    for _ in range(start):
                        env.step(_oracle(env))
                    twin = env.fork()
                    kept, disturbed = (env, twin) if disturb_copy else (twin, env)
                    _play(disturbed, _random_caller(start))
                    rest = _play(kept, _oracle)
                    which = "original" if disturb_copy else "copy"
                    assert rest == reference[start:], f"after {start} turns the {which} went on differently:\n{rest}"
                    twin.close()

    # Agents ----------------------------------------------------------------------------------------------------------

    def test_oracle_solves_every_task(self) -> None:
        """The oracle succeeds in every variant and split."""
        for env, index in self._tasks(self.num_tasks):
            steps = self._reference(env, index)
            assert steps[-1].info["result"]["success"], f"task {env.task}:\n{_transcript(env)}"

    def test_agents_that_do_not_work_stay_at_the_floor(self) -> None:
        """Saying nothing, talking at random and calling tools at random does not pay."""
        for name, make_player in (
            ("null", lambda _: _silent),
            ("talking", _random_talker),
            ("calling", _random_caller),
        ):
            outcomes = []
            for env, index in self._tasks(self.num_tasks):
                env.reset(options={"task": index})
                steps = _play(env, make_player(index))
                outcomes.append((steps[-1].info["result"]["success"], sum(step.reward for step in steps)))
            success, reward = (float(np.mean(values)) for values in zip(*outcomes, strict=True))
            assert success <= self.floor, f"the {name} agent solves {success:.0%} of the tasks"
            assert reward <= self.floor, f"the {name} agent has a mean reward of {reward:.3f}"

    def test_splits_share_no_task(self) -> None:
        """No task of one split is in another one."""
        for variant in self.variants:
            seen: dict[str, str] = {}
            for split in self.splits:
                tasks = self.make_env(**variant, split=split).task_set()
                for index in range(min(len(tasks), 100)):
                    owner = seen.setdefault(task_key(tasks[index]), split)
                    assert owner == split, f"a task of {split} is in {owner} too: {tasks[index].prompt!r}"

    # Helpers ---------------------------------------------------------------------------------------------------------

    def _registered_id(self) -> str:
        if not self.env_id:
            raise unittest.SkipTest("The contract was given no env_id.")
        return self.env_id

    def _tasks(self, count: int) -> Iterator[tuple[ToolEnv, int]]:
        """Environments of every variant and split, each with several indices of tasks."""
        for variant in self.variants:
            for split in self.splits:
                env = self.make_env(**variant, split=split)
                for index in range(min(count, len(env.task_set()))):
                    yield env, index
                env.close()

    def _reference(self, env: ToolEnv, index: int) -> list[Transition]:
        """The undisturbed episode of the oracle."""
        env.reset(options={"task": index})
        return _play(env, _oracle)


# Players -------------------------------------------------------------------------------------------------------------

_WORDS = ("yes", "no", "7", "the", "town", "search", "answer: 12", "x", "<b>", "why?")


class _RandomCaller:
    """Calls tools with random arguments for two turns, then talks."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._rng = generator(seed, "random caller")

    def __call__(self, env: ToolEnv) -> str:
        if env.episode.num_turns >= 2 or not env.tools:
            return _talk(self._rng)
        tool = env.tools[int(self._rng.integers(len(env.tools)))]
        properties = tool.parameters.get("properties", {})
        values = {name: _value(self._rng, schema) for name, schema in properties.items()}
        return format_tool_call(ToolCall(tool.name, values))


def _random_caller(seed: int) -> Player:
    return _RandomCaller(seed)


def _random_talker(seed: int) -> Player:
    rng = generator(seed, "random talker")
    return lambda _: _talk(rng)


def _again(player: Player) -> Player:
    """The same player from its beginning."""
    return _RandomCaller(player.seed) if isinstance(player, _RandomCaller) else player


def _oracle(env: ToolEnv) -> str:
    return env.oracle(env.task, env.episode)


def _silent(env: ToolEnv) -> str:
    return ""


def _talk(rng: np.random.Generator) -> str:
    return " ".join(_WORDS[i] for i in rng.integers(len(_WORDS), size=int(rng.integers(1, 6))))


def _value(rng: np.random.Generator, schema: Mapping[str, Any]) -> Any:
    """A random value of a JSON schema's type."""
    options: dict[str, Any] = {
        "integer": int(rng.integers(1, 9)),
        "number": float(rng.integers(1, 9)),
        "boolean": bool(rng.integers(2)),
        "array": [],
        "object": {},
    }
    return options.get(str(schema.get("type")), _talk(rng))


def _play(env: ToolEnv, player: Player) -> list[Transition]:
    """Plays the running episode to its end."""
    steps: list[Transition] = []
    while not env.episode.done:
        steps.append(Transition(*env.step(player(env))))
    return steps


# Checks --------------------------------------------------------------------------------------------------------------


def _check_json(info: JsonDict) -> None:
    try:
        text = json.dumps(info, allow_nan=False)
        text.encode()
    except (TypeError, ValueError) as error:
        raise AssertionError(f"info is not JSON ({error}): {info}") from error
    assert json.loads(text) == info, f"info does not survive JSON: {info}"


def _expect_reset_needed(env: ToolEnv) -> None:
    try:
        env.step("x")
    except gymnasium.error.ResetNeeded:
        return
    raise AssertionError("step() without a running episode must raise gymnasium.error.ResetNeeded")


def _spoil(value: Any) -> None:
    """Changes everything in a nested value that can be changed."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for item in items:
        _spoil(item)
    if isinstance(value, dict | list):
        value.clear()


def _transcript(env: ToolEnv) -> str:
    return "\n".join(f"[{message['role']}] {message['content']}" for message in env.episode.messages)
