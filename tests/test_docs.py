"""The documentation is true: its Python runs and prints what it says, and what it names exists."""

import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from pydoc import locate
from typing import Any

import gymnasium
import pytest
import typer

from agentrl.cli.main import app
from agentrl.config import load_config
from agentrl.envs import REWARDS
from agentrl.errors import ConfigError
from agentrl.rollout.plan import BranchRule
from agentrl.tools import TOOLS
from agentrl.trainers import TrainSettings
from agentrl.trajectory import StopReason

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
RUNNABLE, OUTPUT, YAML = "python runnable", "text output", "yaml"
SHELL = ("sh", "bash", "shell", "console")

_FENCE = re.compile(r"^```([^\n`]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_ROW = re.compile(r"^\| `([^`]+)` \| (.*?) \|", re.MULTILINE)
_FOLDERS = "agentrl|benchmarks|docs|envs|examples|sandbox|tests|tools|trainers"
_PATH = re.compile(rf"(?:{_FOLDERS})/[\w/.*-]*")
_PLACEHOLDER = re.compile(r"^\[?key=|=\.\.\.$", re.IGNORECASE)
_ENV_ID = re.compile(r"agentrl/\w+-v\d+")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    info: str
    text: str
    line: int
    """Lines above its first one."""


def blocks_of(markdown: str) -> list[Block]:
    fences = _FENCE.finditer(markdown)
    return [Block(fence[1].strip(), fence[2], markdown.count("\n", 0, fence.start(2))) for fence in fences]


def spans_of(markdown: str) -> list[str]:
    return _SPAN.findall(_FENCE.sub("", markdown))


def every_page() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


# Python --------------------------------------------------------------------------------------------------------------


def wrong_outputs(page: str, markdown: str, folder: Path) -> list[str]:
    """Runs a page's runnable blocks in order in one namespace; what they should not have printed, or failed with."""
    blocks = blocks_of(markdown)
    runnable = [block for block in blocks if block.info == RUNNABLE]
    sent = json.dumps([{"page": page, "line": block.line, "text": block.text} for block in runnable])
    result = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "page_runner.py")],
        input=sent,
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    if result.returncode:
        return [result.stderr]
    printed = dict(zip(runnable, json.loads(result.stdout), strict=True))
    expected = {block: after for block, after in itertools.pairwise(blocks) if after.info == OUTPUT}
    return [
        f"{page}, line {block.line}: printed\n{text}"
        for block, text in printed.items()
        if text != (expected[block].text if block in expected else "")
    ]


@every_page()
def test_python_runs_and_prints_what_the_page_says(page: Path, tmp_path: Path) -> None:
    assert wrong_outputs(page.name, page.read_text(), tmp_path) == []


def unchecked(markdown: str) -> Iterator[int]:
    """Lines of Python that nobody runs, and of output that nobody compares."""
    blocks = blocks_of(markdown)
    for before, block in itertools.pairwise([Block("", "", 0), *blocks]):
        is_python = block.info.split()[:1] in (["python"], ["py"])
        if (is_python and block.info != RUNNABLE) or (block.info == OUTPUT and before.info != RUNNABLE):
            yield block.line


@every_page()
def test_no_python_escapes(page: Path) -> None:
    lines = list(unchecked(page.read_text()))
    assert lines == [], f"mark Python as ```{RUNNABLE}, and put ```{OUTPUT} right behind it"


def test_escaped_python_is_found() -> None:
    assert list(unchecked("```python runnable\nx\n```\n```text output\n```\n```text\n```\n")) == []
    assert list(unchecked("```python\nx\n```\n\n```text output\n```\n")) == [1, 5]


def test_broken_python_is_found(tmp_path: Path) -> None:
    page = "intro\n```python runnable\nx = 1\n```\n```python runnable\nprint(x + 1)\n```\n\n```text output\n{}\n```\n"
    assert wrong_outputs("p.md", page.format(2), tmp_path) == []
    assert wrong_outputs("p.md", page.format(3), tmp_path) == ["p.md, line 5: printed\n2\n"]
    (failure,) = wrong_outputs("p.md", page.replace("x + 1", "x / 0"), tmp_path)
    assert 'File "p.md", line 6' in failure
    assert "ZeroDivisionError" in failure
    contract = "```python runnable\nclass TestIt:\n    def test_it(self): raise ValueError('of the contract')\n```\n"
    assert "of the contract" in wrong_outputs("p.md", contract, tmp_path)[0]


# Commands and settings -----------------------------------------------------------------------------------------------


def commands_of(markdown: str) -> list[str]:
    """What a reader may type after `agentrl`, from shell blocks and from the text."""
    lines = [line for block in blocks_of(markdown) if block.info in SHELL for line in block.text.splitlines()]
    typed = [line.strip().removeprefix("$ ") for line in [*lines, *spans_of(markdown)]]
    return [re.split(r" [|>&#]|;", line)[0] for line in typed if line.startswith("agentrl ")]


def problem_of(command: str) -> str | None:
    """What is wrong with a command line, by the program's own tables."""
    words = shlex.split(command)[1:]
    node: Any = typer.main.get_command(app)
    while words and not words[0].startswith("-") and getattr(node, "commands", None):
        if words[0] not in node.commands:
            return f"{command!r}: no command {words[0]!r}"
        node = node.commands[words.pop(0)]
    options = {option: parameter for parameter in node.params for option in parameter.opts if option[:2] == "--"}
    overrides: list[str] = []
    while words:
        word = words.pop(0)
        if word.startswith("-"):
            if word not in options:
                return f"{command!r}: no option {word!r}"
            if not options[word].is_flag and words:
                words.pop(0)
        elif node.name == "train" and "=" in word and not _PLACEHOLDER.search(word):
            overrides.append(word)
    try:
        load_config(TrainSettings, overrides=["env.id=x", *overrides])
    except ConfigError as error:
        return f"{command!r}: {error}"
    return None


@every_page()
def test_commands_exist(page: Path) -> None:
    assert [problem for command in commands_of(page.read_text()) if (problem := problem_of(command))] == []


def test_wrong_commands_are_found() -> None:
    page = "Type `agentrl trian x` or\n```sh\nagentrl eval m --wrong 3  # comment\nmake train\n```\n"
    assert commands_of(page) == ["agentrl eval m --wrong 3 ", "agentrl trian x"]
    assert [bool(problem_of(command)) for command in commands_of(page)] == [True, True]
    right = ["train c.yaml seed=3 --resume", "train CONFIG KEY=VALUE", "train seed=...", "new env X", "eval m --json x"]
    assert [problem_of(f"agentrl {command}") for command in right] == [None] * 5
    wrong = ["train c.yaml sede=3", "train c.yaml seed=x", "new tool x", "--wrong"]
    assert all(problem_of(f"agentrl {command}") for command in wrong)


@every_page()
def test_configs_are_valid(page: Path, tmp_path: Path) -> None:
    for block in blocks_of(page.read_text()):
        if block.info == YAML:
            (tmp_path / "config.yaml").write_text(block.text)
            load_config(TrainSettings, tmp_path / "config.yaml", [] if "env:" in block.text else ["env.id=x"])


# Tables --------------------------------------------------------------------------------------------------------------


def table(page: str, heading: str) -> dict[str, str]:
    """First and second column of the table below a heading."""
    section = (ROOT / "docs" / page).read_text().split(f"# {heading}\n")[1].split("\n#")[0]
    return dict(_ROW.findall(section))


def registered() -> list[str]:
    return [
        name
        for name, spec in gymnasium.registry.items()
        if getattr(spec.entry_point, "__module__", "").startswith("agentrl.envs.")
    ]


@pytest.mark.parametrize(
    ("page", "heading", "names"),
    [
        ("tools.md", "Built-in tools", TOOLS),
        ("environments.md", "Rewards", REWARDS),
        ("environments.md", "Shipped environments", registered()),
        ("branching.md", "The rules", BranchRule),
        ("evaluation.md", "How episodes end", StopReason),
    ],
)
def test_tables_are_complete(page: str, heading: str, names: Sequence[str]) -> None:
    assert sorted(table(page, heading)) == sorted(map(str, names))


def test_settings_have_the_defaults_of_the_table() -> None:
    rows = table("training.md", "Settings")
    assert len(rows) > 15
    default = load_config(TrainSettings, overrides=["env.id=x"])
    for key, value in rows.items():
        assert load_config(TrainSettings, overrides=["env.id=x", f"{key}={value.strip('`')}"]) == default, key


def test_warnings_are_those_of_the_code() -> None:
    section = (ROOT / "docs" / "training.md").read_text().split("## Warnings\n")[1]
    code = (ROOT / "trainers" / "alarms.py").read_text()
    quoted = re.findall(r"^- \*(.+?)\*", section, re.MULTILINE)
    assert len(quoted) == code.count("),\n                (") + 1  # one tuple for each sign that is watched
    assert [text for text in quoted if f'"{text}' not in code] == []


# Names and links -----------------------------------------------------------------------------------------------------


def missing_names(markdown: str) -> Iterator[str]:
    """Paths, environments and Python names in the text that do not exist."""
    defined = {f"agentrl/{name}" for name in re.findall(r'@register\("([^"/]+)"', markdown)}
    for env_id in _ENV_ID.findall(markdown):
        if env_id not in gymnasium.registry and env_id not in defined:
            yield env_id
    for span in spans_of(markdown):
        if _PATH.fullmatch(span) and not _ENV_ID.fullmatch(span) and not list(ROOT.glob(span.rstrip("/"))):
            yield span
        if re.fullmatch(r"agentrl(\.\w+)+", span) and locate(span) is None:
            yield span


def dead_links(page: Path, markdown: str) -> Iterator[str]:
    for link in _LINK.findall(_FENCE.sub("", markdown)):
        target, _, anchor = link.partition("#")
        if "://" in link:
            continue
        file = page.parent / target if target else page
        if not file.exists() or (anchor and anchor not in slugs(file.read_text())):
            yield link


def slugs(markdown: str) -> list[str]:
    """The anchors that headings get."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", markdown), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


@every_page()
def test_names_and_links_exist(page: Path) -> None:
    markdown = page.read_text()
    assert [*missing_names(markdown), *dead_links(page, markdown)] == []


def test_wrong_names_and_links_are_found() -> None:
    page = "# A b\n`envs/nowhere.py` `agentrl.nothing` `agentrl/No-v0` [x](nowhere.md) [y](#a-c)\n"
    assert list(missing_names(page)) == ["agentrl/No-v0", "envs/nowhere.py", "agentrl.nothing"]
    assert list(dead_links(ROOT / "docs" / "tools.md", page)) == ["nowhere.md", "#a-c"]
    right = "`envs/tool_env.py` `tools/` `agentrl.tools.Tool` `agentrl/Arithmetic-v0` [x](tools.md#tools)\n"
    assert [*missing_names(right), *dead_links(ROOT / "docs" / "tools.md", right)] == []
