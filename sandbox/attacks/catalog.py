"""The list of all attacks."""

from agentrl.sandbox.attacks.attack import Attack
from agentrl.sandbox.attacks.exits import EXIT
from agentrl.sandbox.attacks.files import FS
from agentrl.sandbox.attacks.kernel import KERNEL
from agentrl.sandbox.attacks.leaks import SECRETS
from agentrl.sandbox.attacks.memory import MEMORY
from agentrl.sandbox.attacks.network import NET
from agentrl.sandbox.attacks.outputs import OUTPUT
from agentrl.sandbox.attacks.processes import PROCESS
from agentrl.sandbox.attacks.states import STATE
from agentrl.sandbox.attacks.timing import TIME

_GROUPS = (TIME, MEMORY, PROCESS, OUTPUT, EXIT, FS, SECRETS, NET, KERNEL, STATE)

ATTACKS: tuple[Attack, ...] = tuple(sorted((attack for group in _GROUPS for attack in group), key=lambda a: a.id))
"""In order of their ids."""
