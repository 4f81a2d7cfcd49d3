"""Group net: services of the host, of the network and of the neighbour."""

from agentrl.sandbox.attacks.attack import ROOMY, Attack, Bare, Cell, Expectation, ok, refused
from agentrl.sandbox.attacks.programs import ATTEMPT

_REACH = (
    ATTEMPT
    + """
import socket
def reach(family, address, kind=socket.SOCK_STREAM):
    with socket.socket(family, kind) as client:
        client.settimeout(0.5)
        client.connect(address)
        if kind == socket.SOCK_DGRAM:
            for _ in range(2): client.send(b"x")  # the second tells that nobody took the first
"""
)
_TCP = _REACH + 'attempt("tcp", lambda: reach(socket.AF_INET, ("127.0.0.1", @PORT@)))'
_UDP = _REACH + 'attempt("udp", lambda: reach(socket.AF_INET, ("127.0.0.1", @UDP_PORT@), socket.SOCK_DGRAM))'
_ABSTRACT = _REACH + 'attempt("abstract", lambda: reach(socket.AF_UNIX, "\\0" + @ABSTRACT@))'
_OUTSIDE = (
    _REACH
    + """
for address in ("169.254.169.254", "192.0.2.1", "127.0.0.53"):
    attempt("tcp " + address, lambda: reach(socket.AF_INET, (address, 80)))
    attempt("dns " + address, lambda: reach(socket.AF_INET, (address, 53), socket.SOCK_DGRAM))
attempt("tcp 6", lambda: reach(socket.AF_INET6, ("2001:db8::1", 80)))
attempt("name", lambda: socket.gethostbyname("name.invalid"))
"""
)
_INTERFACES = """
import socket
# These are in every namespace once their driver is loaded, and lead nowhere.
tunnels = {"tunl0", "sit0", "ip6tnl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "ip6gre0"}
try: names = {name for _, name in socket.if_nameindex()}
except OSError: names = set()
with open("/proc/net/dev") as file: names |= {line.split(":")[0].strip() for line in file if ":" in line}
print("LEAKED" if names - tunnels - {"lo"} else "REFUSED interfaces", names)
with open("/proc/net/route") as file: routes = file.readlines()[1:]
print("LEAKED" if routes else "REFUSED routes", routes)
"""
_RAW = (
    ATTEMPT
    + """
import socket
for name, family, kind, protocol in (
    ("raw", 2, 3, 1), ("raw6", 10, 3, 58), ("packet", 17, 3, 0x300), ("route", 16, 3, 0), ("netfilter", 16, 3, 12),
    ("generic", 16, 3, 16), ("audit", 16, 3, 9), ("ping", 2, 2, 1),
):
    attempt(name, lambda: socket.socket(family, kind, protocol).close() or name)
"""
)
_FAMILIES = (
    ATTEMPT
    + """
import socket
for name, family, kind in (
    ("vsock", 40, 1), ("vsock datagram", 40, 2), ("alg", 38, 5), ("bluetooth", 31, 3), ("can", 29, 3), ("tipc", 30, 2),
    ("rds", 21, 5), ("key", 15, 3), ("xdp", 44, 3), ("qrtr", 42, 2), ("kcm", 41, 5), ("phonet", 35, 2), ("nfc", 39, 5),
    ("x25", 9, 5), ("appletalk", 5, 2), ("ieee802154", 36, 3), ("smc", 43, 1), ("pppox", 24, 1), ("llc", 26, 1),
    ("mctp", 45, 2),
):
    attempt(name, lambda: socket.socket(family, kind).close() or name)
for name, kind, protocol in ("sctp", 1, 132), ("mptcp", 1, 262), ("dccp", 6, 33):
    attempt(name, lambda: socket.socket(2, kind, protocol).close() or name)
"""
)
_LISTEN_ABSTRACT = """
import socket
listener = socket.socket(socket.AF_UNIX)
listener.bind("\\0agentrl-" + @MARK@); listener.listen()
print("listening")
"""
_FIND_ABSTRACT = Cell(
    """
import socket
with socket.socket(socket.AF_UNIX) as client:
    try: client.connect("\\0agentrl-" + @MARK@); print("LEAKED")
    except OSError: print("nobody")
""",
    "nobody\n",
)
_PLANT = """
import os
for folder in ("/tmp", "/var/tmp", "/dev/shm", "/run", "/dev/mqueue", os.environ["TMPDIR"], os.environ["HOME"], ".."):
    try: open(folder + "/agentrl-" + @MARK@, "w").close()
    except OSError: pass
print("planted")
"""
_FIND_PLANTED = Cell(
    """
import os
found = []
for folder in ("/tmp", "/var/tmp", "/dev/shm", "/run", "/dev/mqueue", os.environ["TMPDIR"], os.environ["HOME"], ".."):
    try: os.unlink(folder + "/agentrl-" + @MARK@); found.append(folder)
    except OSError: pass
print("LEAKED" if found else "nothing", found)
""",
    "nothing []\n",
)
_SHARED_MEMORY = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
identity = libc.shmget(int(@MARK@, 16) & 0x7FFFFFFF, 4096, 0o1666)
print("made" if identity >= 0 else "REFUSED", ctypes.get_errno())
"""
_FIND_SHARED_MEMORY = Cell(
    """
import ctypes
libc = ctypes.CDLL(None)
identity = libc.shmget(int(@MARK@, 16) & 0x7FFFFFFF, 4096, 0)
if identity >= 0: libc.shmctl(identity, 0, None)
print("LEAKED" if identity >= 0 else "nothing")
""",
    "nothing\n",
)


def _net(
    id: int, name: str, code: str, expect: Expectation, bare: Bare = Bare.REACHES, neighbour: Cell | None = None
) -> Attack:
    return Attack(id, "net", name, code, expect, ROOMY, bare, neighbour=neighbour)


_FAMILY_NAMES = ("vsock", "alg", "can", "tipc", "key", "xdp", "sctp", "mptcp")

NET = [
    _net(63, "TCP service of the host", _TCP, refused("tcp")),
    _net(64, "abstract socket of the host", _ABSTRACT, refused("abstract")),
    _net(65, "interfaces and routes", _INTERFACES, refused("interfaces", "routes"), Bare.DANGEROUS),
    _net(66, "raw and netlink sockets", _RAW, refused("raw", "packet", "route", "generic"), Bare.DANGEROUS),
    _net(391, "UDP service of the host", _UDP, refused("udp")),
    _net(392, "metadata service, names, IPv6", _OUTSIDE, refused("tcp 169.254.169.254", "name"), Bare.DANGEROUS),
    _net(393, "other families of sockets", _FAMILIES, refused(*_FAMILY_NAMES), Bare.DANGEROUS),
    _net(394, "abstract socket for a neighbour", _LISTEN_ABSTRACT, ok("listening"), neighbour=_FIND_ABSTRACT),
    _net(395, "files for a neighbour", _PLANT, ok("planted"), neighbour=_FIND_PLANTED),
    _net(396, "shared memory for a neighbour", _SHARED_MEMORY, ok(), neighbour=_FIND_SHARED_MEMORY),
]
