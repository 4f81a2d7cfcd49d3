"""Reads Google docstrings: what a tool is for, and what each of its arguments means."""

import inspect
import re
from dataclasses import dataclass, field

_HEADER = re.compile(
    r"(Args|Arguments|Attributes|Examples?|Keyword Args|Notes?|Raises|References|Returns|See Also|Warnings?|Yields):\s*"
)
_ENTRY = re.compile(r"\*{0,2}(?P<name>\w+)(?:\s*\(.*?\))?:\s*(?P<text>.*)")


@dataclass(frozen=True, slots=True)
class Docstring:
    """The parts of a docstring that a model gets to see.

    Example:
        Docstring(description="Count letters.", arguments={"text": "Text to search.", "letter": "One character."})
    """

    description: str = ""
    """Everything before the first section."""
    arguments: dict[str, str] = field(default_factory=dict)
    """Name to description, each on one line."""


def parse_docstring(text: str | None) -> Docstring:
    """Splits a Google docstring into its description and its `Args:`; other sections are for people only."""
    sections: dict[str, list[str]] = {"": []}
    current = sections[""]
    for line in inspect.cleandoc(text or "").splitlines():
        header = _HEADER.fullmatch(line)
        if header:
            current = sections.setdefault(header[1], [])
        else:
            current.append(line)
    arguments = _entries(sections.get("Args", []) + sections.get("Arguments", []))
    return Docstring("\n".join(sections[""]).strip(), arguments)


def _entries(lines: list[str]) -> dict[str, str]:
    """The `name: text` entries of a section; lines indented deeper than the first one continue an entry."""
    entries: dict[str, str] = {}
    name = ""
    body = inspect.cleandoc("\n".join(["", *lines])).splitlines()
    for line in body:
        entry = _ENTRY.fullmatch(line)
        if entry:
            name = entry["name"]
            entries[name] = entry["text"].strip()
        elif name and line[:1].isspace():
            entries[name] = f"{entries[name]} {line.strip()}".strip()
    return entries
