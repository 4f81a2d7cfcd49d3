"""`agentrl eval` and `agentrl compare`: local and served models, reports on the screen and on disk, every mistake."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_server import Body, Brain, ModelServer, refuses, says, serving

from agentrl.envs import make
from agentrl.envs.tool_env import ToolEnv
from agentrl.evaluation import EvaluationReport, read_report, summarize
from agentrl.trajectory import Leaf, StopReason, Tree

PARITY = "parity_env:Parity-v0"
QUICK = ["--env", PARITY, "--tasks", 12, "--max-turn-tokens", 6]


def value(stdout: str, label: str) -> str:
    """What stands behind a label in a plain report."""
    (found,) = re.findall(rf"^{re.escape(label)} +(.*)$", stdout, re.MULTILINE)
    return str(found)


def test_the_report_on_the_screen_and_on_disk(agentrl: Any, tiny_model: Path) -> None:
    result = agentrl("eval", tiny_model, *QUICK, "--attempts", 2, "--json", "report.json")
    assert result.exit_code == 0
    report = read_report(Path("report.json"))
    assert (report.num_episodes, len(report.tasks), report.environment) == (24, 12, "agentrl/Parity-v0 test")
    assert 0 < report.num_successes < 24  # the environment is made for that
    assert report.settings == {
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "seed": 0,
        "max_turn_tokens": 6,
        "max_episode_tokens": 2048,  # the model's context, which is shorter than the default limit
    }
    assert value(result.stdout, "policy") == report.policy == str(tiny_model)
    assert f"{report.num_successes} of 24, 95 % interval over tasks" in value(result.stdout, "success")
    assert re.fullmatch(r"\d+\.\d % \[\d+\.\d, \d+\.\d\]", value(result.stdout, "pass@2"))
    assert sum(int(count) for count in re.findall(r"\d+", value(result.stdout, "ended"))) == 24


def test_the_same_seed_gives_the_same_report_and_greedy_needs_none(agentrl: Any, tiny_model: Path) -> None:
    def outcome(*options: Any) -> EvaluationReport:
        agentrl("eval", tiny_model, *QUICK, "--json", "r.json", *options)
        return read_report(Path("r.json"))

    first, again, other = outcome("--seed", 1), outcome("--seed", 1), outcome("--seed", 2)
    assert first == again
    assert first.tasks != other.tasks
    assert outcome("--greedy", "--seed", 1).tasks == outcome("--temperature", 0, "--seed", 2).tasks


def test_arguments_reach_the_environment_and_name_the_tasks(agentrl: Any, tiny_model: Path) -> None:
    rates = []
    for shift in (0, 1):
        agentrl("eval", tiny_model, *QUICK, "--env-arg", f"shift={shift}", "--split", "train", "--json", "r.json")
        report = read_report(Path("r.json"))
        assert report.environment == f"agentrl/Parity-v0 train shift={shift}"
        assert report.tasks[0].task_id == "train-0"
        rates.append(report.num_successes)
    assert sum(rates) == 12  # what is even for one is odd for the other, and the tokens are the same


def test_no_more_tasks_than_there_are(agentrl: Any, tiny_model: Path) -> None:
    result = agentrl("eval", tiny_model, *QUICK, "--tasks", 99)
    assert value(result.stdout, "episodes") == "12 (12 tasks, 1 per task)"


# Served models


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Brain], ModelServer]]:
    with serving(monkeypatch) as start:
        yield start


def arithmetic_solver(level: int) -> Brain:
    """Knows the steps of every problem, as the oracle does, and calls the calculator for them."""
    env = make("Arithmetic-v0", level=level, split="test").unwrapped
    assert isinstance(env, ToolEnv)
    steps = {task.prompt: task.metadata["steps"] for task in env.task_set()[:20]}

    def brain(body: Body) -> Body:
        results = [message["content"] for message in body["messages"] if message["role"] == "tool"]
        todo = steps[body["messages"][0]["content"]]
        if len(results) < len(todo):
            return says(None, ("calculator", json.dumps({"expression": todo[len(results)]})), tokens=10)
        return says(f"It is {results[-1]}.", tokens=5)

    return brain


@pytest.mark.parametrize("level", [1, 3])
def test_a_served_model_that_solves_everything(agentrl: Any, serve: Any, level: int) -> None:
    server = serve(arithmetic_solver(level))
    options = ["--env", "Arithmetic-v0", "--env-arg", f"level={level}", "--tasks", 20, "--json", "r.json"]
    result = agentrl("eval", "solver-7b", "--base-url", server.url, *options)
    assert result.exit_code == 0
    assert value(result.stdout, "policy") == f"solver-7b at {server.url}"
    assert value(result.stdout, "success").startswith("100.0 % [83.9, 100.0]  20 of 20")  # Wilson: 20 / (20 + 1.96^2)
    assert value(result.stdout, "tool calculator").endswith("0 of 20 failed")
    assert value(result.stdout, "tokens") == "15.0 sampled per episode"
    assert value(result.stdout, "ended") == "answered 20"
    assert value(result.stdout, "settings").endswith("tools structured")
    assert {body["model"] for body in server.bodies} == {"solver-7b"}


def test_the_key_comes_from_the_environment(agentrl: Any, serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(lambda body: says("xx"))
    command = ["eval", "m", "--base-url", server.url, "--env", PARITY, "--tasks", 1]
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    agentrl(*command)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-first")
    agentrl(*command)
    monkeypatch.setenv("MY_KEY", "sk-second")
    result = agentrl(*command, "--api-key-env", "MY_KEY", "--json", "r.json")
    assert server.keys == [None, "Bearer sk-first", "Bearer sk-second"]
    assert "sk-" not in result.output + Path("r.json").read_text()
    result = agentrl(*command, "--api-key-env", "NO_KEY")
    assert result.stderr == "error: --api-key-env names the environment variable NO_KEY, which is not set.\n"


def test_an_evaluation_that_measured_nothing_fails(agentrl: Any, serve: Any) -> None:
    def brain(body: Body) -> Any:
        return refuses("gone mad", 422) if len(body["messages"]) > 1 else says(None, ("shout", '{"text": "a"}'))

    result = agentrl("eval", "m", "--base-url", serve(brain).url, *QUICK, "--tasks", 2)
    assert result.exit_code == 1
    assert value(result.stdout, "success") == "not measured: no episode was valid"
    assert len(re.findall(r"^invalid +test-\d: .*HTTP status 422.*gone mad", result.stdout, re.MULTILINE)) == 2


def test_a_server_that_is_not_there(agentrl: Any) -> None:
    result = agentrl("eval", "m", "--base-url", "http://127.0.0.1:9", *QUICK)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: The model server http://127.0.0.1:9/v1/chat/completions failed: Connect")
    assert result.stderr.count("\n") == 1


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["MODEL", "--env", "Parity-v9"], "Unknown environment 'Parity-v9'."),
        (["MODEL"], "Name an environment with --env; `agentrl envs` lists them."),
        (["MODEL", *QUICK, "--env-arg", "shfit=1"], "got an unexpected keyword argument 'shfit'."),
        (["MODEL", "--env", "Arithmetic-v0", "--env-arg", "level=9"], "level must be a number from 1 to 5"),
        (["MODEL", "--env", "Arithmetic-v0", "--split", "dev"], "Unknown split 'dev'. Known: test, train."),
        (["MODEL", "--env", "Dataset-v0", "--env-arg", "path=no.jsonl"], "no.jsonl"),
        (["MODEL", *QUICK, "--greedy", "--temperature", "1"], "--greedy decides alone"),
        (["MODEL", *QUICK, "--top-p", "0"], "top_p must be in (0, 1], got 0.0."),
        (["MODEL", *QUICK, "--device", "abacus"], "device='abacus' is no device of this machine."),
        (["MODEL", *QUICK, "--json", "no/folder/r.json"], "--json no/folder/r.json is in the folder no/folder, which"),
        (["MODEL", *QUICK, "--base-url", "localhost:8000"], "The base URL must look like http://localhost:8000/v1"),
        (["MODEL", *QUICK, "--base-url", "http://h", "--device", "cpu"], "--device is for models on this machine"),
        (["MODEL", *QUICK, "--base-url", "http://h", "--timeout", "0"], "must be positive and finite, got 0.0."),
        (["./nowhere", *QUICK], "There is no model folder './nowhere'."),
        (["empty", *QUICK], "'empty' is no model folder: it has no config.json."),
        (["damaged", *QUICK], "Model 'damaged' cannot be loaded: Error while deserializing header"),
        (["file.txt", *QUICK], "'file.txt' is a file; expected 'quickstart', a model folder"),
        (["runs/nowhere", *QUICK], "runs/nowhere does not exist. Expected a run folder"),
    ],
)
def test_a_mistake_is_one_line(agentrl: Any, tiny_model: Path, arguments: list[Any], line: str) -> None:
    Path("empty").mkdir()
    Path("file.txt").touch()
    Path("damaged").mkdir()
    for file in tiny_model.iterdir():
        Path("damaged", file.name).write_bytes(file.read_bytes() if file.suffix != ".safetensors" else b"xx")
    result = agentrl("eval", *(tiny_model if argument == "MODEL" else argument for argument in arguments))
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert line in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_a_hub_id_without_a_hub(agentrl: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # or it is tried for a minute
    result = agentrl("eval", "nobody/nothing", *QUICK)
    note, error = result.stderr.splitlines()
    assert note == "There is no folder 'nobody/nothing' here; asking the Hugging Face hub."
    assert error.startswith("error: Model 'nobody/nothing' cannot be loaded: ")
    assert result.exit_code == 2


def test_as_a_program_nothing_else_is_printed(tmp_path: Path, tiny_model: Path) -> None:
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "agentrl.cli", "eval", tiny_model, *QUICK, "--tasks", 2]
    result = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}
    )
    assert (result.returncode, result.stderr) == (0, "")  # no progress bar of a library, no warning
    assert result.stdout.startswith("environment ")
    assert value(result.stdout, "episodes") == "2 (2 tasks, 1 per task)"


# Comparisons


def write_report(path: str, solved: str, environment: str = "Toy test", temperature: float = 1.0) -> str:
    """A report on one attempt per task: "1" where it succeeded."""
    trees = []
    for number, mark in enumerate(solved):
        tree = Tree(f"test-{number}")
        tree.add(None, "prompt", 0, [])
        tree.leaves.append(Leaf(0, StopReason.ANSWERED, float(mark == "1"), mark == "1"))
        trees.append(tree)
    report = summarize(trees, environment=environment, policy=path[:-5], settings={"temperature": temperature})
    Path(path).write_text(json.dumps(report.to_json()))
    return path


def test_a_comparison_with_its_arithmetic(agentrl: Any) -> None:
    first, second = write_report("a.json", "0000000011"), write_report("b.json", "1111110001")
    result = agentrl("compare", first, second)
    assert result.exit_code == 0
    # Better on 6 tasks and worse on 1, so McNemar's exact p is 2 (C(7,0) + C(7,1)) / 2^7 = 16 / 128 = 0.125; (6-1)/10.
    assert "difference +50.0 points" in result.stdout
    assert "p = 0.1250; better on 6 and worse on 1 of 10 tasks" in result.stdout
    assert re.search(r"^first +20.0 % \[.*\]  a$", result.stdout, re.MULTILINE)
    assert re.search(r"^second +70.0 % \[.*\]  b$", result.stdout, re.MULTILINE)
    assert "measured differently" not in result.stdout


def test_what_differs_in_the_measurement_is_said(agentrl: Any) -> None:
    first, second = write_report("a.json", "01"), write_report("b.json", "01", temperature=0.0)
    assert "measured differently: temperature 1.0 and 0.0" in agentrl("compare", first, second).stdout


def test_reports_that_cannot_be_compared(agentrl: Any) -> None:
    first = write_report("a.json", "01")
    other = write_report("b.json", "01", environment="Toy test level=2")
    Path("junk.json").write_text("{}")
    for second, message in [
        (other, "Reports of different environments cannot be compared: 'Toy test' and 'Toy test level=2'."),
        ("none.json", "Cannot read the report none.json: No such file or directory."),
        ("junk.json", "junk.json: Not an evaluation report"),
    ]:
        result = agentrl("compare", first, second)
        assert result.exit_code == 2
        assert result.stderr.startswith(f"error: {message}")
