"""`agentrl envs | tools | algorithms` against the tables they are read from."""

from collections.abc import Sequence

import gymnasium
import pytest
from typer.testing import CliRunner

from agentrl.cli import lists
from agentrl.cli.lists import Listing, list_algorithms, list_environments, list_tools, print_listing
from agentrl.cli.main import app
from agentrl.envs import Episode, ToolEnv, register
from agentrl.registry import Registry
from agentrl.tasks import Task
from agentrl.tools.catalog import TOOLS
from agentrl.tools.core import Tool
from agentrl.trainers import RECIPES


def test_algorithms_are_the_recipes() -> None:
    listing = list_algorithms()
    assert [row[0] for row in listing.rows] == sorted(RECIPES)
    assert ("arpo", "arXiv:2507.19849", "environment that forks", RECIPES["arpo"].idea) in listing.rows
    assert ("remax", "arXiv:2310.10505", "reference, greedy episode", RECIPES["remax"].idea) in listing.rows


def test_one_algorithm_is_shown_with_its_numbers() -> None:
    shown = CliRunner().invoke(app, ["algorithms", "gspo"])
    assert shown.exit_code == 0
    assert "  surrogate    Clip(low=0.0003, high=0.0004)\n" in shown.output
    assert "  sampling     16 per task\n" in shown.output
    assert "The exponent 1 / length is the point" in shown.output
    assert "agentrl train CONFIG recipe=gspo" in shown.output


def test_tools_are_the_catalog() -> None:
    rows = {name: (options, text) for name, options, text in list_tools().rows}
    assert set(rows) == set(TOOLS)
    assert all(text for _, text in rows.values())


def test_options_of_a_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    tools: Registry[object] = Registry("tool")

    @tools.register("search")
    def _search(corpus: str, top_k: int = 3) -> Tool:
        """Looks things up.

        More text.
        """
        raise AssertionError("a tool that needs options cannot be built to be listed")

    monkeypatch.setattr("agentrl.tools.catalog.TOOLS", tools)
    assert list_tools().rows == (("search", "corpus, top_k=3", "Looks things up."),)


def test_environments_are_gymnasiums_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gymnasium.envs.registration, "registry", dict(gymnasium.registry))
    monkeypatch.setattr(gymnasium, "registry", gymnasium.envs.registration.registry)

    @register("Listed-v0")
    class Listed(ToolEnv):
        """Count letters.

        Not shown.
        """

        tools = (TOOLS["calculator"](),)

        def tasks(self, split: str) -> Sequence[Task]:
            return []

        def reward(self, task: Task, episode: Episode) -> float:
            return 0.0

    @register("Demanding-v0")
    class Demanding(Listed):
        """Needs an argument."""

        def __init__(self, path: str) -> None:
            super().__init__()

    listing = list_environments()
    assert ("agentrl/Listed-v0", "calculator", "Count letters.") in listing.rows
    assert ("agentrl/Demanding-v0", "as configured", "Needs an argument.") in listing.rows
    ids = [row[0] for row in listing.rows]
    assert ids == sorted(ids)
    assert all(env_id.startswith("agentrl/") for env_id in ids)
    texts = {env_id: text for env_id, _, text in listing.rows}  # other tests may have registered nameless ones
    for name in ("Arithmetic", "CodeInterpreter", "Dataset", "DeepResearch", "MultiHopSearch"):
        assert texts[f"agentrl/{name}-v0"]


def test_a_pipe_gets_aligned_lines(capsys: pytest.CaptureFixture[str]) -> None:
    print_listing(Listing(("name", "what"), (("a", "x" * 300), ("longer", ""), ("[b]", "y"))))
    assert capsys.readouterr().out.splitlines() == ["a       " + "x" * 300, "longer", "[b]     y"]
    print_listing(Listing(("name",), ()))
    assert capsys.readouterr().out == ""


def test_a_terminal_gets_a_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    print_listing(Listing(("name", "what"), (("[b]", "y"),)))
    text = capsys.readouterr().out
    assert "\x1b[" in text
    assert "name" in text
    assert "[b]" in text


@pytest.mark.parametrize("command", ["envs", "tools", "algorithms"])
def test_the_commands(command: str) -> None:
    result = CliRunner().invoke(app, [command])
    assert result.exit_code == 0
    listing = {"envs": lists.list_environments, "tools": list_tools, "algorithms": list_algorithms}[command]()
    assert [line.split()[0] for line in result.stdout.splitlines()] == [row[0] for row in listing.rows]
