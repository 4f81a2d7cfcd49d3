"""Group fs: files of the host, files without end, and files that hurt whoever reads them back."""

from agentrl.sandbox.attacks.attack import (
    OUT_OF_MEMORY,
    ROOMY,
    Attack,
    Bare,
    Cell,
    Expectation,
    error,
    killed,
    ok,
    refused,
    timeout,
)
from agentrl.sandbox.attacks.programs import ATTEMPT, SYSTEM_CALLS

_PASSWORDS = ATTEMPT + "for name in ('shadow', 'gshadow', 'sudoers'): attempt(name, lambda: read('/etc/' + name))"
_CANARY = ATTEMPT + "attempt('answer', lambda: read(@CANARY@))"
_ROUNDABOUT = (
    ATTEMPT
    + """
up = "/.." * 40
roots = "/proc/self/root", "/proc/1/root", "/proc/self/cwd" + up, "/proc/thread-self/root", "//", up, "/dev/fd/3" + up
for root in roots:
    attempt(root, lambda: read(root + @CANARY@))
"""
)
_EVERY_ROOT = (
    ATTEMPT
    + """
seen = set()
for pid in filter(str.isdigit, os.listdir("/proc")):
    for place in ("root", "cwd" + "/.." * 40):
        try: seen.add(read(f"/proc/{pid}/{place}" + @CANARY@))
        except OSError: pass
print("LEAKED" if seen else "REFUSED roots", seen)
"""
)
_SYSTEM_FOLDERS = (
    ATTEMPT
    + """
def plant(folder):
    path = folder + "/agentrl-attack"
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    os.unlink(path)
import encodings, sys
folders = ["/", "/usr", "/usr/bin", "/usr/lib", "/usr/local", "/bin", "/lib", "/etc", "/opt", "/var", "/root", "/home",
           "/srv", "/mnt", "/run", "/sys", "/proc", "/boot", "/dev", os.path.dirname(os.__file__),
           os.path.dirname(encodings.__file__), os.path.dirname(sys.executable)]
for folder in folders: attempt("plant in " + folder, lambda: plant(folder))
attempt("library", lambda: os.open(os.__file__, os.O_WRONLY | os.O_APPEND))
attempt("program", lambda: os.open(sys.executable, os.O_WRONLY | os.O_APPEND))
"""
)
_PLANTED = ("plant in /", "plant in /usr", "plant in /etc", "plant in /dev", "library", "program")
_FILL = """
import errno, os
num_mb, files = 0, []
try:
    while num_mb < 200:
        files.append(os.open(f"f{len(files)}", os.O_CREAT | os.O_WRONLY))
        # UNLINK
        for _ in range(7): num_mb += os.write(files[-1], bytes(1 << 20)) / (1 << 20)
except OSError as error: print("REFUSED write", errno.errorcode[error.errno], num_mb)
if num_mb >= 200: print("LEAKED", num_mb, "MB")
"""
_UNSEEN_FILL = _FILL.replace("# UNLINK", 'os.unlink(f"f{len(files) - 1}")')
_MANY = """
import errno, os
try:
    for number in range(10 ** 6): os.close(os.open(f"f{number}", os.O_CREAT | os.O_WRONLY))
    print("LEAKED 1e6 files")
except OSError as error: print("REFUSED file", errno.errorcode[error.errno], number)
"""
_DEVICES = (
    ATTEMPT
    + """
import stat
for name, major, minor in ("disk", 8, 0), ("virtio", 254, 0), ("mem", 1, 1):
    kind = stat.S_IFCHR if name == "mem" else stat.S_IFBLK
    attempt("mknod " + name, lambda: os.mknod("device-" + name, kind | 0o600, os.makedev(major, minor)))
for name in ("mem", "kmem", "port", "kmsg", "sda", "vda", "nvme0n1", "kvm", "fuse", "vsock", "net/tun", "loop-control",
             "vhost-vsock", "vhost-net", "uinput", "mapper/control", "snapshot", "cpu_dma_latency", "hpet", "watchdog"):
    attempt(name, lambda: os.open("/dev/" + name, os.O_RDONLY | os.O_NONBLOCK))
blocks = [name for name in os.listdir("/dev") if stat.S_ISBLK(os.lstat("/dev/" + name).st_mode)]
print("LEAKED" if blocks else "REFUSED blocks", blocks)
"""
)
_LINK_OUT = "import os; os.symlink(@CANARY@, 'answer'); os.symlink('/etc', 'folder'); os.symlink('self', 'self')"
_LINK_THEN = Cell("try: print('LEAKED', open('answer').read())\nexcept OSError: print('nothing')", "nothing\n")
_LINKS_READ = ("answer", "folder/hostname", "folder/passwd", "self")
_HARD_LINK = ATTEMPT + "attempt('link', lambda: os.link(@CANARY@, 'answer'))"
_SPECIAL = """
import os, socket
os.mkfifo("fifo")
listener = socket.socket(socket.AF_UNIX); listener.bind("socket"); listener.close()
os.symlink("/dev/zero", "zero"); os.symlink("/dev/stdin", "stdin"); os.symlink("/proc/self/fd/0", "fd")
os.symlink("fifo", "to-fifo"); os.mkdir("folder")
"""
_SPECIAL_READ = ("fifo", "socket", "zero", "stdin", "fd", "to-fifo", "folder", "", ".", "..", "/etc/passwd", "../../x")
_ODD_NAMES = """
import os
for name in (b"new\\nline", b"\\xff\\xfe", b"-rf", b" ", b"x" * 255, b"\\x1b[31m", b"..x", b"\\xe2\\x80\\xae", b"a\\n"):
    open(name, "w").close()
    os.mkdir(name + b"d" if len(name) < 255 else b"y" * 255)
"""
_NEST = "import os\nfor _ in range(1200):\n    os.mkdir('d'); os.chdir('d')"
_LOCKED = "import os; os.mkdir('d'); open('d/f', 'w').close(); os.chmod('d', 0); os.chmod('.', 0)"
_LOST_HOME = """
import os, shutil
here = os.getcwd()
for path in (here, os.path.dirname(here)):
    shutil.rmtree(path, ignore_errors=True)
"""
_WRITES_OUTSIDE = (
    ATTEMPT
    + """
attempt("plant", lambda: open(@FOLDER@ + "/planted", "w").close())
attempt("change", lambda: open(@CANARY@, "a").close())
attempt("rename", lambda: os.rename(@CANARY@, @CANARY@ + "x"))
"""
)
_BY_HANDLE = SYSTEM_CALLS + "probe('open_by_handle_at', -1, 0, 0)\nprobe('name_to_handle_at', -1, 0, 0, 0, 0)"
_KERNEL_FILES = (
    ATTEMPT
    + """
for path in ("/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sysrq-trigger",
             "/proc/sys/vm/drop_caches", "/proc/sys/kernel/hostname", "/proc/sys/fs/binfmt_misc/register",
             "/sys/kernel/uevent_helper", "/sys/fs/cgroup/cgroup.procs", "/proc/irq/default_smp_affinity"):
    attempt(path, lambda: os.close(os.open(path, os.O_WRONLY)))
for path in ("/proc/kcore", "/proc/kmsg", "/proc/kpageflags", "/proc/vmallocinfo", "/proc/slabinfo"):
    attempt(path, lambda: read(path).strip(b"\\0"))
addresses = {line.split()[0] for line in open("/proc/kallsyms")} if os.path.exists("/proc/kallsyms") else set()
print("LEAKED" if addresses - {"0" * 16, "(null)"} else "REFUSED kallsyms")
"""
)
_DIRTY = (
    ATTEMPT
    + """
import mmap, ctypes
fd = os.open(os.__file__, os.O_RDONLY)
before = os.pread(fd, 64, 0)
libc = ctypes.CDLL(None); libc.mmap.restype = ctypes.c_void_p
address = libc.mmap(None, ctypes.c_size_t(4096), 1, 2, fd, ctypes.c_long(0))  # read only, private
try:
    memory = os.open("/proc/self/mem", os.O_RDWR)
    os.pwrite(memory, b"#", address)
except OSError as error: print("REFUSED write", error)
print("LEAKED" if os.pread(fd, 64, 0) != before else "file unchanged")
"""
)
_NO_DESCRIPTOR = """
import os
try:
    while True: os.open("/dev/null", os.O_RDONLY)
except OSError as error: print("REFUSED descriptor", error)
"""
_ORDINARY = """
import os, tempfile
open("a", "w").write("1"); os.makedirs("b/c"); os.rename("a", "b/c/a")
with tempfile.TemporaryFile() as file: file.write(b"x" * 10_000)
print(open("b/c/a").read(), os.listdir("."))
"""


def _files(
    id: int,
    name: str,
    code: str,
    expect: Expectation,
    *,
    bare: Bare = Bare.HOLDS,
    then: tuple[Cell, ...] = (),
    reads: tuple[str, ...] = (),
    fork: bool = False,
    aftershock: bool = False,
) -> Attack:
    return Attack(
        id, "fs", name, code, expect, ROOMY, bare=bare, then=then, reads=reads, fork=fork, aftershock=aftershock
    )


_NO_SPACE = ok("REFUSED write") | OUT_OF_MEMORY | timeout("cpu")
FS = [
    _files(50, "password files", _PASSWORDS, refused("shadow", "gshadow"), bare=Bare.DANGEROUS),
    _files(51, "answer of the task on the host", _CANARY, refused("answer"), bare=Bare.REACHES),
    _files(52, "roundabout ways to the answer", _ROUNDABOUT, refused("/proc/self/root", "//"), bare=Bare.REACHES),
    _files(53, "writes to system folders", _SYSTEM_FOLDERS, refused(*_PLANTED), bare=Bare.DANGEROUS),
    _files(54, "fills the disk", _FILL, _NO_SPACE, bare=Bare.DANGEROUS),
    _files(
        55,
        "a million files",
        _MANY,
        ok("REFUSED file") | killed("files") | OUT_OF_MEMORY | timeout("cpu"),
        bare=Bare.DANGEROUS,
    ),
    _files(56, "sparse file of a terabyte", "open('f', 'wb').truncate(1 << 40)", error("File too large")),
    _files(57, "deep folders", _NEST, ok(), fork=True),
    _files(58, "devices", _DEVICES, refused("mknod disk", "mem", "kmsg", "blocks"), bare=Bare.DANGEROUS),
    _files(
        59,
        "links to the host in place of its files",
        _LINK_OUT,
        ok(),
        bare=Bare.REACHES,
        then=(_LINK_THEN,),
        reads=_LINKS_READ,
        fork=True,
    ),
    _files(351, "every process's root", _EVERY_ROOT, ok("REFUSED roots"), bare=Bare.REACHES),
    _files(352, "hard link to the answer", _HARD_LINK, refused("link"), bare=Bare.DANGEROUS),
    _files(353, "pipes, sockets and devices to read back", _SPECIAL, ok(), reads=_SPECIAL_READ, fork=True),
    _files(354, "odd file names", _ODD_NAMES, ok(), reads=("new\nline", "-rf", "\x1b[31m", "a\0b"), fork=True),
    _files(355, "folders without permissions", _LOCKED, ok(), reads=("d/f",), fork=True, aftershock=True),
    _files(356, "removes its own folders", _LOST_HOME, ok(), aftershock=True),
    _files(357, "writes beside the answer", _WRITES_OUTSIDE, refused("plant", "change", "rename"), bare=Bare.DANGEROUS),
    _files(358, "opens by handle", _BY_HANDLE, refused("open_by_handle_at"), bare=Bare.DANGEROUS),
    _files(
        359, "files of the kernel", _KERNEL_FILES, refused("/proc/sysrq-trigger", "/proc/kcore"), bare=Bare.DANGEROUS
    ),
    _files(360, "writes through a read-only mapping", _DIRTY, ok("file unchanged"), bare=Bare.DANGEROUS),
    _files(361, "fills the disk with nameless files", _UNSEEN_FILL, _NO_SPACE, bare=Bare.DANGEROUS),
    _files(362, "large file", "open('f', 'wb').write(bytes(20 << 20))", error("File too large")),
    _files(363, "reserves a large file", "import os; os.posix_fallocate(os.open('f', 66), 0, 1 << 30)", error("Error")),
    _files(364, "many open files", "files = [open('/dev/null') for _ in range(500)]", error("Too many open files")),
    _files(366, "leaves no descriptor", _NO_DESCRIPTOR, ok("REFUSED") | killed("protocol", "died"), aftershock=True),
    _files(365, "ordinary use", _ORDINARY, ok("1 ['b']\n"), reads=("b/c/a",)),
]
