"""Settings: frozen pydantic models, read from a YAML file and `key.sub=value` overrides, with errors one can act on.

YAML is read by its 1.2 rules, in which `1e-5` is a number and `no`, `on` and `12:30` are text, and types are strict:
a number in quotes is a text. A key that stands twice in one mapping is an error.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from agentrl.errors import ConfigError


class Config(BaseModel):
    """Base of all settings: immutable, and a key it does not know is an error.

    Example:
        class OptimizerConfig(Config):
            learning_rate: float = 1e-5
            '''Step size of AdamW.'''
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, ser_json_inf_nan="constants")


ConfigT = TypeVar("ConfigT", bound=Config)


def load_config(cls: type[ConfigT], path: Path | None = None, overrides: Sequence[str] = ()) -> ConfigT:
    """Reads settings from a file and applies overrides to them.

    Args:
        cls: The model that says which settings there are.
        path: A YAML file; None takes the defaults.
        overrides: Settings such as "optimizer.learning_rate=1e-4"; the value is YAML. Later ones win.

    Raises:
        ConfigError: The file cannot be read, or a setting is wrong; one line per problem with the key, what was
            expected and what was given.
    """
    data = {} if path is None else _read_yaml(path)
    overridden = [_apply_override(data, override) for override in overrides]
    try:
        # Through JSON, because strict validation then still takes a text as a path or an enum and a list as a tuple.
        return cls.model_validate_json(json.dumps(data, default=str), strict=True)
    except ValidationError as error:
        problems = _problems(cls, data, error.errors())
        source = "config" if path is None else str(path)
        lines = [
            f"{'command line' if _concerns(key, overridden) else source}: {key + ': ' if key else ''}{problem}"
            for key, problem in problems.items()
        ]
        raise ConfigError("\n".join(lines)) from None
    except (ValueError, RecursionError):  # an anchor that holds itself
        raise ConfigError(f"{path}: a value contains itself.") from None


def dump_config(config: Config) -> str:
    """The settings as YAML, defaults included; `load_config` of it gives an equal object."""
    data = config.model_dump(mode="json")
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge" and str(key.value) in seen:
                problem = f"the key {key.value!r} stands here for the second time"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    def represent_str(self, text: str) -> yaml.ScalarNode:
        # PyYAML folds unusual line breaks into blanks in any other style.
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


_Dumper.add_representer(str, _Dumper.represent_str)


# What a text without quotes means: the YAML 1.2 core schema (https://yaml.org/spec/1.2.2/#103-core-schema), but 007
# stays a text and digits may be grouped as in Python. Both classes get it, so that what is written is read back.
_PLAIN_SCALARS = {
    "bool": (r"true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    "int": (r"[-+]?(?:0|[1-9][0-9_]*)", [*"-+0123456789"]),
    "float": (
        r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+|[-+]?\.inf|\.nan",
        [*"-+.0123456789"],
    ),
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "merge": (r"<<", ["<"]),
}
for _class in (_Loader, _Dumper):
    _class.yaml_implicit_resolvers = {}
    for _tag, (_pattern, _first_characters) in _PLAIN_SCALARS.items():
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first_characters)


def _read_yaml(path: Path) -> dict[str, Any]:
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; expected a YAML file.")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"There is no config file {path}.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text; expected a YAML file.") from None
    except OSError as error:
        raise ConfigError(f"Cannot read the config file {path}: {error.strerror}.") from None
    data = _parse_yaml(text, str(path))
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected `key: value` lines, got a {type(data).__name__}.")
    return data


def _parse_yaml(text: str, source: str) -> Any:
    try:
        return yaml.load(text, _Loader)  # a subclass of the safe loader
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{source}{line}: not valid YAML: {error.problem}.") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{source}: not valid YAML: {' '.join(str(error).split())}.") from None


def _apply_override(data: dict[str, Any], override: str) -> str:
    """Sets one value in `data` and returns its dotted key."""
    key, equals, text = override.partition("=")
    key = key.strip()
    parts = key.split(".")
    if not equals or not all(parts):
        raise ConfigError(f"An override looks like key=value or group.key=value, got {override!r}.")
    group = data
    for depth, part in enumerate(parts[:-1], 1):
        if group.get(part) is None:
            group[part] = {}
        group = group[part]
        if not isinstance(group, dict):
            raise ConfigError(f"{override!r}: {'.'.join(parts[:depth])} is {group!r}, not a group of settings.")
    group[parts[-1]] = _parse_yaml(text, repr(override))
    return key


def _problems(cls: type[Config], data: Mapping[str, Any], errors: Sequence[ErrorDetails]) -> dict[str, str]:
    """Dotted key to what is wrong with it; the alternatives of a union become one problem."""
    known = list(_known_keys(cls.model_json_schema()))
    problems: dict[str, str] = {}
    for error in errors:
        key = ".".join(_real_location(error, data))
        kind, given = error["type"], error["input"]
        if kind in ("extra_forbidden", "unexpected_keyword_argument"):
            problems[key] = f"unknown key. {_suggest(key, known)}"
        elif kind == "missing":
            problems[key] = "missing; it has no default."
        elif kind == "value_error":
            problems[key] = error["msg"].removeprefix("Value error, ")
        else:
            expected = error["msg"].removeprefix("Input should be ")
            if key in problems:
                problems[key] = problems[key].replace(", got ", f" or {expected}, got ", 1)
            else:
                problems[key] = f"expected {expected}, got {_shown(given)}."
    return problems


def _real_location(error: ErrorDetails, data: Any) -> list[str]:
    """The location without the tags that pydantic adds for the members of a union."""
    parts: list[str] = []
    for part in error["loc"]:
        try:
            data = data[part]
        except (LookupError, TypeError):
            if error["type"] != "missing" or part != error["loc"][-1]:
                continue
        parts.append(str(part))
    return parts


def _known_keys(schema: Mapping[str, Any]) -> Iterator[str]:
    """Every dotted key that a JSON schema describes."""
    definitions = schema.get("$defs", {})

    def walk(node: Mapping[str, Any], prefix: str, inside: tuple[str, ...]) -> Iterator[str]:
        reference = node.get("$ref", "").rpartition("/")[2]
        if reference and reference not in inside:
            yield from walk(definitions[reference], prefix, (*inside, reference))
        for choice in (*node.get("anyOf", ()), *node.get("oneOf", ()), *node.get("allOf", ())):
            yield from walk(choice, prefix, inside)
        for name, child in node.get("properties", {}).items():
            yield prefix + name
            yield from walk(child, f"{prefix}{name}.", inside)

    return walk(schema, "", ())


def _suggest(key: str, known: Sequence[str]) -> str:
    """The known key whose last part is most like that of `key`, wherever it stands."""

    def similarity(candidate: str) -> tuple[float, float]:
        last = SequenceMatcher(None, key.rpartition(".")[2], candidate.rpartition(".")[2]).ratio()
        return last, SequenceMatcher(None, key, candidate).ratio()

    best = max(known, key=similarity, default=None)
    if best is not None and similarity(best)[0] >= 0.6:
        return f"Did you mean {best!r}?"
    group = key.rpartition(".")[0]
    siblings = sorted(name.rpartition(".")[2] for name in known if name.rpartition(".")[0] == group)
    return f"Known{' in ' + group if group else ''}: {', '.join(siblings)}." if siblings else "No key is known here."


def _shown(value: Any, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def _concerns(key: str, overridden: Sequence[str]) -> bool:
    """Whether an override set this key, a group around it or a part of it."""
    return any(f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.") for other in overridden)
