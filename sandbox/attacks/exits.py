"""Group exit: all the ways in which a cell, its interpreter or its process can end."""

from agentrl.sandbox.attacks.attack import (
    BUSY,
    CPU,
    ROOMY,
    Attack,
    Cell,
    Expectation,
    died,
    error,
    killed,
    ok,
    timeout,
)
from agentrl.sandbox.core import Limits

_EXEC = "import os, sys; os.execv(sys.executable, [sys.executable, '-I', '-c', 'print(\"hi\")'])"
_RECURSION = "def f(): return f()\nf()"
_DEEP_STACK = """
import sys
sys.setrecursionlimit(10 ** 9)
class Endless:
    def __repr__(self): return repr(self)
Endless()
"""
_NESTED_PARSE = "eval('-' * 200_000 + '1')"
_ENDLESS_DEL = "class A:\n    def __del__(self):\n        while True: pass\nA()\n5"
_FINALIZERS = """
import atexit, time
class A:
    def __del__(self):
        while True: pass
keep = A()
_ = atexit.register(time.sleep, 60)
_ = atexit.register(lambda: atexit.register(time.sleep, 60))
"""
_EVIL_EXIT = "class Code:\n    def __str__(self):\n        while True: pass\nimport sys; sys.exit(Code())"
_FAULT_LOOP = "import ctypes, signal; signal.signal(signal.SIGSEGV, lambda *_: None); ctypes.string_at(0)"
_BUS_ERROR = """
import mmap
with open("f", "wb+") as file:
    file.write(bytes(8192))
    file.flush()
    block = mmap.mmap(file.fileno(), 8192)
    file.truncate(0)
block[5000]
"""
_SCRIBBLE = """
import ctypes
for object in (None, True, 0, "", (), int, str): ctypes.memset(id(object), 0xff, 64)
print([None, 0] * 2)
"""
_INTERRUPT = "import _thread\n_thread.interrupt_main()\nwhile True: pass"
_DUMP = "import faulthandler, time; faulthandler.dump_traceback_later(0.05, exit=True); time.sleep(20)"
_NO_CORE = Cell("import glob; print(glob.glob('*core*'))", "[]\n")
_STRICT = "import ctypes; print('REFUSED', ctypes.CDLL(None).prctl(22, 1, 0, 0, 0))"
_MEMFD_PROGRAM = """
import os, sys
fd = os.memfd_create("program", 0)
os.write(fd, f"#!{sys.executable}\\nprint('from memory')\\n".encode())
os.execve(fd, ["program"], {})
"""
_FUTURE_DEATH = "import os, threading; threading.Timer(0.05, os._exit, [0]).start()"


def _exit(id: int, name: str, code: str, expect: Expectation, limits: Limits = BUSY) -> Attack:
    return Attack(id, "exit", name, code, expect, limits)


EXIT = [
    _exit(40, "exit code", "import sys; sys.exit(3)", error("exit code 3", exit_code=3)),
    _exit(41, "os._exit", "print('a'); import os; os._exit(3)", died("a\nkilled", "exited with code 3", exit_code=3)),
    Attack(42, "exit", "abort", "import os; os.abort()", died("died by SIGABRT", signal=6), then=(_NO_CORE,)),
    _exit(43, "segmentation fault", "import ctypes; ctypes.string_at(0)", died("died by SIGSEGV", signal=11)),
    _exit(44, "becomes another program", _EXEC, died("hi\n", exit_code=0)),
    _exit(45, "deep recursion", _RECURSION, error("RecursionError"), ROOMY),
    _exit(46, "stack overflow in C", _DEEP_STACK, died(signal=11) | error("RecursionError"), ROOMY),
    _exit(47, "nested expression", _NESTED_PARSE, error("Error") | died(signal=11), ROOMY),
    _exit(48, "hangs at exit", _FINALIZERS, ok()),
    _exit(49, "reads its input", "import sys\nprint([sys.stdin.read()])\ninput()", error("['']\n", "EOFError")),
    _exit(301, "exit without a code", "import sys; sys.exit()", Expectation(ok().endings)),
    _exit(302, "exit with a text", "import sys; sys.exit('no luck')", error("no luck\n", exit_code=1)),
    _exit(303, "exit with a huge code", "import sys; sys.exit(2 ** 70)", error()),
    _exit(304, "exit from the site module", "exit(4)", error("exit code 4", exit_code=4)),
    _exit(305, "exit with a code that hangs", _EVIL_EXIT, CPU),
    _exit(306, "keyboard interrupt", "raise KeyboardInterrupt", error("KeyboardInterrupt")),
    _exit(307, "base exception", "class Gone(BaseException): pass\nraise Gone('by')", error("Gone: by")),
    _exit(308, "generator exit", "raise GeneratorExit", error("GeneratorExit")),
    _exit(
        309,
        "interrupts itself",
        _INTERRUPT,
        error("KeyboardInterrupt"),
    ),
    _exit(310, "terminates itself", "import os; os.kill(os.getpid(), 15)", died("died by SIGTERM", signal=15)),
    _exit(311, "kills its process group", "import os; os.kill(0, 9)", died("died by SIGKILL", signal=9)),
    _exit(312, "real-time signal", "import os; os.kill(os.getpid(), 40)", died("40", signal=40)),
    _exit(313, "ignores a fault for ever", _FAULT_LOOP, CPU),
    _exit(314, "bus error", _BUS_ERROR, died("died by SIGBUS", signal=7)),
    _exit(315, "scribbles over its memory", _SCRIBBLE, died() | error() | timeout("cpu"), ROOMY),
    _exit(316, "watchdog of its own", _DUMP, died("Timeout", exit_code=1), ROOMY),
    _exit(317, "finalizer that hangs", _ENDLESS_DEL, CPU),
    _exit(318, "closes all descriptors", "import os; os.closerange(0, 256)", died() | killed("protocol")),
    _exit(319, "forbids itself nearly all system calls", _STRICT, died() | ok("REFUSED")),
    _exit(320, "becomes a program from memory", _MEMFD_PROGRAM, died(exit_code=0) | died(exit_code=2) | error("Error")),
    # On a slow machine at once.
    Attack(331, "exit", "dies after the cell", _FUTURE_DEATH, ok() | died(exit_code=0), aftershock=True),
]
