"""Group kernel: system calls and privileges that escapes are made of."""

from agentrl.sandbox.attacks.attack import ROOMY, Attack, Bare, Expectation, died, ok, refused
from agentrl.sandbox.attacks.programs import ATTEMPT, SYSTEM_CALLS

_FLAGS = """
FLAGS = {"user": 0x10000000, "mount": 0x20000, "pid": 0x20000000, "net": 0x40000000, "ipc": 0x8000000, "uts": 0x4000000,
         "cgroup": 0x2000000, "time": 0x80}
"""
_NAMESPACES = (
    SYSTEM_CALLS
    + _FLAGS
    + """
for name, flag in FLAGS.items(): attempt("unshare " + name, lambda: call("unshare", flag))
"""
)
_CLONES = (
    SYSTEM_CALLS
    + _FLAGS
    + """
def clone(flags):
    pid = call("clone", flags | 17, 0, 0, 0, 0)
    if pid == 0: os._exit(0)
    return pid
for name, flag in FLAGS.items():
    if name != "time": attempt("clone " + name, lambda: clone(flag))
    if name != "time": attempt("user and " + name, lambda: clone(flag | FLAGS["user"]))
sizes = (ctypes.c_uint64 * 11)(FLAGS["user"], 0, 0, 0, 17)
def clone3():
    pid = call("clone3", ctypes.addressof(sizes), 88)
    if pid == 0: os._exit(0)
    return pid
attempt("clone3", clone3)
"""
)
_JOINS = (
    SYSTEM_CALLS
    + """
probe("setns", -1, 0)
for name in ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup"):
    def join():
        fd = os.open("/proc/1/ns/" + name, os.O_RDONLY)
        call("setns", fd, 0)
    attempt("join " + name, join)
"""
)
_MOUNTS = (
    SYSTEM_CALLS
    + """
def mount(source, target, kind, flags):
    texts = [ctypes.create_string_buffer(text) for text in (source, target, kind)]
    return call("mount", *map(ctypes.addressof, texts), flags, 0)
os.makedirs("m", exist_ok=True)
attempt("tmpfs", lambda: mount(b"none", b"m", b"tmpfs", 0))
attempt("bind", lambda: mount(b"/", b"m", b"", 4096))
attempt("proc", lambda: mount(b"proc", b"m", b"proc", 0))
attempt("remount", lambda: mount(b"none", b"/", b"", 32 | 4096))
path = ctypes.create_string_buffer(b"/proc")
attempt("umount", lambda: call("umount2", ctypes.addressof(path), 2))
probe("pivot_root", 0, 0)
probe("fsopen", -1, 0); probe("fsconfig", -1, 0, 0, 0, 0); probe("fsmount", -1, 0, 0); probe("fspick", -1, 0, 0)
probe("open_tree", -1, 0, 0); probe("move_mount", -1, 0, -1, 0, 0); probe("mount_setattr", -1, 0, 0, 0, 0)
"""
)
_MOUNT_NAMES = (
    "tmpfs",
    "bind",
    "proc",
    "remount",
    "umount",
    "pivot_root",
    "fsopen",
    "open_tree",
    "move_mount",
    "fsmount",
)
_YOUNG_CALLS = (
    SYSTEM_CALLS
    + """
probe("bpf", 9999, 0, 0)
for name in ("keyctl", "add_key", "request_key"): probe(name, 9999, 0, 0, 0, 0)
probe("io_uring_setup", 0, 0); probe("io_uring_enter", -1, 0, 0, 0, 0, 0); probe("io_uring_register", -1, 0, 0, 0)
probe("perf_event_open", 0, 0, -1, -1, 0)
probe("userfaultfd", 0xFFFF)
"""
)
_YOUNG_NAMES = (
    "bpf",
    "keyctl",
    "add_key",
    "request_key",
    "io_uring_setup",
    "io_uring_enter",
    "perf_event_open",
    "userfaultfd",
)
_PRIVILEGES = (
    SYSTEM_CALLS
    + """
with open("/proc/self/status") as file: status = dict(line.rstrip("\\n").split(":\\t", 1) for line in file)
for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
    print("LEAKED" if int(status[name], 16) else "REFUSED", name, status[name])
print("REFUSED" if status["NoNewPrivs"] == "1" else "LEAKED", "new privileges", status["NoNewPrivs"])
print("REFUSED" if status["Seccomp"] == "2" else "LEAKED", "filter", status["Seccomp"])
ids = status["Uid"].split() + status["Gid"].split()
print("LEAKED" if "0" in ids else "REFUSED", "root", ids)
attempt("setuid", lambda: os.setuid(0)); attempt("setgid", lambda: os.setgid(0))
attempt("setgroups", lambda: os.setgroups([0])); attempt("setresuid", lambda: os.setresuid(0, 0, 0))
header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)(*[0xFFFFFFFF] * 6)
def capset():
    if libc.capset(header, data): raise OSError(ctypes.get_errno(), "capset")
attempt("capset", capset)
attempt("ambient", lambda: call("prctl", 47, 2, 21, 0, 0, number={"x86_64": 157, "aarch64": 167}[platform.machine()]))
"""
)
_PRIVILEGE_NAMES = ("CapPrm", "CapEff", "CapBnd", "new privileges", "filter", "root", "setuid", "setgroups", "capset")
_CHROOT = (
    SYSTEM_CALLS
    + """
os.makedirs("jail", exist_ok=True)
attempt("chroot", lambda: os.chroot("jail"))
probe("chroot", -1)
"""
)
_TERMINAL = (
    ATTEMPT
    + """
import fcntl
for name in ("tty", "tty0", "tty1", "console", "ttyS0", "vcs", "pts/0", "pts/1", "pts/2"):
    path = "/dev/" + name
    attempt(path, lambda: os.open(path, os.O_RDWR | os.O_NOCTTY))
for fd in range(3): attempt(f"type {fd}", lambda: fcntl.ioctl(fd, 0x5412, b"x"))
attempt("ioctl", lambda: fcntl.ioctl(os.open("/dev/null", os.O_RDWR), 0x5412, b"x"))
"""
)
_OTHER_PROCESSES = (
    SYSTEM_CALLS
    + """
probe("ptrace", -1, 0, 0, 0)
attempt("traceme", lambda: call("ptrace", 0, 0, 0, 0))
probe("process_vm_readv", os.getpid(), 0, 0, 0, 0, 0); probe("process_vm_writev", os.getpid(), 0, 0, 0, 0, 0)
probe("kcmp", os.getpid(), os.getpid(), 0, 0, 0); probe("pidfd_getfd", -1, 0, 0)
probe("personality", 0x0040000)
"""
)
_OTHER_NAMES = ("ptrace", "traceme", "process_vm_readv", "process_vm_writev", "kcmp", "pidfd_getfd", "personality")
_MACHINE = (
    SYSTEM_CALLS
    + """
probe("settimeofday", -1, 0); probe("clock_settime", 0, -1)
probe("init_module", 0, 0, 0); probe("finit_module", -1, 0, 0); probe("delete_module", 0, 0)
probe("kexec_load", 0, 0, 0, 0); probe("reboot", 0, 0, 0, 0); probe("swapon", 0, 0); probe("acct", -1)
log = ctypes.create_string_buffer(4096)
print("LEAKED" if libc.klogctl(3, log, 4096) > 0 else "REFUSED", "kernel log")
attempt("hostname", lambda: libc.sethostname(b"x", 1) and (_ for _ in ()).throw(OSError(ctypes.get_errno(), "x")))
"""
)
_MACHINE_NAMES = (
    "settimeofday",
    "clock_settime",
    "init_module",
    "kexec_load",
    "reboot",
    "swapon",
    "acct",
    "kernel log",
)
_OTHER_NUMBERS = (
    SYSTEM_CALLS
    + """
# The calls of another calling convention have other numbers, which a careless filter does not know.
if platform.machine() == "x86_64":
    probe("x32 unshare", 0x10000000, number=0x40000000 + 272)
    probe("x32 ptrace", -1, 0, 0, 0, number=0x40000000 + 521)
else: print("REFUSED x32 not on this machine")
"""
)
_OLD_INTERRUPT = (
    SYSTEM_CALLS
    + """
import mmap
if platform.machine() == "x86_64":
    # push rbx; mov eax, 310 (unshare); mov ebx, CLONE_NEWUSER; int 0x80; pop rbx; ret
    code = bytes.fromhex("53 b8 36 01 00 00 bb 00 00 00 10 cd 80 5b c3")
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(code)
    result = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
    print("LEAKED" if result == 0 else "REFUSED", "int 0x80", result)
else: print("REFUSED int 0x80 not on this machine")
"""
)
_SCHEDULING = (
    SYSTEM_CALLS
    + """
attempt("fifo", lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)))
attempt("nice", lambda: os.setpriority(os.PRIO_PROCESS, 0, -5))
attempt("ioprio", lambda: call("ioprio_set", 1, 0, 1 << 13))
"""
)
_LIMITS = (
    ATTEMPT
    + """
import resource
for name in ("AS", "FSIZE", "NOFILE", "CORE"):
    kind = getattr(resource, "RLIMIT_" + name)
    soft, hard = resource.getrlimit(kind)
    if hard == resource.RLIM_INFINITY: print("LEAKED", name, "has no limit")
    else: attempt(name, lambda: resource.setrlimit(kind, (hard + 1, hard + 1)))
"""
)
_CGROUPS = """
import os
writable = []
for folder, folders, names in os.walk("/sys/fs/cgroup"):
    writable += [folder + "/" + name for name in [*names, "."] if os.access(folder + "/" + name, os.W_OK)]
    del folders[50:]
print("LEAKED" if writable else "REFUSED cgroups", writable[:3])
"""
_NOTIFICATIONS = (
    SYSTEM_CALLS
    + """
for name, number in ("fanotify_init", (300, 262)), ("memfd_secret", (447, 447)), ("quotactl_fd", (443, 443)):
    probe(name, -1, 0, 0, 0, number=number[platform.machine() != "x86_64"])
"""
)


def _kernel(id: int, name: str, code: str, expect: Expectation) -> Attack:
    return Attack(id, "kernel", name, code, expect, ROOMY, Bare.DANGEROUS)


KERNEL = [
    _kernel(67, "new namespaces", _NAMESPACES, refused("unshare user", "unshare mount", "unshare net", "unshare time")),
    _kernel(68, "mounts", _MOUNTS, refused(*_MOUNT_NAMES)),
    _kernel(69, "bpf, keyrings, io_uring, perf", _YOUNG_CALLS, refused(*_YOUNG_NAMES)),
    _kernel(70, "privileges", _PRIVILEGES, refused(*_PRIVILEGE_NAMES)),
    _kernel(71, "chroot", _CHROOT, refused("chroot EPERM")),
    _kernel(72, "types into a terminal", _TERMINAL, refused("/dev/tty", "type 0", "type 1", "type 2", "ioctl")),
    _kernel(411, "children in new namespaces", _CLONES, refused("clone user", "clone net", "user and mount", "clone3")),
    _kernel(412, "namespaces of its runner", _JOINS, refused("setns", "join user", "join mnt")),
    _kernel(413, "calls into other processes", _OTHER_PROCESSES, refused(*_OTHER_NAMES)),
    _kernel(414, "clock, modules, reboot, kernel log", _MACHINE, refused(*_MACHINE_NAMES)),
    _kernel(415, "numbers of another calling convention", _OTHER_NUMBERS, refused("x32") | died(signal=31)),
    _kernel(416, "32-bit system calls", _OLD_INTERRUPT, refused("int 0x80") | died(signal=11) | died(signal=31)),
    _kernel(417, "priorities", _SCHEDULING, refused("fifo", "nice", "ioprio")),
    _kernel(418, "raises its limits", _LIMITS, refused("AS", "FSIZE", "NOFILE", "CORE")),
    _kernel(419, "control groups", _CGROUPS, ok("REFUSED cgroups")),
    _kernel(420, "other privileged calls", _NOTIFICATIONS, refused("fanotify_init")),
]
