"""The system-call filter of a sandbox: one table of rules, as a profile for Docker and as a program for the kernel.

It is a list of what is allowed. Everything else fails with an error that the program can handle; only a program that
uses another calling convention (32-bit x86) is killed, as its numbers mean other calls.

What it is for beyond the namespaces: no socket but Unix ones (vsock is not namespaced, netlink reaches old code), no
new namespaces, no debugging, no keyrings, no System V objects that outlive their process, no io_uring, no input typed
into a terminal. What it leaves open on purpose: file locks, which SQLite needs; two sessions that see one read-only
file could signal to each other by them.
"""

import errno
import json
import platform
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from agentrl.errors import ConfigError
from agentrl.sandbox.linux.syscalls import ABSENT, ALLOWED, ALLOWED_BY_ARGUMENT, REFUSED, Syscall

Machine: TypeAlias = Literal["x86_64", "aarch64"]

_NAMESPACE_FLAGS = 0x7E020000
"""CLONE_NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET."""
_TERMINAL_SIZE, _TERMINAL_ATTRIBUTES = 0x5413, 0x5401
_FIONREAD, _FIONBIO, _FIONCLEX, _FIOCLEX = 0x541B, 0x5421, 0x5450, 0x5451
_AF_UNIX = 1


@dataclass(frozen=True, slots=True)
class ArgumentRule:
    """A call is allowed if its argument, cut to 32 bits as the kernel does, is one of `values` under `mask`."""

    argument: int
    values: tuple[int, ...]
    mask: int = 0xFFFFFFFF


_ONLY_UNIX = ArgumentRule(0, (_AF_UNIX,))
_ONLY_CALLER, _ONLY_CALLER_OF_KIND = ArgumentRule(0, (0,)), ArgumentRule(1, (0,))
"""By process id, which is 0 for the caller; programs that name their own id are refused too."""
ARGUMENT_RULES: Mapping[str, ArgumentRule] = {
    "clone": ArgumentRule(0, (0,), mask=_NAMESPACE_FLAGS),
    "socket": _ONLY_UNIX,
    "socketpair": _ONLY_UNIX,
    # By what is allowed: TIOCSTI and TIOCLINUX type into a terminal, others reach drivers and file systems.
    "prlimit64": _ONLY_CALLER,
    "setpriority": _ONLY_CALLER_OF_KIND,
    "ioprio_set": _ONLY_CALLER_OF_KIND,
    "sched_setparam": _ONLY_CALLER,
    "sched_setscheduler": _ONLY_CALLER,
    "sched_setaffinity": _ONLY_CALLER,
    "sched_setattr": _ONLY_CALLER,
    "ioctl": ArgumentRule(1, (_TERMINAL_ATTRIBUTES, _TERMINAL_SIZE, _FIONREAD, _FIONBIO, _FIONCLEX, _FIOCLEX)),
}


def docker_profile() -> str:
    """The rules as Docker takes them: JSON for `--security-opt seccomp=`."""
    rules: list[dict[str, Any]] = [
        {"names": _names(ALLOWED), "action": "SCMP_ACT_ALLOW"},
        {"names": _names(ABSENT), "action": "SCMP_ACT_ERRNO", "errnoRet": errno.ENOSYS},
    ]
    for name, rule in ARGUMENT_RULES.items():
        # Several conditions of one entry on one argument would be joined by "or", so each has an entry of its own.
        for value in rule.values:
            condition = {"op": "SCMP_CMP_MASKED_EQ", "value": rule.mask, "valueTwo": value}
            arguments = [{"index": rule.argument, **condition}]
            rules.append({"names": [name], "action": "SCMP_ACT_ALLOW", "args": arguments})
    profile = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": errno.EPERM,
        "archMap": [
            {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": []},
            {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": []},
        ],
        "syscalls": rules,
    }
    return json.dumps(profile)


def bpf_program(machine: str | None = None) -> bytes:
    """The rules as the kernel takes them: classic BPF, an array of `struct sock_filter`, for `bwrap --seccomp`.

    Args:
        machine: "x86_64" or "aarch64"; by default the running one.

    Raises:
        ConfigError: The system calls of that machine are not known here.
    """
    name = machine or platform.machine()
    architecture = _ARCHITECTURES.get(name)
    if architecture is None:
        raise ConfigError(f"There is no system-call filter for {name!r}, only for {' and '.join(_ARCHITECTURES)}.")
    return b"".join(instruction.pack() for instruction in _assemble(architecture))


@dataclass(frozen=True, slots=True)
class _Architecture:
    name: Machine
    audit: int
    """AUDIT_ARCH_... of <linux/audit.h>: the calling convention that a call came by."""
    foreign_from: int | None = None
    """Numbers from here on belong to another convention of the same architecture."""


_ARCHITECTURES: Mapping[str, _Architecture] = {
    "x86_64": _Architecture("x86_64", 0xC000003E, foreign_from=0x40000000),  # x32
    "aarch64": _Architecture("aarch64", 0xC00000B7),
}

_LOAD_WORD, _AND, _JUMP_EQUAL, _JUMP_GREATER, _RETURN = 0x20, 0x54, 0x15, 0x25, 0x06
"""BPF_LD|W|ABS, BPF_ALU|AND|K, BPF_JMP|JEQ|K, BPF_JMP|JGT|K, BPF_RET|K of <linux/bpf_common.h>."""
_NUMBER, _AUDIT_ARCH, _ARGUMENTS = 0, 4, 16
"""Offsets in `struct seccomp_data`; an argument has 64 bits, its low word first."""
_RET_ALLOW, _RET_ERRNO, _RET_KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000


@dataclass(frozen=True, slots=True)
class _Instruction:
    """`struct sock_filter`; jumps count the instructions to skip."""

    code: int
    operand: int
    if_true: int = 0
    if_false: int = 0

    def pack(self) -> bytes:
        return struct.pack("<HBBI", self.code, self.if_true, self.if_false, self.operand)


def _assemble(architecture: _Architecture) -> Iterable[_Instruction]:
    """Checks the calling convention, then goes through ranges of numbers with one answer each, in ascending order."""
    yield _Instruction(_LOAD_WORD, _AUDIT_ARCH)
    yield _Instruction(_JUMP_EQUAL, architecture.audit, if_true=1)
    yield _Instruction(_RETURN, _RET_KILL_PROCESS)
    yield _Instruction(_LOAD_WORD, _NUMBER)
    for last, answer in _ranges(architecture):
        yield _Instruction(_JUMP_GREATER, last, if_true=len(answer))
        yield from answer
    yield _Instruction(_RETURN, _RET_KILL_PROCESS)


_Answer: TypeAlias = tuple[_Instruction, ...]
"""Instructions that end the program, whatever they find."""


def _ranges(architecture: _Architecture) -> Iterable[tuple[int, _Answer]]:
    """Last number of each range and the answer to all calls in it; past the known ones there is nothing."""
    answers = _answers(architecture.name)
    highest = max(answers)
    for number in range(highest):
        if answers.get(number, _NO_SUCH_CALL) != answers.get(number + 1, _NO_SUCH_CALL):
            yield number, answers.get(number, _NO_SUCH_CALL)
    yield highest, answers[highest]
    yield (architecture.foreign_from or 1 << 32) - 1, _NO_SUCH_CALL


def _answers(machine: Machine) -> dict[int, _Answer]:
    """System-call number to answer."""
    by_name: dict[str, _Answer] = {name: _check(rule) for name, rule in ARGUMENT_RULES.items()}
    groups: Iterable[tuple[Iterable[Syscall], _Answer | None]] = (
        (ALLOWED, (_Instruction(_RETURN, _RET_ALLOW),)),
        (REFUSED, _fail(errno.EPERM)),
        (ABSENT, _NO_SUCH_CALL),
        (ALLOWED_BY_ARGUMENT, None),
    )
    answers: dict[int, _Answer] = {}
    for calls, answer in groups:
        for call in calls:
            number = call.x86_64 if machine == "x86_64" else call.aarch64
            if number is not None:
                answers[number] = answer or by_name[call.name]
    return answers


def _check(rule: ArgumentRule) -> _Answer:
    """Compares an argument with each allowed value; only a match reaches the last instruction."""
    num_values = len(rule.values)
    return (
        _Instruction(_LOAD_WORD, _ARGUMENTS + 8 * rule.argument),
        _Instruction(_AND, rule.mask),
        *(_Instruction(_JUMP_EQUAL, value, if_true=num_values - i) for i, value in enumerate(rule.values)),
        *_fail(errno.EPERM),
        _Instruction(_RETURN, _RET_ALLOW),
    )


def _fail(error: int) -> _Answer:
    return (_Instruction(_RETURN, _RET_ERRNO | error),)


_NO_SUCH_CALL = _fail(errno.ENOSYS)


def _names(calls: Iterable[Syscall]) -> list[str]:
    return [call.name for call in calls]
