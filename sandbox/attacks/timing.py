"""Group time: programs that do not end, and programs that fight the clock."""

from agentrl.sandbox.attacks.attack import BOMB, CPU, IDLE, ROOMY, WALL, Attack, Bare, error, refused, timeout
from agentrl.sandbox.attacks.programs import ATTEMPT, MARKED

_IGNORE_ALL = """
import signal
for number in signal.valid_signals():
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
while True: pass
"""
_SWALLOW = """
while True:
    try:
        while True: pass
    except BaseException: pass
"""
_HUGE_TEXT = "import sys; sys.set_int_max_str_digits(0); str(1 << 20_000_000); 1"
_NO_TIMERS = """
import resource, signal
for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF): signal.setitimer(timer, 0)
signal.alarm(0)
for number in (signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF, signal.SIGXCPU): signal.signal(number, signal.SIG_IGN)
hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
resource.setrlimit(resource.RLIMIT_CPU, (hard, hard))
while True: pass
"""
_SET_CLOCK = ATTEMPT + "import time\nattempt('clock', lambda: time.clock_settime(time.CLOCK_REALTIME, time.time()))"
_THREADS = """
import threading, time
threading.stack_size(1 << 16)
try:
    for _ in range(200): threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
except RuntimeError as cause: print("REFUSED thread", cause)
time.sleep(20)
if threading.active_count() > 100: print("LEAKED", threading.active_count(), "threads")
time.sleep(60)
"""
_BUSY_CHILD = """
import os
if not os.fork():
    while True: pass
os.wait()
"""
_BUSY_ORPHANS = (
    MARKED
    + """
import os, time
for _ in range(2):
    if not os.fork():
        take_name()
        os.setsid()
        if os.fork(): os._exit(0)
        while True: pass
    os.wait()
time.sleep(60)
"""
)
_RELAY = """
import os, time
while True:
    if not os.fork():
        end = time.process_time() + 0.03
        while time.process_time() < end: pass
        os._exit(0)
    os.wait()
"""
_UNCOUNTED_RELAY = "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN)" + _RELAY.replace(
    "os.wait()", "time.sleep(0.03)"
)
_OTHER_PROGRAM = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'while True: pass'])"
_BUSY_HANDLER = """
import os, signal
def handler(*_):
    while True: pass
signal.signal(signal.SIGTERM, handler)
os.kill(os.getpid(), signal.SIGTERM)
"""
_SELFISH_THREADS = """
import sys, threading
sys.setswitchinterval(1e6)
def spin():
    while True: pass
for _ in range(4): threading.Thread(target=spin, daemon=True).start()
spin()
"""
_LOWEST_PRIORITY = """
import os
os.nice(19)
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
while True: pass
"""
_EVIL_REPEAT = "import collections, itertools; collections.deque(itertools.count(), maxlen=0)"

TIME = [
    Attack(1, "time", "busy loop", "while True: pass", CPU),
    Attack(2, "time", "all signals ignored and blocked", _IGNORE_ALL, CPU),
    Attack(3, "time", "every exception swallowed", _SWALLOW, CPU),
    Attack(4, "time", "sleep", "import time; time.sleep(60)", WALL, IDLE),
    Attack(5, "time", "stops itself", "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", WALL, IDLE),
    Attack(6, "time", "catastrophic regular expression", "import re; re.match('(a+)+$', 'a' * 40 + 'b')", CPU),
    Attack(7, "time", "huge power", "9 ** 9 ** 9; 1", CPU),
    Attack(8, "time", "text of a huge integer", _HUGE_TEXT, CPU),
    Attack(9, "time", "timers and signals of limits switched off", _NO_TIMERS, CPU),
    Attack(10, "time", "sets the clock", _SET_CLOCK, refused("clock"), bare=Bare.DANGEROUS),
    Attack(11, "time", "flood of threads, then a hang", _THREADS, BOMB, ROOMY),
    Attack(201, "time", "a child burns the CPU", _BUSY_CHILD, CPU),
    Attack(202, "time", "orphans burn the CPU", _BUSY_ORPHANS, CPU),
    Attack(203, "time", "children burn the CPU one after the other", _RELAY, CPU),
    Attack(204, "time", "children burn the CPU and are not waited for", _UNCOUNTED_RELAY, timeout("cpu") | WALL, IDLE),
    Attack(205, "time", "another program burns the CPU", _OTHER_PROGRAM, CPU),
    Attack(
        206,
        "time",
        "C code that needs no interpreter lock",
        "import hashlib; hashlib.pbkdf2_hmac('md5', b'', b'', 10 ** 9)",
        CPU,
    ),
    Attack(207, "time", "C loop that never looks for signals", _EVIL_REPEAT, CPU),
    Attack(208, "time", "loops in a signal handler", _BUSY_HANDLER, CPU),
    Attack(209, "time", "threads that do not give way", _SELFISH_THREADS, CPU),
    Attack(210, "time", "lowest priority", _LOWEST_PRIORITY, CPU),
    Attack(
        211, "time", "deadlock", "import threading; lock = threading.Lock(); lock.acquire(); lock.acquire()", WALL, IDLE
    ),
    Attack(212, "time", "event loop that never ends", "import asyncio; asyncio.run(asyncio.sleep(60))", WALL, IDLE),
    Attack(
        213,
        "time",
        "waits for a child that waits",
        "import os\nif not os.fork(): os.execvp('sleep', ['sleep', '60'])\nos.wait()",
        WALL | error(),
        IDLE,
    ),
]
