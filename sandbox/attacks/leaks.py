"""Group secrets: keys, other processes, and the engine's own socket."""

from agentrl.sandbox.attacks.attack import ROOMY, Attack, Bare, ok, refused
from agentrl.sandbox.attacks.programs import ATTEMPT

_ENVIRONMENT = (
    ATTEMPT
    + """
attempt("variable", lambda: os.environ[@VARIABLE@] if @VARIABLE@ in os.environ else "")
own = read("/proc/self/environ", 1 << 20)
print("LEAKED" if @VARIABLE@.encode() in own else "REFUSED own")
parts = "KEY", "TOKEN", "SECRET", "PASSWORD", "CREDENTIAL"
suspects = [name for name in os.environ if any(part in name for part in parts)]
print("LEAKED" if suspects else "REFUSED suspects", suspects)
"""
)
_EVERY_PROCESS = (
    ATTEMPT
    + """
found = []
for pid in filter(str.isdigit, os.listdir("/proc")):
    try: content = read(f"/proc/{pid}/FILE", 1 << 20)
    except OSError: continue
    if @WANTED@.encode() in content: found.append(pid)
print("LEAKED" if found else "REFUSED processes", found)
"""
)
_ENVIRONMENTS = _EVERY_PROCESS.replace("FILE", "environ").replace("@WANTED@", "@VARIABLE@")
_COMMAND_LINES = _EVERY_PROCESS.replace("FILE", "cmdline").replace("@WANTED@", "@BYSTANDER@")
_SOCKETS = (
    ATTEMPT
    + """
import socket
def reach(path):
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1)
        client.connect(path)
for path in ("/var/run/docker.sock", "/run/docker.sock", "/run/containerd/containerd.sock", "/run/podman/podman.sock",
             "/run/dbus/system_bus_socket", "/run/systemd/private"):
    attempt(path, lambda: reach(path))
"""
)
_SOCKET_OF_HOST = _SOCKETS + 'attempt("socket of the host", lambda: reach(@SOCKET@))'
_MEMORY = """
import re
# Written so that this text itself is not what it looks for.
secret = re.compile(b"agentrl-" + b"canary-[0-9a-f]{32}")
found, num_read = set(), 0
with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", 0) as memory:
    for line in maps:
        start, end = (int(number, 16) for number in line.split()[0].split("-"))
        if line.split()[1].startswith("r") and end - start < 1 << 26 and "[v" not in line:
            memory.seek(start)
            try: data = memory.read(end - start)
            except OSError: continue
            num_read += len(data)
            found.update(secret.findall(data))
print("LEAKED" if found else "nothing", "in", "megabytes" if num_read > 1 << 20 else "too little")
"""
_MODULES = """
import sys
known = {"sandbox"}
strangers = {name for name in sys.modules if name.startswith("agentrl.") and name.split(".")[1] not in known}
strangers |= {"torch", "numpy", "transformers", "pytest", "docker", "httpx"} & set(sys.modules)
print("LEAKED" if strangers else "nothing", sorted(strangers))
"""
_DESCRIPTORS = """
import os, stat
odd = []
for name in os.listdir("/proc/self/fd"):
    try: target = os.readlink("/proc/self/fd/" + name)
    except OSError: continue
    if not target.startswith(("pipe:", "socket:", "anon_inode:", "/dev/null", "/proc/")): odd.append(target)
print("LEAKED" if odd else "nothing", odd)
"""

SECRETS = [
    Attack(60, "secrets", "environment", _ENVIRONMENT, refused("variable", "own", "suspects"), ROOMY),
    Attack(61, "secrets", "processes of the host", _COMMAND_LINES, ok("REFUSED processes"), ROOMY, Bare.REACHES),
    Attack(62, "secrets", "sockets of the host", _SOCKET_OF_HOST, refused("socket of the host"), ROOMY, Bare.REACHES),
    Attack(
        371, "secrets", "environments of all processes", _ENVIRONMENTS, ok("REFUSED processes"), ROOMY, Bare.REACHES
    ),
    Attack(372, "secrets", "secrets in its own memory", _MEMORY, ok("nothing in megabytes"), ROOMY),
    Attack(373, "secrets", "code of the framework", _MODULES, ok("nothing []"), ROOMY),
    Attack(374, "secrets", "inherited descriptors", _DESCRIPTORS, ok("nothing []"), ROOMY),
]
