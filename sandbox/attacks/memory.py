"""Group memory: programs that take more of it than they may, also where a limit per process does not see it."""

from agentrl.sandbox.attacks.attack import (
    MANY_FILES,
    OUT_OF_MEMORY,
    RESET,
    ROOMY,
    Attack,
    Bare,
    Expectation,
    error,
    ok,
    refused,
    timeout,
)
from agentrl.sandbox.attacks.programs import ATTEMPT, MARKED

_TOO_MUCH = error("MemoryError") | OUT_OF_MEMORY
_CHILDREN = (
    MARKED
    + """
import os, time
ready, tell = os.pipe()
for _ in range(4):
    if not os.fork():
        take_name()
        # DETACH
        block = b"x" * 80_000_000
        os.write(tell, b".")
        time.sleep(60)
num_ready = 0
while num_ready < 4: num_ready += len(os.read(ready, 4))
time.sleep(20)
print("LEAKED 320 MB in", num_ready, "children")
"""
)
_ORPHANS = _CHILDREN.replace("# DETACH", "os.setsid()\n        if os.fork(): os._exit(0)")
_HIDDEN_CHILDREN = _CHILDREN.replace("# DETACH", "ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # not dumpable")
_FILES_IN_MEMORY = (
    ATTEMPT
    + """
def fill(fd, path=None):
    if path: os.unlink(path)
    try:
        for num_mb in range(400): os.write(fd, bytes(1 << 20))
    finally:
        os.close(fd)
attempt("memfd", lambda: fill(os.memfd_create("x")))
for folder in ("/dev/shm", "/tmp", "/var/tmp", "/run", "/dev"):
    path = folder + "/fill"
    attempt(folder, lambda: fill(os.open(path, os.O_CREAT | os.O_RDWR), path))
"""
)
_MANY_MEMFDS = """
import os
files, num_mb = [], 0
while num_mb < 1000:
    try: files.append(os.memfd_create("x"))
    except OSError as error: print("REFUSED descriptor", error); break
    for _ in range(7): num_mb += os.write(files[-1], bytes(1 << 20)) >> 20
print("LEAKED" if num_mb >= 1000 else "got", num_mb, "MB")
"""
_SHARED_MAPPING = """
import mmap
try:
    block = mmap.mmap(-1, 400 << 20)
    for start in range(0, 400 << 20, 4096): block[start] = 1
    print("LEAKED 400 MB")
except (OSError, ValueError) as error: print("REFUSED mmap", error)
"""
_LOCKED = """
import ctypes
print("mlockall gives", ctypes.CDLL(None).mlockall(3))
blocks = []
while True: blocks.append(bytearray(10 ** 6))
"""
_HUGE_PAGES = (
    ATTEMPT + "import mmap\nattempt('huge pages', lambda: mmap.mmap(-1, 400 << 20, flags=mmap.MAP_PRIVATE | 0x40000))"
)
_PIPES = """
import fcntl, os
pipes, num_bytes = [], 0
try:
    while True:
        pipes.append(os.pipe())
        os.set_blocking(pipes[-1][1], False)
        try: fcntl.fcntl(pipes[-1][1], 1031, 1 << 20)  # F_SETPIPE_SZ
        except OSError: pass
        try:
            while True: num_bytes += os.write(pipes[-1][1], bytes(1 << 16))
        except BlockingIOError: pass
except OSError as error: print("REFUSED pipe", error)
for fds in pipes[-2:]: os.close(fds[0])
print("LEAKED" if num_bytes > 200 << 20 else "got", num_bytes)
"""
_SOCKETS = """
import socket
pairs, num_bytes = [], 0
try:
    while True:
        pairs.append(socket.socketpair())
        pairs[-1][0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 26)
        pairs[-1][0].setblocking(False)
        try:
            while True: num_bytes += pairs[-1][0].send(bytes(1 << 16))
        except BlockingIOError: pass
except OSError as error: print("REFUSED socket", error)
del pairs[-2:]
print("LEAKED" if num_bytes > 800 << 20 else "got", num_bytes)
"""
_FLYING_DESCRIPTORS = """
import array, os, socket
here, there = socket.socketpair()
here.setblocking(False)
num_sent = 0
try:
    while num_sent < 5000:
        fd = os.memfd_create("x")
        os.write(fd, bytes(1 << 16))
        here.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd] * 50))])
        os.close(fd)
        num_sent += 50
except OSError as error: print("REFUSED descriptor", error)
print("LEAKED" if num_sent >= 5000 else "got", num_sent)
"""
_LAUGHS = "text = ['x']\nfor _ in range(30): text = [text] * 10\ntext"
_GROWTH_IN_C = "import itertools; list(itertools.count())"
_RAISED = """
import resource
for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA, resource.RLIMIT_STACK):
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (hard, hard))
blocks = []
while True: blocks.append(bytearray(10 ** 6))
"""


def _memory(id: int, name: str, code: str, expect: Expectation, *, bare: Bare = Bare.HOLDS) -> Attack:
    return Attack(id, "memory", name, code, expect, ROOMY, bare=bare)


def _many_files(id: int, name: str, code: str, expect: Expectation) -> Attack:
    # The kernel gets back what descriptors hold only at the very end of their process. On a busy machine it may choose
    # a second victim before, which is the checkpoint: the session then says that its names are lost.
    expect |= RESET
    return Attack(id, "memory", name, code, expect, MANY_FILES, Bare.DANGEROUS)


MEMORY = [
    _memory(12, "one large block", "bytearray(10 ** 9)", _TOO_MUCH),
    _memory(13, "many blocks", "blocks = []\nwhile True: blocks.append(bytearray(10 ** 6))", _TOO_MUCH),
    Attack(14, "memory", "memory of children together", _CHILDREN, OUT_OF_MEMORY | timeout("wall"), ROOMY),
    _memory(
        15,
        "files in memory",
        _FILES_IN_MEMORY,
        refused("memfd", "/dev/shm", "/tmp", "/var/tmp", "/run", "/dev") | OUT_OF_MEMORY,
        bare=Bare.DANGEROUS,
    ),
    _many_files(221, "many files in memory", _MANY_MEMFDS, ok("got") | OUT_OF_MEMORY),
    Attack(222, "memory", "memory of orphans together", _ORPHANS, OUT_OF_MEMORY | timeout("wall"), ROOMY),
    Attack(
        223,
        "memory",
        "memory of children that hide it",
        _HIDDEN_CHILDREN,
        OUT_OF_MEMORY | timeout("wall"),
        ROOMY,
        bare=Bare.DANGEROUS,
    ),
    _memory(224, "large shared mapping", _SHARED_MAPPING, ok("REFUSED mmap") | OUT_OF_MEMORY),
    _memory(225, "locked memory", _LOCKED, _TOO_MUCH),
    _memory(226, "huge pages", _HUGE_PAGES, refused("huge pages")),
    _memory(227, "full pipes", _PIPES, ok("REFUSED pipe", "got")),
    _many_files(228, "full sockets", _SOCKETS, ok("REFUSED socket", "got") | OUT_OF_MEMORY),
    _memory(229, "descriptors in flight", _FLYING_DESCRIPTORS, ok("REFUSED descriptor", "got"), bare=Bare.DANGEROUS),
    Attack(230, "memory", "a value that is long to print", _LAUGHS, _TOO_MUCH | timeout("cpu")),
    _memory(231, "endless list built in C", _GROWTH_IN_C, _TOO_MUCH | timeout("cpu")),
    _memory(232, "soft limits raised to the hard ones", _RAISED, _TOO_MUCH),
]
