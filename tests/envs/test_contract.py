"""Every registered environment keeps the contract; a new one is covered by registering it."""

import inspect
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import pytest

import agentrl.envs  # noqa: F401 - registers the environments
from agentrl.envs import EnvContract, ProceduralEnv, ToolEnv, make

REGISTERED = sorted(
    env_id
    for env_id, spec in gymnasium.registry.items()
    if isinstance(spec.entry_point, type) and spec.entry_point.__module__.startswith("agentrl.envs.")
)
HEADINGS = (
    "Description:",
    "Action Space:",
    "Observation Space:",
    "Starting State:",
    "Rewards:",
    "Episode End:",
    "Arguments:",
    "Version History:",
)
CHECKS = [name for name in vars(EnvContract) if name.startswith("test_")]


@pytest.fixture(scope="module")
def arguments_of(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Mapping[str, Any]]:
    """What an environment needs that has arguments without a default."""
    path = tmp_path_factory.mktemp("dataset") / "tasks.jsonl"
    rows = [{"prompt": f"What is {n} squared?", "answer": str(n * n)} for n in range(1000, 1200)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return {
        "agentrl/Dataset-v0": {"path": str(path), "tools": ["calculator"], "reward": "numeric"},
        "agentrl/CodeInterpreter-v0": {"sandbox": "unsafe_subprocess"},
    }


def environment_class(env_id: str) -> type[ToolEnv]:
    cls = gymnasium.spec(env_id).entry_point
    assert isinstance(cls, type)
    assert issubclass(cls, ToolEnv)
    return cls


def levels(env_id: str) -> Sequence[Mapping[str, Any]]:
    cls = environment_class(env_id)
    return [{"level": level} for level in cls.levels] if issubclass(cls, ProceduralEnv) else [{}]


def test_the_registry_is_what_the_tests_run_over() -> None:
    names = ("Arithmetic", "CodeInterpreter", "Dataset", "DeepResearch", "MultiHopSearch")
    assert [f"agentrl/{name}-v0" for name in names] == REGISTERED


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("env_id", REGISTERED)
def test_contract(env_id: str, check: str, arguments_of: Mapping[str, Mapping[str, Any]]) -> None:
    arguments = arguments_of.get(env_id, {})
    num_tasks = 8 if make(env_id, **arguments).unwrapped.inline else 4  # processes are slow
    settings = {"env_id": env_id, "arguments": arguments, "variants": levels(env_id), "num_tasks": num_tasks}
    contract = type("Contract", (EnvContract,), settings)()
    getattr(contract, check)()


@pytest.mark.parametrize("env_id", REGISTERED)
def test_documentation_has_the_fixed_headings_in_order(env_id: str) -> None:
    lines = [line.strip() for line in (inspect.getdoc(environment_class(env_id)) or "").splitlines()]
    assert [line for line in lines if line in HEADINGS] == list(HEADINGS)


@pytest.mark.parametrize("env_id", REGISTERED)
def test_documentation_names_every_argument(env_id: str) -> None:
    text = inspect.getdoc(environment_class(env_id)) or ""
    section = text.split("Arguments:")[1].split("Version History:")[0]
    for name in inspect.signature(environment_class(env_id)).parameters:
        assert f"\n    {name}: " in section, f"{name} is not in the section Arguments"


def test_importing_environments_loads_no_deep_learning_stack_and_builds_nothing() -> None:
    code = (
        "import sys, agentrl.envs, agentrl.envs.world as w; "
        "assert not {'torch', 'transformers', 'datasets', 'pyarrow'} & set(sys.modules), 'heavy import'; "
        "assert w._build_world.cache_info().currsize == w._build_search.cache_info().currsize == 0"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
