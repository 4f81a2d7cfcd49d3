"""Runs the Python of one documentation page: `test_docs.py` starts it in a process and a folder of its own.

Reads a JSON list of {"page", "line", "text"} from standard input, executes the texts in one namespace, then every
check of the `EnvContract` subclasses that the page has defined, and writes a JSON list of what each text printed.
"""

import contextlib
import io
import json
import sys
import types
from collections.abc import Iterator
from typing import Any


def run(blocks: list[dict[str, Any]]) -> Iterator[str]:
    """What each block prints."""
    page = types.ModuleType("page")
    sys.modules["page"] = page  # so that what the page defines can be pickled for another process
    for block in blocks:
        code = compile("\n" * block["line"] + block["text"], block["page"], "exec")  # tracebacks name the page's line
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, vars(page))
        yield printed.getvalue()
    for value in list(vars(page).values()):
        if isinstance(value, type) and value.__module__ == "page" and value.__name__.startswith("Test"):
            for name in dir(value):
                if name.startswith("test_"):
                    getattr(value(), name)()


if __name__ == "__main__":
    json.dump(list(run(json.load(sys.stdin))), sys.stdout)
