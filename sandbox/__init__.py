"""Running model-written code under limits."""

from agentrl.sandbox.catalog import SANDBOXES, open_sandbox
from agentrl.sandbox.core import (
    ExecResult,
    ExecStatus,
    Limits,
    Sandbox,
    SandboxFileError,
    SandboxUnavailableError,
    SecurityLevel,
    Session,
    StateAfter,
)
from agentrl.sandbox.session import RunnerSandbox
from agentrl.sandbox.unsafe_subprocess import UnsafeSubprocess

__all__ = [
    "SANDBOXES",
    "ExecResult",
    "ExecStatus",
    "Limits",
    "RunnerSandbox",
    "Sandbox",
    "SandboxFileError",
    "SandboxUnavailableError",
    "SecurityLevel",
    "Session",
    "StateAfter",
    "UnsafeSubprocess",
    "open_sandbox",
]
