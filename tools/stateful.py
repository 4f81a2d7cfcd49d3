"""Tools whose calls build on each other: a notebook, a file system, a game."""

import copy
import re
from abc import abstractmethod
from collections.abc import Awaitable, Mapping
from typing import Any, ClassVar, Self

from agentrl.errors import ConfigError, ForkError
from agentrl.tools.core import Tool, check_definition
from agentrl.tools.docstring import parse_docstring
from agentrl.tools.function import text_of
from agentrl.tools.signature import Signature


class StatefulTool(Tool):
    """A tool whose instances keep state for one episode in ordinary attributes.

    A subclass writes a docstring (the description; sections are left out) and a typed `run` whose docstring
    describes the parameters. `name` is the class name in snake case unless the subclass sets it.

    The instance given to an environment is the prototype: only copies of it are ever called. `open()` and `fork()`
    copy deeply; a subclass whose attributes cannot be copied (a process, a connection) defines both itself.

    Example:
        >>> class Notebook(StatefulTool):
        ...     '''Remembers lines of text.'''
        ...
        ...     def __init__(self) -> None:
        ...         self.lines: list[str] = []
        ...
        ...     def run(self, line: str) -> list[str]:
        ...         '''Adds a line and returns all.
        ...
        ...         Args:
        ...             line: The line to add.
        ...         '''
        ...         self.lines.append(line)
        ...         return self.lines
        >>> notebook = Notebook().open()
        >>> notebook.name, notebook.call({"line": "eggs"}), notebook.call({"line": "tea"})
        ('notebook', '["eggs"]', '["eggs", "tea"]')

    Raises:
        ConfigError: When the class is defined: `run` or its docstring lacks something (see `Signature`).
    """

    _signature: ClassVar[Signature]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "run" not in cls.__dict__:
            return  # an intermediate class, or one that changes only settings
        if "name" not in cls.__dict__:
            cls.name = snake_case(cls.__name__)
        cls.description = parse_docstring(cls.__doc__).description
        check_definition(cls)
        cls._signature = Signature(cls.run, cls.name, is_method=True)
        cls.parameters = cls._signature.schema

    @abstractmethod
    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Does one call; a subclass gives it typed parameters. May be async.

        Raises:
            ToolError: With the text that the model sees.
            InfrastructureError: The episode cannot go on through no fault of the model.
        """

    def check(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Checks every value strictly and converts it to the parameter's type (see `Signature.bind`)."""
        return self._signature.bind(arguments)

    def call(self, arguments: Mapping[str, Any]) -> str | Awaitable[str]:
        """Runs `run` and turns its result into text (see `to_text`)."""
        return text_of(self.run(**arguments))

    def open(self) -> Self:
        """A deep copy of the prototype.

        Raises:
            ConfigError: An attribute cannot be copied.
        """
        try:
            return copy.deepcopy(self)
        except Exception as error:
            raise ConfigError(self._uncopyable(error, "open()")) from error

    def fork(self) -> Self:
        """A deep copy of the present state.

        Raises:
            ForkError: An attribute cannot be copied.
        """
        try:
            return copy.deepcopy(self)
        except Exception as error:
            raise ForkError(self._uncopyable(error, "fork()")) from error

    def _uncopyable(self, error: Exception, method: str) -> str:
        return (
            f"The state of tool {self.name!r} cannot be copied ({type(error).__name__}: {error}). Keep such things "
            f"out of its attributes, give them a __deepcopy__, or define {method} in {type(self).__name__}."
        )


def snake_case(name: str) -> str:
    """A class name in lower case with underscores.

    >>> snake_case("HTTPFetcher"), snake_case("Notebook2Go")
    ('http_fetcher', 'notebook2_go')
    """
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
