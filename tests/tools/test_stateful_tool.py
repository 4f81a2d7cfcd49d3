"""Tools with state: one pristine prototype, a copy per episode, a copy per branch."""

import threading
from typing import Any

import pytest

from agentrl.errors import ConfigError, ForkError
from agentrl.tools.core import Tool
from agentrl.tools.stateful import StatefulTool


class NoteBook(StatefulTool):
    """Remembers lines of text.

    Attributes:
        lines: For people, not for the model.
    """

    inline = True

    def __init__(self, first: str) -> None:
        self.lines = [first]

    def run(self, line: str, times: int = 1) -> list[str]:
        """Adds a line.

        Args:
            line: The line to add.
            times: How often.
        """
        self.lines += [line] * times
        return self.lines


def write(tool: Tool, line: str) -> Any:
    return tool.call(tool.check({"line": line}))


def test_schema_comes_from_run_and_the_description_from_the_class() -> None:
    assert NoteBook.name == "note_book"
    assert NoteBook.description == "Remembers lines of text."
    assert NoteBook.parameters["required"] == ["line"]
    assert NoteBook.parameters["properties"]["times"] == {"type": "integer", "description": "How often.", "default": 1}


def test_episodes_do_not_share_state() -> None:
    prototype = NoteBook("a")
    one, two = prototype.open(), prototype.open()
    assert write(one, "b") == '["a", "b"]'
    assert write(two, "c") == '["a", "c"]'
    assert prototype.lines == ["a"]


def test_a_fork_continues_from_the_present_state_on_its_own() -> None:
    one = NoteBook("a").open()
    write(one, "b")
    two = one.fork()
    assert write(two, "c") == '["a", "b", "c"]'
    assert write(one, "d") == '["a", "b", "d"]'


class Locked(StatefulTool):
    """Has what cannot be copied."""

    name = "locked-tool"

    def __init__(self, *, at_once: bool) -> None:
        self.lock = threading.Lock() if at_once else None

    def run(self) -> str:
        """Makes the lock."""
        self.lock = threading.Lock()
        return "made"


def test_state_that_cannot_be_copied_is_refused_with_the_remedy() -> None:
    with pytest.raises(ConfigError, match=r"'locked-tool' cannot be copied.*lock.*define open\(\) in Locked"):
        Locked(at_once=True).open()
    opened = Locked(at_once=False).open()
    opened.call({})
    with pytest.raises(ForkError, match=r"'locked-tool' cannot be copied.*lock.*define fork\(\) in Locked"):
        opened.fork()


def test_an_intermediate_class_and_a_changed_setting_need_no_run() -> None:
    class Quick(NoteBook):
        """Another class, the same tool."""

        deadline_s = 1.0

    assert (Quick.name, Quick.deadline_s) == ("note_book", 1.0)
    assert Quick("a").open().call({"line": "b"}) == '["a", "b"]'


def test_errors_when_the_class_is_defined() -> None:
    with pytest.raises(ConfigError, match="Tool 'untold' has no description"):

        class Untold(StatefulTool):
            def run(self) -> str:
                """Does."""
                return ""

    with pytest.raises(ConfigError, match="Parameter 'x' of tool 'vague' has no description"):

        class Vague(StatefulTool):
            """Is vague."""

            def run(self, x: int) -> str:
                """Does."""
                return str(x)


def test_a_plain_tool_that_opens_must_say_how_to_fork() -> None:
    class Opening(Tool):
        name = "opening"
        description = "Opens."

        def __init__(self) -> None:
            self.parameters = {"type": "object", "properties": {}}

        def open(self) -> "Opening":
            return Opening()

        def call(self, arguments: object) -> str:
            return ""

    with pytest.raises(ForkError, match=r"keeps state but does not define fork\(\)"):
        Opening().open().fork()
