"""`agentrl train`: real runs of a tiny model, where they are put, how they go on, and every mistake."""

import dataclasses
import io
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console
from transformers import AutoModelForCausalLM

from agentrl.cli.train import print_result
from agentrl.evaluation import EvaluationReport, read_report, summarize
from agentrl.runs import RunFolder, RunStatus, read_metrics
from agentrl.seeding import derive
from agentrl.trainers.checkpoint import load_checkpoint
from agentrl.trainers.trainer import Trainer
from agentrl.trainers.training import TrainResult
from agentrl.trajectory import Leaf, StopReason, Tree


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(checkpoint).state_dict())


def assert_equal_weights(first: Path, second: Path) -> None:
    ours, theirs = weights(first), weights(second)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def line(stdout: str, label: str) -> str:
    """What stands behind a label in the plain result."""
    (found,) = re.findall(rf"^{re.escape(label)} {{2,}}(.*)$", stdout, re.MULTILINE)
    return str(found)


def test_an_episode_limit_beyond_the_context_is_told(agentrl: Any, config: Path) -> None:
    result = agentrl("train", config, "rollout.max_episode_tokens=3000", "updates=1", "evaluation.tasks=1")
    assert result.exit_code == 0, result.stderr
    note = "note: episodes end at 2048 tokens, the model's context, and not at rollout.max_episode_tokens=3000"
    assert note in result.stdout.splitlines()


def test_a_mistyped_setting_is_told_before_pytorch_is_imported() -> None:
    program = (
        "import sys; from pathlib import Path; from agentrl.cli.train import run_training; "
        "from agentrl.errors import ConfigError\n"
        "try: run_training(Path(sys.argv[1]), ['recipee=arpo'], resume=False)\n"
        "except ConfigError as error: print(error, {'torch', 'transformers'} & {*sys.modules})"
    )
    config = Path(__file__).parents[2] / "examples/quickstart.yaml"
    told = subprocess.run([sys.executable, "-c", program, config], capture_output=True, text=True, check=True).stdout
    assert told == "command line: recipee: unknown key. Did you mean 'recipe'? set()\n"


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the third update end as Ctrl-C would."""
    original = Trainer._update

    def update(self: Trainer, number: int, *others: Any) -> Any:
        if number == 2:
            raise KeyboardInterrupt
        return original(self, number, *others)

    def switch(on: bool) -> None:
        monkeypatch.setattr(Trainer, "_update", update if on else original)

    return switch


def test_a_run_from_beginning_to_end(agentrl: Any, config: Path, tiny_model: Path) -> None:
    result = agentrl("train", config, "env.arguments.shift=2")
    assert result.exit_code == 0, result.stderr
    assert "note:" not in result.stdout
    run = Path("runs/small")  # named after the config file
    checkpoint = run / "checkpoints/update-000004"
    assert line(result.stdout, "run folder") == str(run)
    assert line(result.stdout, "curve") == str(run / "curve.png")
    assert line(result.stdout, "checkpoint") == str(checkpoint)
    assert (run / "curve.png").read_bytes().startswith(b"\x89PNG")
    new, old = weights(checkpoint), weights(tiny_model)
    assert not any(torch.equal(new[name], old[name]) for name in new)

    _, progress = load_checkpoint(checkpoint)
    for suffix, label in (("", "held-out success, temperature 1"), ("_greedy", "held-out success, greedy")):
        before, after = (
            EvaluationReport.from_json(progress.reports[f"{moment}{suffix}"]) for moment in ("before", "after")
        )
        shown = re.findall(r"(\d+\.\d) % \[\d+\.\d, \d+\.\d\] \((\d+) of (\d+)\)", line(result.stdout, label))
        expected = [(f"{100 * r.num_successes / 12:.1f}", str(r.num_successes), "12") for r in (before, after)]
        assert shown == expected
    assert re.search(r", difference [+-]\d+\.\d points \[.*\], p = \d\.\d{4}$", result.stdout, re.MULTILINE)

    folder = RunFolder.open(run)
    assert folder.status is RunStatus.FINISHED
    assert folder.manifest["command"] == "agentrl train small.yaml env.arguments.shift=2"
    updates = [row["update"] for row in read_metrics(folder.metrics_path) if "reward" in row]
    assert updates == [1, 2, 3, 4]

    # The checkpoint, evaluated by itself with the same draws, does what the run said it does.
    agentrl("eval", run, "--seed", derive(0, "evaluation"), "--json", "r.json", "--tasks", 12)
    alone, after = read_report(Path("r.json")), EvaluationReport.from_json(progress.reports["after"])
    assert (alone.tasks, alone.environment) == (after.tasks, after.environment)
    assert (alone.policy, alone.environment) == (str(checkpoint), "agentrl/Parity-v0 test shift=2")
    agentrl("eval", run, "--env-arg", "shift=1", "--json", "r.json", "--tasks", 1)
    assert read_report(Path("r.json")).environment == "agentrl/Parity-v0 test shift=1"
    assert agentrl("show", "small").exit_code == 0


def test_a_new_run_takes_the_next_free_name_and_leaves_the_first_alone(agentrl: Any, config: Path) -> None:
    short = ["updates=1", "evaluation.tasks=1", "evaluation.greedy=false"]
    assert agentrl("train", config, *short).exit_code == 0
    before = Path("runs/small/metrics.jsonl").read_text()
    result = agentrl("train", config, *short, "seed=1")
    assert line(result.stdout, "run folder") == "runs/small-2"
    assert "greedy" not in result.stdout
    assert Path("runs/small/metrics.jsonl").read_text() == before
    assert yaml.safe_load(Path("runs/small-2/config.yaml").read_text())["seed"] == 1
    taken = agentrl("train", config, *short, "run=runs/small")
    assert taken.exit_code == 2
    assert taken.stderr == (
        "error: runs/small holds a run already. Continue it with --resume, or choose another name.\n"
    )


@pytest.mark.parametrize("by", ["folder", "config"])
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(
    agentrl: Any, config: Path, interrupt: Any, by: str
) -> None:
    assert agentrl("train", config, "run=runs/whole").exit_code == 0
    interrupt(True)
    stopped = agentrl("train", config)
    assert stopped.exit_code == 130
    assert "go on with: agentrl train --resume runs/small" in stopped.stderr
    assert RunFolder.open(Path("runs/small")).status is RunStatus.INTERRUPTED
    interrupt(False)
    resumed = agentrl("train", "--resume", "runs/small" if by == "folder" else config)
    assert resumed.exit_code == 0, resumed.stderr
    assert "updates 3 to 4" in resumed.stdout
    final = "checkpoints/update-000004"
    assert_equal_weights(Path("runs/small", final), Path("runs/whole", final))
    whole, parts = ([row for row in read_metrics(Path(f"runs/{name}/metrics.jsonl"))] for name in ("whole", "small"))
    assert [(row["update"], row.get("success")) for row in whole] == [
        (row["update"], row.get("success")) for row in parts
    ]
    assert line(resumed.stdout, "held-out success, temperature 1")


def test_resuming_a_finished_run_says_so(agentrl: Any, config: Path) -> None:
    agentrl("train", config, "updates=1", "evaluation.tasks=1")
    result = agentrl("train", "--resume", "runs/small")
    assert result.exit_code == 2
    assert result.stderr.startswith(
        "error: The run in runs/small is finished: all 1 updates are done. Nothing was trai"
    )


def test_a_run_is_not_resumed_with_other_settings(agentrl: Any, config: Path, interrupt: Any) -> None:
    interrupt(True)
    agentrl("train", config)
    for arguments, message in [
        (
            [config, "seed=3", "optimizer.learning_rate=0.5"],
            "seed is 0 there and 3 here; optimizer.learning_rate is 0.001",
        ),
        (["runs/small", "seed=3"], "A run is resumed with its own settings; leave out 'seed=3'"),
        ([config, "run=runs/other"], "runs/other does not exist. Expected a folder that `agentrl train` has written."),
    ]:
        result = agentrl("train", "--resume", *arguments)
        assert result.exit_code == 2
        assert message in result.stderr
    Path("never.yaml").write_text(config.read_text())
    result = agentrl("train", "--resume", "never.yaml")
    assert result.stderr == ("error: There is no run of never.yaml in runs/ to resume. Start one without --resume.\n")


def test_an_adapter_is_trained_resumed_and_evaluated(agentrl: Any, config: Path, interrupt: Any) -> None:
    options = ["model.lora.rank=4", "model.gradient_checkpointing=true", "optimizer.learning_rate=0.05"]
    interrupt(True)
    agentrl("train", config, *options)
    interrupt(False)
    assert agentrl("train", "--resume", "runs/small").exit_code == 0
    checkpoint = Path("runs/small/checkpoints/update-000004")
    assert (checkpoint / "adapter_config.json").is_file()
    _, progress = load_checkpoint(checkpoint)
    agentrl("eval", checkpoint, "--seed", derive(0, "evaluation"), "--json", "r.json", "--tasks", 12)
    assert read_report(Path("r.json")).tasks == EvaluationReport.from_json(progress.reports["after"]).tasks
    assert progress.reports["after"]["tasks"] != progress.reports["before"]["tasks"]  # or the adapter was not loaded


def test_a_run_without_a_checkpoint_cannot_be_evaluated_yet(agentrl: Any, config: Path, interrupt: Any) -> None:
    interrupt(True)
    stopped = agentrl("train", config, "checkpoint_every=0")
    assert "go on with" not in stopped.stderr
    result = agentrl("eval", "runs/small")
    assert (result.exit_code, result.stderr) == (
        2,
        "error: The run in runs/small has no checkpoint yet. Wait for its first one, or go on with it: "
        "agentrl train --resume runs/small\n",
    )


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["modle.name=x"], "error: command line: modle: unknown key. Did you mean 'model'?"),
        (["updates=many"], "error: command line: updates: expected a valid integer, got 'many'."),
        (["updates"], "error: An override looks like key=value or group.key=value, got 'updates'."),
        (["recipe=arpoo"], "error: Unknown recipe 'arpoo'. Did you mean 'arpo'?"),
        (["env.id=Parity-v7"], "error: Unknown environment 'Parity-v7'."),
        (["env.arguments.shfit=1"], "error: Environment 'parity_env:Parity-v0' refuses its arguments"),
        (["model.name=./nowhere"], "error: There is no model folder './nowhere'."),
        (["model.device=abacus"], "error: device='abacus' is no device of this machine."),
        (["model.chat_template=none.jinja"], "error: The chat template none.jinja cannot be read"),
        (["rollout.max_episode_tokens=0"], "error: command line: rollout.max_episode_tokens: expected greater than"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(
    agentrl: Any, config: Path, overrides: list[str], line: str
) -> None:
    result = agentrl("train", config, *overrides)
    assert result.exit_code == 2
    assert result.stderr.startswith(line)
    assert result.stderr.count("\n") == 1
    assert not Path("runs").exists()


def test_a_missing_extra_gives_the_command_to_type(agentrl: Any, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    result = agentrl("train", config, "model.lora.rank=4")
    assert (result.exit_code, result.stderr) == (
        2,
        "error: LoRA needs an extra that is not installed: pip install 'agentrl-framework[peft]'\n",
    )


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("none.yaml", "error: There is no config file none.yaml."),
        ("folder", "error: folder is a folder; expected a YAML file. To continue a run: agentrl train --resume folder"),
        ("bad.yaml", "error: bad.yaml, line 1: not valid YAML"),
    ],
)
def test_a_config_that_cannot_be_read(agentrl: Any, name: str, line: str) -> None:
    Path("folder").mkdir()
    Path("bad.yaml").write_text("env: {id: [")
    result = agentrl("train", name)
    assert result.exit_code == 2
    assert result.stderr.startswith(line)


def report(solved: int, temperature: float, invalid: int = 0) -> EvaluationReport:
    """Ten tasks of which the first `solved` succeed and the last `invalid` broke off."""
    trees = []
    for number in range(10):
        tree = Tree(f"test-{number}")
        tree.add(None, "prompt", 0, [])
        stop = StopReason.INVALID if number >= 10 - invalid else StopReason.ANSWERED
        tree.leaves.append(Leaf(0, stop, float(number < solved), number < solved))
        trees.append(tree)
    return summarize(trees, environment="Toy test", policy="p", settings={"temperature": temperature})


def test_the_result_on_a_terminal_is_a_table() -> None:
    reports = {
        "before": report(2, 1.0),
        "after": report(8, 1.0, invalid=1),
        "before_greedy": report(0, 0.0, invalid=10),
    }
    result = TrainResult(Path("runs/x"), Path("runs/x/c"), Path("runs/x/curve.png"), reports, seconds=125.4)
    stream = io.StringIO()
    print_result(result, Console(file=stream, force_terminal=True, width=150, no_color=True, highlight=False))
    lines = [re.sub(r"\x1b\[\d*m", "", line).rstrip() for line in stream.getvalue().splitlines()]
    assert re.split(r" {2,}", lines[1].strip()) == ["held-out success", "before", "after", "change"]
    name, before, after, change = re.split(r" {2,}", lines[3].strip())
    assert (name, before[:6], after[:6]) == ("temperature 1", "20.0 %", "88.9 %")
    assert before.endswith("(2 of 10)")
    assert after.endswith("(8 of 9, 1 invalid)")
    # Better on 6 of the 9 tasks both have: McNemar's p is 2 / 2^6 = 0.0313, and 6 / 9 = 66.7 points.
    assert re.fullmatch(r"\+66.7 points \[.*\], p = 0.0312", change)
    assert "greedy" not in stream.getvalue()  # not measured afterwards
    assert " time        2 min 5 s of training" in lines
    assert " checkpoint  runs/x/c" in lines
    print_result(
        dataclasses.replace(result, reports={**reports, "after_greedy": report(3, 0.0)}),
        Console(file=stream, force_terminal=False),
    )
    (greedy,) = re.findall(r"^held-out success, greedy +(.*)$", stream.getvalue(), re.MULTILINE)
    assert re.fullmatch(r"not measured -> 30.0 % .*, difference not measured", greedy)
