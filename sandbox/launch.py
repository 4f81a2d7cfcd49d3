"""How a runner is started: the command, its environment, and its own code, which comes over the stream.

The code is sent rather than installed in the sandbox, so that runner and host are always of one version and an image
needs nothing but Python.
"""

import functools
import json
import struct
from pathlib import Path

MODULES = (
    "frames",
    "output",
    "process_tree",
    "session_files",
    "session_folder",
    "open_files",
    "cells",
    "cloning",
    "interpreter",
    "cell_watch",
    "main",
)
"""The files of `agentrl.sandbox.runner`, each after those that it imports. Standard library only."""
MIN_PYTHON = (3, 11)

_BOOTSTRAP = f"""
import json, os, sys, types
if sys.version_info < {MIN_PYTHON}:
    sys.exit("Python {MIN_PYTHON[0]}.{MIN_PYTHON[1]} or later is needed, this is " + sys.version.split()[0])
def read(size):
    data = b""
    while len(data) < size:
        part = os.read(0, size - len(data))
        if not part:
            os._exit(0)
        data += part
    return data
sys.path[:] = [entry for entry in sys.path if entry]
for name in ("agentrl", "agentrl.sandbox", "agentrl.sandbox.runner"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = []
for name, source in json.loads(read(int.from_bytes(read(4), "big"))).items():
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(source, name, "exec"), module.__dict__)
main = sys.modules["agentrl.sandbox.runner.main"].main
for name in [name for name in sys.modules if name.split(".")[0] == "agentrl"]:
    del sys.modules[name]
main()
"""


def runner_command(python: str = "python3") -> list[str]:
    """The program and its arguments; it reads requests on descriptor 0 and answers on descriptor 1.

    Args:
        python: The interpreter, as the sandbox sees it.
    """
    return [python, "-s", "-c", _BOOTSTRAP]


@functools.cache
def runner_code() -> bytes:
    """What a runner reads first: its own code."""
    folder = Path(__file__).with_name("runner")
    modules = {
        f"agentrl.sandbox.runner.{name}": (folder / f"{name}.py").read_text(encoding="utf-8") for name in MODULES
    }
    body = json.dumps(modules).encode()
    return struct.pack(">I", len(body)) + body


def runner_environment() -> dict[str, str]:
    """All environment variables that a runner and its cells see; no secret of the caller's is among them."""
    return {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "PYTHONHASHSEED": "0",  # the same cell prints sets in the same order in every session
        "PYTHONUTF8": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "MPLBACKEND": "Agg",
        "OMP_NUM_THREADS": "1",  # many sessions share the machine, and idle thread pools count as tasks
        "OPENBLAS_NUM_THREADS": "1",
    }
