"""How a worker process is started: the command line and the environment, equal for a new and for a forked session.

Standard library only: the worker runs this file without agentrl.
"""

import os
import sys

_PYTHON = sys.executable  # taken before a cell could change it
_WORKER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "worker.py")
_FLAGS = ("-s", "-P")
"""As isolated as `-I`, which would also ignore PYTHONHASHSEED; instead the environment is built from nothing."""


def worker_command(*arguments: int) -> list[str]:
    """The program and its arguments (descriptors and process ids, see `worker.main`)."""
    return [_PYTHON, *_FLAGS, _WORKER, *map(str, arguments)]


def worker_environment() -> dict[str, str]:
    """All environment variables that a worker and its cells see; no secret of the caller's is among them."""
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
