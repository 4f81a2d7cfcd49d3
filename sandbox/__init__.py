"""Running model-written code under limits."""

from agentrl.sandbox.catalog import SANDBOXES, Share, describe_level, open_sandbox
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
from agentrl.sandbox.pool import WarmPool
from agentrl.sandbox.session import RunnerSandbox
from agentrl.sandbox.stateless import StatelessSandbox
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
    "Share",
    "StateAfter",
    "StatelessSandbox",
    "UnsafeSubprocess",
    "WarmPool",
    "describe_level",
    "open_sandbox",
]
