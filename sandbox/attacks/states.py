"""Group state: programs that spoil the interpreter for what comes after them, and code that is odd itself."""

from agentrl.sandbox.attacks.attack import (
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

_PATCHED = """
import builtins, json, math
json.dumps = lambda *_: "patched"
math.sqrt = json.loads = None
builtins.abs = lambda number: "patched"
builtins.agentrl_patched = True
"""
_IS_PATCHED = "import json, math\nprint(json.dumps([1]), abs(-1), math.sqrt(4), 'agentrl_patched' in dir(__builtins__))"
_VANDAL = """
import sys
for module in list(sys.modules.values()):
    if getattr(module, "__name__", "builtins") in ("builtins", "sys", "__main__"): continue
    for name in list(vars(module)):
        if not name.startswith("__"): vars(module)[name] = None
"""
_NO_MODULES = "import sys; sys.modules.clear()"
_EVIL_MODULES = """
import os, sys
class Evil:
    def find_spec(self, name, *_): raise SystemExit(name)
sys.meta_path.insert(0, Evil()); sys.path_hooks.insert(0, Evil); sys.path[:] = [None]; sys.path_importer_cache.clear()
for name in ("os", "io", "json", "signal", "struct", "socket", "time", "ast", "traceback", "linecache"):
    sys.modules[name] = None
"""
_BUILTINS = "import builtins; builtins.len = builtins.getattr = builtins.repr = builtins.str = builtins.open = None"
_NO_BUILTINS = """
import builtins
for name in [name for name in vars(builtins) if name not in ("print", "__import__")]: vars(builtins).pop(name)
"""
_TRACE = "import sys\ndef hook(*_): raise SystemExit(9)\nsys.setprofile(hook)"
_TRACE_ENDLESS = "import sys\ndef hook(*_):\n    while True: pass\nsys.setprofile(hook)"
_AUDIT = "import sys\ndef hook(*_): raise RuntimeError('no')\nsys.addaudithook(hook)"
_GARBAGE = """
import gc, os
def callback(phase, info): os._exit(3)
gc.callbacks.append(callback)
gc.set_threshold(1)
nodes = [[] for _ in range(1000)]
"""
_MAIN = """
import sys, types
sys.modules["__main__"] = types.ModuleType("other")
__name__ = "other"; __loader__ = __spec__ = 7
"""
_SIGNALS = """
import signal
def handler(*_): raise SystemExit(9)
for number in signal.valid_signals():
    try: signal.signal(number, handler)
    except (OSError, ValueError): pass
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
"""
_TIMER = """
import ctypes
libc = ctypes.CDLL(None)
event = (ctypes.c_int * 16)(0, 0, 9, 0)  # sigev_value, signal 9, SIGEV_SIGNAL
timer = ctypes.c_void_p()
assert libc.timer_create(1, event, ctypes.byref(timer)) == 0
assert libc.timer_settime(timer, 0, (ctypes.c_long * 4)(0, 0, 0, 50_000_000), None) == 0
"""
_INTERVAL = """
import signal
def ring(*_): raise TimeoutError
_ = signal.signal(signal.SIGALRM, ring), signal.signal(signal.SIGPROF, ring)
_ = signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02), signal.setitimer(signal.ITIMER_PROF, 0.02, 0.02)
"""
_LIMIT = "import resource; resource.setrlimit(resource.RLIMIT_{}, ({}, {}))"
_THREADS = "import threading, time\nfor _ in range(5): threading.Thread(target=time.sleep, args=(60,)).start()"
_ENVIRON = """
import os
os.environ.clear()
os.environ.update(PYTHONHOME="/nowhere", PYTHONPATH="/nowhere", PYTHONSTARTUP="evil.py", PYTHONINSPECT="1",
                  LD_PRELOAD="evil.so", LD_LIBRARY_PATH=".", PATH="", HOME="/", TMPDIR="/nowhere")
os._exit(1)
"""
_SHADOWS = """
for name in ("json", "os", "signal", "struct", "random", "traceback", "shutil", "base64", "encodings"):
    open(name + ".py", "w").write("raise SystemExit('shadow')")
import os; os._exit(1)
"""
_LOOP = """
import asyncio
async def work():
    await asyncio.sleep(0.01)
    return 7
loop = asyncio.new_event_loop()
asyncio.set_event_loop(loop)
print(loop.run_until_complete(work()))
"""
_PICKLE = """
class Bomb:
    def __reduce__(self): return (open, (@FOLDER@ + "/planted", "w"))
    __reduce_ex__ = lambda self, protocol: self.__reduce__()
    def __repr__(self): return "a bomb"
Bomb()
"""
_CHECKER = """
import gc, sys
words = "Expectation", "AttackOutcome", "Surroundings", "ToolEnv", "Verifier"
found = {type(thing).__name__ for thing in gc.get_objects()} & set(words)
frames, frame = [], sys._getframe()
while frame:
    frames += [value for value in frame.f_globals if value in words]
    frame = frame.f_back
print("LEAKED" if found or frames else "nothing", found, frames)
"""
_RUNNER_NAMES = """
import sys
frame = sys._getframe()
while frame:
    for name, value in list(frame.f_locals.items()):
        if name in ("self", "streams", "channel", "outcome", "message"):
            try: vars(value).clear()
            except Exception: pass
    frame = frame.f_back
"""
_KEPT_WRITER = "import os; os.dup2(1, 50)\nprint('first')"
_STRICTER = """
import ctypes, struct
# A filter of our own: fork, vfork, clone and clone3 fail from now on.
numbers = {"x86_64": (56, 57, 58, 435), "aarch64": (220, 435)}[__import__("platform").machine()]
lines = [struct.pack("HBBI", 0x20, 0, 0, 0)]
for number in numbers: lines += [struct.pack("HBBI", 0x15, 0, 1, number), struct.pack("HBBI", 0x06, 0, 0, 0x50001)]
lines += [struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000)]
text = ctypes.create_string_buffer(b"".join(lines))
program = struct.pack("HxxxxxxQ", len(lines), ctypes.addressof(text))
libc = ctypes.CDLL(None)
libc.prctl(38, 1, 0, 0, 0)
print(libc.prctl(22, 2, ctypes.c_char_p(program), 0, 0))
"""


def _state(
    id: int,
    name: str,
    code: str,
    expect: Expectation,
    *,
    then: tuple[Cell, ...] = (),
    forgets: bool = False,
    aftershock: bool = False,
) -> Attack:
    return Attack(id, "state", name, code, expect, ROOMY, then=then, forgets=forgets, aftershock=aftershock)


_OR_DEATH = ok() | died() | killed("protocol")
_SHADOW_THEN = (Cell("import os; print([os.remove(n) for n in os.listdir('.') if n.endswith('.py')][:1])", "[None]\n"),)

STATE = [
    Attack(
        73,
        "state",
        "patches modules",
        _PATCHED,
        ok(),
        ROOMY,
        then=(Cell("import json; print(json.dumps(1), abs(-1))", "patched patched\n"),),
        neighbour=Cell(_IS_PATCHED, "[1] 1 2.0 False\n"),
    ),
    _state(74, "looks for its checker", _CHECKER, ok("nothing set() []")),
    _state(75, "value that bites whoever unpickles it", _PICKLE, ok("a bomb\n")),
    _state(431, "vandalises every module", _VANDAL, _OR_DEATH | error(), aftershock=True),
    _state(432, "removes every module", _NO_MODULES, _OR_DEATH, aftershock=True),
    _state(433, "evil importers", _EVIL_MODULES, _OR_DEATH, aftershock=True),
    _state(434, "breaks builtins", _BUILTINS, _OR_DEATH, aftershock=True),
    _state(435, "removes builtins", _NO_BUILTINS, _OR_DEATH | error(), aftershock=True),
    _state(436, "profiler that raises", _TRACE, _OR_DEATH | error(exit_code=9), aftershock=True),
    Attack(437, "state", "profiler that never returns", _TRACE_ENDLESS, timeout("cpu")),
    _state(438, "audit hook that raises", _AUDIT, _OR_DEATH | error(), aftershock=True),
    _state(439, "dies when garbage is collected", _GARBAGE, died(exit_code=3)),
    _state(440, "replaces its main module", _MAIN, ok()),
    _state(441, "deletes all names", "globals().clear()", ok(), forgets=True),
    _state(442, "leaves handlers and a mask for all signals", _SIGNALS, ok()),
    _state(443, "leaves a deadly timer", _TIMER, ok() | died(signal=9), aftershock=True),  # on a slow machine at once
    # On a slow machine they ring in the cell itself, or while it ends.
    _state(444, "leaves ringing timers", _INTERVAL, ok() | error("TimeoutError") | died()),
    _state(445, "ignores its children", "import signal; _ = signal.signal(signal.SIGCHLD, signal.SIG_IGN)", ok()),
    _state(446, "leaves threads", _THREADS, ok()),
    _state(447, "spoils its environment and dies", _ENVIRON, died(exit_code=1)),
    _state(448, "files with the names of modules", _SHADOWS, died(exit_code=1), then=_SHADOW_THEN),
    _state(449, "event loop", _LOOP, ok("7\n")),
    _state(450, "empties the objects of its runner", _RUNNER_NAMES, _OR_DEATH | error(), aftershock=True),
    _state(451, "keeps its output pipe", _KEPT_WRITER, ok("first\n")),
    _state(452, "forbids itself to fork", _STRICTER, ok(), aftershock=True),
    _state(453, "no more files for itself", _LIMIT.format("NOFILE", 0, 0), _OR_DEATH, aftershock=True),
    _state(454, "no more memory for itself", _LIMIT.format("AS", 1, 1), _OR_DEATH | error(), aftershock=True),
    _state(455, "no more time for itself", _LIMIT.format("CPU", 0, 0), _OR_DEATH | timeout("cpu"), aftershock=True),
    _state(456, "no larger files for itself", _LIMIT.format("FSIZE", 0, 0), ok()),
    _state(
        457, "lowest recursion limit", "import sys; sys.setrecursionlimit(20)", _OR_DEATH | error(), aftershock=True
    ),
    _state(458, "code with a NUL", "print(1)\0", error("Error")),
    _state(459, "code with carriage returns", "x = 1\r\nif x:\r\n    print('x')\r\n", ok("x\n")),
    _state(460, "code with a byte order mark", "\ufeffprint('bom')", ok("bom\n") | error("SyntaxError")),
    _state(461, "code with tabs and spaces", "if 1:\n\tx = 1\n        y = 2\n", error("TabError")),
    _state(462, "code that declares an encoding", "# -*- coding: latin-1 -*-\nprint('\u00e4')", ok("\u00e4\n")),
    _state(463, "code with a lone surrogate", "print('\ud800')", ok() | error("Error")),
    _state(464, "code of 10 MB", "x = 1\n" * 1_700_000, error("bytes; at most 100,000 are accepted")),
    _state(465, "long sum", "+".join(["1"] * 40_000), ok() | error("Error") | died(signal=11)),
    _state(466, "deep brackets", "(" * 30_000 + ")" * 30_000, error("Error") | died(signal=11)),
    _state(467, "long chain of attributes", "x" + ".y" * 40_000, error("Error") | died(signal=11)),
    _state(468, "no code", "", ok()),
    _state(469, "return outside a function", "return 5", error("SyntaxError")),
    _state(470, "import that shall not be", "from __future__ import braces", error("SyntaxError: not a chance")),
    _state(471, "deep else-ifs", "if 0: pass\n" + "elif 0: pass\n" * 5000, ok() | error("Error") | died(signal=11)),
]
