"""An API key: read from the environment, sent in a header, shown nowhere."""

import os
import re
from typing import NoReturn

from agentrl.errors import ConfigError

BEARER = "Authorization"
"""The header in which a key is sent as "Bearer KEY"; in any other it is sent alone."""
MASK = "***"
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")


class ApiKey:
    """A key together with the header that carries it.

    It is not shown by `repr`, cannot be pickled, and `masked` takes it out of what a server says: some repeat the key
    that they refuse.

    Args:
        value: The key itself.
        what: Whose key it is, such as "search server".
        header: Name of the HTTP header.

    Raises:
        ConfigError: It is empty or holds characters that no key has.
    """

    def __init__(self, value: str, *, what: str, header: str = BEARER) -> None:
        if not (value.isascii() and value.isprintable() and value):
            raise ConfigError(f"The API key of the {what} is empty or holds characters that no key has.")
        self.header = header
        self._value = value
        self._written = re.compile("".join(map(_ways_to_write, value)))

    @property
    def header_value(self) -> str:
        """What to send."""
        return f"Bearer {self._value}" if self.header == BEARER else self._value

    def masked(self, text: str) -> str:
        r"""A text without the key, which may stand there as it is, or escaped as in JSON or a URL.

        >>> ApiKey("a/b", what="server").masked(r"a/b a\/b \u0061/b a%2Fb b/a")
        '*** *** *** *** b/a'
        """
        return self._written.sub(MASK, text)

    def __repr__(self) -> str:
        return f"ApiKey({MASK})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("An API key is not pickled: what needs it reads it from the environment again.")


def key_from_environment(variable: str, *, what: str, header: str = BEARER) -> ApiKey:
    """The key that an environment variable holds.

    Args:
        variable: Its name, in capital letters.
        what: Whose key it is, such as "search server".
        header: Name of the HTTP header that carries it.

    Raises:
        ConfigError: This is no name, or there is no such variable.
    """
    if not _VARIABLE.fullmatch(variable):
        raise ConfigError(
            f"api_key_env of the {what} must be the name of an environment variable in capital letters, such as "
            "SEARCH_API_KEY. What was given is not shown here, in case it is the key itself."
        )
    value = os.environ.get(variable, "").strip()
    if not value:
        raise ConfigError(
            f"The {what} needs an API key: put it into the environment variable {variable} "
            f"(export {variable}=...), or name another variable with api_key_env."
        )
    return ApiKey(value, what=what, header=header)


def _ways_to_write(character: str) -> str:
    code = f"{ord(character):02x}"
    return rf"(?:(?i:\\u00{code}|%{code})|\\?{re.escape(character)})"
