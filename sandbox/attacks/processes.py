"""Group process: floods of processes, processes that outlive their cell, and attacks on the runner."""

from agentrl.sandbox.attacks.attack import (
    BOMB,
    CPU,
    IDLE,
    RESET,
    ROOMY,
    Attack,
    Bare,
    Cell,
    Expectation,
    died,
    error,
    killed,
    ok,
    refused,
    timeout,
)
from agentrl.sandbox.attacks.programs import ATTEMPT, MARKED, SYSTEM_CALLS

_FORK_BOMB = (
    MARKED
    + """
import os
take_name()
while True:
    try: os.fork()
    except OSError: pass
"""
)
_STUBBORN_FORK_BOMB = (
    MARKED
    + """
import os, signal
take_name()
for number in signal.valid_signals():
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
while True:
    try:
        if not os.fork(): os.setsid()
    except OSError: pass
"""
)
_BOUNDED_FORK_BOMB = "import os, time\nfor _ in range(8): os.fork()\ntime.sleep(60)"  # 2 ** 8 processes
_MANY_SESSIONS = """
import os, time
for _ in range(60):
    if not os.fork(): os.setsid(); time.sleep(60)
time.sleep(60)
"""
_DAEMON = (
    MARKED
    + """
import os, time
if not os.fork():
    take_name()
    os.setsid()
    if os.fork(): os._exit(0)
    # QUIET
    time.sleep(60)
os.wait()
print("done")
"""
)
_QUIET_DAEMON = _DAEMON.replace("# QUIET", "os.closerange(0, 256)")
_ZOMBIES = "import os\nfor _ in range(20):\n    if not os.fork(): os._exit(0)"
_TO_OTHERS = """
import os, signal
others = [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]
for pid in {1, os.getppid(), *others}:
    for number in NUMBERS:
        try: os.kill(pid, number)
        except OSError: pass
print("survived")
"""
_KILL_RUNNER = _TO_OTHERS.replace("NUMBERS", "[signal.SIGKILL]")
_STOP_RUNNER = _TO_OTHERS.replace("NUMBERS", "[signal.SIGSTOP]")
_STOP_AND_BURN = _STOP_RUNNER + "while True: pass"
_ALL_SIGNALS = _TO_OTHERS.replace("NUMBERS", "signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}")
_STOP_AND_DIE = _STOP_RUNNER + "os._exit(3)"
_PTRACE = (
    SYSTEM_CALLS
    + """
for name, pid in ("runner", 1), ("parent", os.getppid()):
    attempt("ptrace " + name, lambda: call("ptrace", 16, pid, 0, 0))
    attempt("seize " + name, lambda: call("ptrace", 0x4206, pid, 0, 0))
"""
)
_RUNNER_MEMORY = (
    SYSTEM_CALLS
    + """
attempt("mem", lambda: os.open("/proc/1/mem", os.O_RDONLY))  # address 0 could not be read in any case
attempt("maps", lambda: read("/proc/1/maps"))
attempt("environ", lambda: read("/proc/1/environ"))
attempt("syscall", lambda: read("/proc/1/syscall"))
attempt("readv", lambda: call("process_vm_readv", 1, 0, 0, 0, 0, 0))
attempt("writev", lambda: call("process_vm_writev", 1, 0, 0, 0, 0, 0))
"""
)
_RUNNER_FILES = (
    SYSTEM_CALLS
    + """
attempt("list", lambda: os.listdir("/proc/1/fd"))
for fd in range(8):
    attempt(f"open {fd}", lambda: os.open(f"/proc/1/fd/{fd}", os.O_RDWR | os.O_NONBLOCK))
attempt("root", lambda: os.listdir("/proc/1/root"))
attempt("cwd", lambda: os.listdir("/proc/1/cwd"))
try: handle = os.pidfd_open(1)
except OSError: handle = -1
for fd in range(8):
    attempt(f"get {fd}", lambda: call("pidfd_getfd", handle, fd, 0))
"""
)
_RUNNER_SETTINGS = (
    ATTEMPT
    + """
import resource
for name in ("oom_score_adj", "comm", "coredump_filter", "clear_refs", "uid_map", "autogroup"):
    attempt(name, lambda: os.close(os.open("/proc/1/" + name, os.O_WRONLY)))
"""
)
_RUNNER_LIMITS = """
import resource
for kind, limit in ((resource.RLIMIT_NOFILE, 0), (resource.RLIMIT_AS, 1), (resource.RLIMIT_CPU, 0)):
    try: print("set", resource.prlimit(1, kind, (limit, limit)))
    except OSError as error: print("REFUSED prlimit", error)
"""
_JUNK_TO_DESCRIPTORS = """
import os
for fd in range(3, 64):
    try: os.write(fd, b"\\xff" * 8)
    except OSError: pass
while True: pass
"""
_FORGED_END = """
import json, os, struct, sys, time
number = int("".join(filter(str.isdigit, sys._getframe().f_code.co_filename)))
text = json.dumps({"op": "done", "number": number, "succeeded": True, "exit_code": None, "cpu_s": 0.0}).encode()
for fd in range(1, 64):
    try: os.write(fd, struct.pack(">I", len(text)) + text)
    except OSError: pass
time.sleep(60)
"""
_FORGED_END_AND_BURN = MARKED + "take_name()" + _FORGED_END.replace("time.sleep(60)", "while True: pass")
_FORGED_RESULT = """
import json, os, struct, time
for number in range(300):
    fields = {"id": number, "status": "killed", "reason": "memory", "state": "reset", "head": "forged", "tail": "",
              "num_bytes": 6, "exit_code": None, "signal": None, "cpu_s": 0.0, "wall_s": 0.0}
    text = json.dumps(fields).encode()
    for fd in range(1, 64):
        try: os.write(fd, struct.pack(">I", len(text)) + text)
        except OSError: pass
"""
_SUBREAPER = (
    MARKED
    + """
import os, time
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
for _ in range(3):
    if not os.fork():
        take_name()
        os.setsid()
        if not os.fork(): time.sleep(60)
        os._exit(0)
    os.wait()
print("done")
"""
)
_CHILD_RUNS_ON = """
import os
if os.fork():
    os.wait()
    print("parent")
else:
    print("child")
"""
_CHILD_OUTLIVES = _CHILD_RUNS_ON.replace("os.wait()", "pass").replace('print("child")', "import time; time.sleep(60)")
_ODD_NAME = _QUIET_DAEMON.replace("take_name()", 'take_name(") Z 1")')
_COMETS = (
    MARKED
    + """
import os
for _ in range(8):
    if not os.fork():
        take_name()
        os.setsid()
        while True:
            try:
                if os.fork(): os._exit(0)
            except OSError: pass
print("done")
"""
)
_NO_COMETS = Cell(
    """
import os, time
def next_id():
    child = os.fork()
    if not child: os._exit(0)
    os.waitpid(child, 0)
    return child
before = next_id()
time.sleep(0.1)
print(next_id() - before < 50)  # processes that come and go are hard to see, but use up ids
""",
    "True\n",
)
_DEAD_LEADER = (
    SYSTEM_CALLS
    + MARKED
    + """
import threading, time
child = os.fork()
if not child:
    take_name()
    os.closerange(0, 256)
    threading.Thread(target=time.sleep, args=(60,)).start()
    call("exit", 0)
while read(f"/proc/{child}/stat").rpartition(b")")[2].split()[0] != b"Z": time.sleep(0.01)
print("done")
"""
)
_OWN_DEAD_LEADER = (
    SYSTEM_CALLS
    + """
import threading, time
threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
call("exit", 0)
"""
)
_SIBLING = (
    SYSTEM_CALLS
    + MARKED
    + """
import time
pid = call("clone", 0x8000 | 17, 0, 0, 0, 0)  # CLONE_PARENT | SIGCHLD
if pid == 0:
    take_name()
    time.sleep(60)
print("done")
"""
)
_POOL = """
import multiprocessing
with multiprocessing.get_context("fork").Pool(2) as pool: print(pool.map(abs, [-1, -2]))
"""
_PROGRAM = """
import subprocess, sys
print(subprocess.run([sys.executable, "-c", "print(6 * 7)"], capture_output=True, text=True).stdout)
"""
_PARENT_DEATH = "import ctypes, signal; print(ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0))"
_OOM_SHIELD = ATTEMPT + "attempt('shield', lambda: open('/proc/self/oom_score_adj', 'w', buffering=0).write(b'-1000'))"


def _process(id: int, name: str, code: str, expect: Expectation, *, bare: Bare = Bare.HOLDS) -> Attack:
    return Attack(id, "process", name, code, expect, ROOMY, bare=bare)


def _hostile(id: int, name: str, code: str, expect: Expectation) -> Attack:
    return _process(id, name, code, expect, bare=Bare.DANGEROUS)


_SURVIVED = ok("survived") | RESET  # they may hit their own interpreter or its checkpoint
_DESCRIPTORS = [f"{verb} {fd}" for verb in ("open", "get") for fd in range(8)]

PROCESS = [
    Attack(16, "process", "fork bomb", _FORK_BOMB, BOMB, IDLE, Bare.DANGEROUS),
    Attack(17, "process", "fork bomb that ignores signals", _STUBBORN_FORK_BOMB, BOMB, IDLE, Bare.DANGEROUS),
    _process(18, "daemon", _QUIET_DAEMON, ok("done\n")),
    _process(19, "daemon that keeps stdout open", _DAEMON, ok("done\n")),
    _process(20, "zombies", _ZOMBIES, ok()),
    _hostile(21, "kills every process", "import os, signal; os.kill(-1, signal.SIGKILL); print('survived')", _SURVIVED),
    _hostile(22, "kills its runner", _KILL_RUNNER, _SURVIVED),
    _hostile(23, "stops its runner", _STOP_RUNNER, _SURVIVED),
    _hostile(24, "traces its runner", _PTRACE, refused("ptrace runner", "seize runner", "ptrace parent")),
    _hostile(25, "reads its runner's memory", _RUNNER_MEMORY, refused("mem", "maps", "environ", "readv", "writev")),
    _hostile(26, "takes its runner's descriptors", _RUNNER_FILES, refused("list", "root", *_DESCRIPTORS)),
    Attack(27, "process", "writes to all descriptors", _JUNK_TO_DESCRIPTORS, killed("protocol") | CPU | RESET),
    Attack(
        28,
        "process",
        "forges the end of the cell",
        _FORGED_END,
        ok() | killed("protocol") | timeout("wall"),
        IDLE,
        Bare.DANGEROUS,
        aftershock=True,
    ),
    Attack(
        262,
        "process",
        "burns on after a forged end",
        _FORGED_END_AND_BURN,
        killed("protocol") | timeout("cpu"),
        bare=Bare.DANGEROUS,
    ),
    _hostile(261, "forges the result", _FORGED_RESULT, ok() | killed("protocol")),
    Attack(241, "process", "fork bomb of eight rounds", _BOUNDED_FORK_BOMB, BOMB | error("BlockingIOError"), ROOMY),
    Attack(242, "process", "children in sessions of their own", _MANY_SESSIONS, BOMB | error("BlockingIOError"), ROOMY),
    _process(243, "waits for children that are not there", "import os; os.wait()", error("ChildProcessError")),
    _process(244, "a child runs to the end of the cell", _CHILD_RUNS_ON, ok("child\nparent\n")),
    _process(245, "a child outlives the cell", _CHILD_OUTLIVES, ok("parent\n")),
    _hostile(246, "sends every signal to everyone", _ALL_SIGNALS, _SURVIVED),
    _hostile(247, "stops its checkpoint and dies", _STOP_AND_DIE, died("survived", exit_code=3) | RESET),
    Attack(260, "process", "stops its checkpoint and burns", _STOP_AND_BURN, CPU, bare=Bare.DANGEROUS),
    _hostile(248, "runner's settings", _RUNNER_SETTINGS, refused("oom_score_adj", "clear_refs", "uid_map")),
    _hostile(249, "runner's limits", _RUNNER_LIMITS, ok("REFUSED prlimit") | RESET),
    _process(250, "adopts orphans", _SUBREAPER, ok("done\n")),
    _process(251, "daemon with the name of a zombie", _ODD_NAME, ok("done\n")),
    Attack(
        252,
        "process",
        "processes that replace themselves without end",
        _COMETS,
        ok("done\n") | BOMB,
        ROOMY,
        Bare.DANGEROUS,
        then=(_NO_COMETS,),
    ),
    _process(253, "process whose first thread has ended", _DEAD_LEADER, ok("done\n")),
    Attack(254, "process", "ends its own first thread", _OWN_DEAD_LEADER, timeout("wall") | died(), IDLE),
    _hostile(255, "child of its runner", _SIBLING, ok("done\n")),
    _process(256, "pool of processes", _POOL, ok("[1, 2]\n")),
    _process(257, "runs a program", _PROGRAM, ok("42\n")),
    Attack(258, "process", "dies with its parent", _PARENT_DEATH, ok("0\n"), aftershock=True),
    _hostile(259, "shields itself from the kernel's choice", _OOM_SHIELD, refused("shield")),
]
