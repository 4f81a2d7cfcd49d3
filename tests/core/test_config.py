"""Settings from files and overrides: what is accepted, what each mistake says, and the round trip."""

import enum
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from agentrl.config import Config, dump_config, load_config
from agentrl.errors import ConfigError


class Rule(enum.StrEnum):
    PAPER = "paper"
    NONE = "none"


@dataclass(frozen=True, kw_only=True)
class Plan:
    size: int = 8
    rule: Rule = Rule.NONE

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ConfigError(f"A group needs at least one trajectory, got size={self.size}.")


class Optimizer(Config):
    learning_rate: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.999)


class Run(Config):
    model: Path
    seed: int = 0
    kind: Literal["small", "large"] = "small"
    limit: int | None = None
    width: int | str = "auto"
    optimizer: Optimizer = Optimizer()
    plan: Plan = Plan()
    options: dict[str, Any] = Field(default_factory=dict)
    notes: str = ""


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(text: str) -> Path:
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def problem(*overrides: str, path: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(Run, path, overrides)
    return str(caught.value)


def test_file_then_overrides(write: Any) -> None:
    path = write("model: policy\nseed: 1\noptimizer:\n  learning_rate: 1e-4\nplan: {size: 4, rule: paper}\n")
    config = load_config(Run, path, ["seed=7", "optimizer.betas=[0.8, 0.9]", "seed=9", "options.level=[1, a]"])
    assert config == Run(
        model=Path("policy"),
        seed=9,
        optimizer=Optimizer(learning_rate=1e-4, betas=(0.8, 0.9)),
        plan=Plan(size=4, rule=Rule.PAPER),
        options={"level": [1, "a"]},
    )


def test_overrides_alone_and_an_empty_file(write: Any) -> None:
    assert load_config(Run, None, ["model=m"]) == load_config(Run, write("# nothing\n"), ["model=m"])


def test_a_config_is_immutable() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_config(Run, None, ["model=m"]).seed = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),  # a text in YAML 1.1
        ("-.inf", -math.inf),
        ("1_000", 1000),
        ("no", "no"),  # False in YAML 1.1
        ("on", "on"),
        ("12:30", "12:30"),  # 750 in YAML 1.1
        ("010", "010"),  # 8 in YAML 1.1
        ("2024-01-01", "2024-01-01"),  # a date in YAML 1.1
        ("true", True),
        ("'true'", "true"),
        ("", None),
        ("{a: [1, 2.5]}", {"a": [1, 2.5]}),
        ("a=b", "a=b"),
    ],
)
def test_values_are_yaml_1_2(text: str, value: object) -> None:
    config = load_config(Run, None, ["model=m", f"options.x={text}"])
    assert config.options["x"] == value
    assert type(config.options["x"]) is type(value)


# Mistakes: one line each


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=m", "optimizer.learning_rat=1"], "unknown key. Did you mean 'optimizer.learning_rate'?"),
        (["model=m", "learning_rate=1"], "learning_rate: unknown key. Did you mean 'optimizer.learning_rate'?"),
        (["model=m", "optimiser.betas=1"], "optimiser: unknown key. Did you mean 'optimizer'?"),
        (["model=m", "plan.siez=1"], "plan.siez: unknown key. Did you mean 'plan.size'?"),
        (["model=m", "plan.zzz=1"], "plan.zzz: unknown key. Known in plan: rule, size."),
        (["model=m", "optimizer.learning_rate=fast"], "optimizer.learning_rate: expected a valid number, got 'fast'."),
        (["model=m", "seed=1.5"], "seed: expected a valid integer, got 1.5."),
        (["model=m", "seed=true"], "seed: expected a valid integer, got True."),
        (["model=m", "seed='3'"], "seed: expected a valid integer, got '3'."),
        (["model=m", "notes=2024"], "notes: expected a valid string, got 2024."),
        (["model=m", "kind=medium"], "kind: expected 'small' or 'large', got 'medium'."),
        (["model=m", "plan.rule=papr"], "plan.rule: expected 'paper' or 'none', got 'papr'."),
        (["model=m", "plan.size=0"], "plan: A group needs at least one trajectory, got size=0."),
        (["model=m", "width=[1]"], "width: expected a valid integer or a valid string, got [1]."),
        (["model=m", "limit=x"], "limit: expected a valid integer, got 'x'."),
        (["model=m", f"seed={'x' * 500}"], f"got '{'x' * 76}..."),
        (["model=m", "optimizer=3"], "optimizer: expected an object, got 3."),
    ],
)
def test_a_wrong_setting_is_one_line(overrides: list[str], message: str) -> None:
    text = problem(*overrides)
    assert text.startswith("command line: ")
    assert message in text
    assert "\n" not in text


def test_every_problem_has_its_line_and_its_source(write: Any) -> None:
    path = write("sed: 1\noptimizer: {betas: [0.9]}\n")
    assert problem("kind=huge", path=path).splitlines() == [
        f"{path}: model: missing; it has no default.",
        "command line: kind: expected 'small' or 'large', got 'huge'.",
        f"{path}: optimizer.betas.1: missing; it has no default.",
        f"{path}: sed: unknown key. Did you mean 'seed'?",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: m\nseed: 1: 2\n", ", line 2: not valid YAML: mapping values are not allowed here."),
        ("model: [a\nseed: 1\n", ", line 2: not valid YAML"),
        ("model: m\noptimizer:\n  betas: 1\n  betas: 2\n", ", line 4: not valid YAML: the key 'betas' stands here"),
        ("model: !!python/object:os.system x\n", ", line 1: not valid YAML: could not determine a constructor"),
        ("- model\n", ": expected `key: value` lines, got a list."),
        ("just text", ": expected `key: value` lines, got a str."),
        ("model: m\noptions: &a {self: *a}\n", ": a value contains itself."),
        ("model: \x01\n", ": not valid YAML: unacceptable character"),
    ],
)
def test_a_broken_file_names_the_line(write: Any, text: str, message: str) -> None:
    path = write(text)
    assert problem(path=path).startswith(f"{path}{message}")
    assert "\n" not in problem(path=path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert problem(path=tmp_path / "no.yaml") == f"There is no config file {tmp_path / 'no.yaml'}."
    assert problem(path=tmp_path) == f"{tmp_path} is a folder; expected a YAML file."
    binary = tmp_path / "model.safetensors"
    binary.write_bytes(b"\xff\xfe\x00\x80")
    assert problem(path=binary) == f"{binary} is not UTF-8 text; expected a YAML file."
    below_a_file = binary / "run.yaml"
    assert problem(path=below_a_file) == f"Cannot read the config file {below_a_file}: Not a directory."


@pytest.mark.parametrize("override", ["seed", "=3", "a..b=1", ".seed=1", ""])
def test_an_override_has_a_key_and_a_value(override: str) -> None:
    assert problem("model=m", override) == f"An override looks like key=value or group.key=value, got {override!r}."


def test_an_override_below_a_plain_value() -> None:
    assert problem("model=m", "model.path=x") == "'model.path=x': model is 'm', not a group of settings."


def test_an_override_that_is_not_yaml() -> None:
    assert problem("model=[a").startswith("'model=[a', line 1: not valid YAML")


# Round trip

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
configs = st.builds(
    Run,
    model=st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).map(Path),
    seed=st.integers(-(2**53), 2**53),
    limit=st.none() | st.integers(0, 9),
    width=st.integers(0, 9) | st.text(),
    optimizer=st.builds(Optimizer, learning_rate=st.floats(allow_nan=False)),
    plan=st.builds(Plan, size=st.integers(1, 9), rule=st.sampled_from(Rule)),
    options=st.dictionaries(st.text(), json_values, max_size=4),
    notes=st.text()
    | st.sampled_from(
        ["1e-5", "no", "null", "~", "<<", ".inf", "007", "1_0", "true", "a: b", "- x", "", "\x85", "a\u2028b\n"]
    ),
)


@given(configs)
def test_a_dump_loads_back_equal(tmp_path_factory: pytest.TempPathFactory, config: Run) -> None:
    path = tmp_path_factory.getbasetemp() / "dump.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(Run, path) == config


def test_a_dump_is_readable() -> None:
    text = dump_config(Run(model=Path("policy"), notes="1e-5"))
    assert text.startswith(
        "model: policy\nseed: 0\nkind: small\nlimit: null\nwidth: auto\noptimizer:\n  learning_rate: "
    )
    assert "notes: '1e-5'\n" in text
