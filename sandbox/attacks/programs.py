"""Beginnings that several attack programs share."""

ATTEMPT = """
import errno, os
def attempt(name, action):
    try:
        got = action()
    except (OSError, ValueError) as error:
        print("REFUSED", name, errno.errorcode.get(getattr(error, "errno", None), error))
    else:
        print("REFUSED" if got in ("", b"") else "LEAKED", name, str(got)[:80] or "empty")
def read(path, size=4096):
    with open(path, "rb") as file:
        return file.read(size)
"""
"""`attempt(name, action)` reports whether an action was refused; reading nothing at all counts as refused."""

MARKED = """
import ctypes
def take_name(suffix=""):
    ctypes.CDLL(None).prctl(15, (@MARK@ + suffix).encode(), 0, 0, 0)
"""
"""`take_name()` marks this process and its future children, so that the host finds those that are left over."""

SYSTEM_CALLS = (
    ATTEMPT
    + """
import ctypes, platform
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
NUMBERS = {  # x86_64, aarch64
    "acct": (163, 89), "add_key": (248, 217), "bpf": (321, 280), "chroot": (161, 51), "clock_settime": (227, 112),
    "clone": (56, 220), "clone3": (435, 435), "delete_module": (176, 106), "exit": (60, 93),
    "finit_module": (313, 273), "fsconfig": (431, 431), "fsmount": (432, 432), "fsopen": (430, 430),
    "fspick": (433, 433), "init_module": (175, 105), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425), "ioprio_set": (251, 30), "kcmp": (312, 272), "kexec_load": (246, 104),
    "keyctl": (250, 219), "mount": (165, 40), "mount_setattr": (442, 442), "move_mount": (429, 429),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "open_tree": (428, 428),
    "perf_event_open": (298, 241), "personality": (135, 92), "pidfd_getfd": (438, 438), "pivot_root": (155, 41),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "ptrace": (101, 117), "reboot": (169, 142),
    "request_key": (249, 218), "setns": (308, 268), "settimeofday": (164, 170), "swapon": (167, 224),
    "timer_create": (222, 107), "timer_settime": (223, 110), "umount2": (166, 39), "unshare": (272, 97),
    "userfaultfd": (323, 282),
}
def call(name, *arguments, number=None):
    number = number or NUMBERS[name][["x86_64", "aarch64"].index(platform.machine())]
    ctypes.set_errno(0)
    result = libc.syscall(*map(ctypes.c_long, (number, *arguments)))
    if result == -1:
        raise OSError(ctypes.get_errno(), name)
    return result
def probe(name, *arguments, number=None):
    try:
        got = call(name, *arguments, number=number)
    except OSError as error:
        closed = error.errno in (errno.EPERM, errno.EACCES, errno.ENOSYS)
        print("REFUSED" if closed else "LEAKED", name, errno.errorcode[error.errno])
    else:
        print("LEAKED", name, got)
"""
)
"""`call` makes a system call. `probe` makes one with senseless arguments, which is harmless even where it is permitted:
that the kernel gets as far as to complain about the arguments shows that the call is open."""
