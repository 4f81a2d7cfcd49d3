"""Every error that agentrl raises, in one tree.

Each leaf is also the standard-library error a caller would expect, so `except ValueError` works too.
A message says what was given, what was expected and what to do; the command line prints it alone.
"""


class AgentRLError(Exception):
    """Base of all errors raised on purpose by agentrl."""


class ConfigError(AgentRLError, ValueError):
    """A setting, an argument or a combination of them is wrong."""


class UnknownNameError(AgentRLError, LookupError):
    """A name is not in the table it was looked up in; the message suggests the nearest one."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""  # LookupError would not quote; KeyError would


class MissingExtraError(AgentRLError, ImportError):
    """An optional package is needed; the message holds the pip command to type."""

    def __init__(self, extra: str, purpose: str) -> None:
        super().__init__(extra, purpose)
        self.extra = extra
        self.purpose = purpose

    def __str__(self) -> str:
        return f"{self.purpose} needs an extra that is not installed: pip install 'agentrl-framework[{self.extra}]'"


class DataError(AgentRLError, ValueError):
    """A file of tasks, documents or trajectories cannot be read; the message names file and row."""


class ToolError(AgentRLError, RuntimeError):
    """A tool could not do what the model asked; the text is shown to the model as the result."""


class InfrastructureError(AgentRLError, RuntimeError):
    """Something around the agent failed (sandbox died, server gone): the episode is invalid, not failed."""


class InterruptedCallError(InfrastructureError):
    """A run that was resumed would have to repeat a call that may not be repeated; the episode is discarded."""


class ForkError(AgentRLError, RuntimeError):
    """A half-finished episode cannot be copied, so branching is not possible there."""


class UnforkableStateError(ForkError):
    """This one episode is in a state that cannot be copied; others of the same environment may well be."""


class ChatTemplateError(AgentRLError, ValueError):
    """A chat template cannot be used token-exactly; the message holds the remedy."""


class PolicyError(AgentRLError, RuntimeError):
    """A policy could not be loaded or could not generate."""


class CheckpointError(AgentRLError, RuntimeError):
    """A run folder or checkpoint cannot be read, written or resumed."""
