"""Keys: where they come from, and that nothing shows them."""

import json
import pickle
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.api_key import ApiKey, key_from_environment
from agentrl.errors import ConfigError

PRINTABLE = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=4)


def test_a_key_is_a_bearer_token_unless_it_has_a_header_of_its_own() -> None:
    assert (ApiKey("k1", what="x").header, ApiKey("k1", what="x").header_value) == ("Authorization", "Bearer k1")
    key = ApiKey("k1", what="x", header="X-API-KEY")
    assert (key.header, key.header_value) == ("X-API-KEY", "k1")


@given(PRINTABLE)
def test_a_key_is_found_however_it_is_written(value: str) -> None:
    key = ApiKey(value, what="x")
    escaped = "".join(f"\\u{ord(c):04x}" for c in value)
    slashes = json.dumps(value)[1:-1].replace("/", "\\/")
    for written in (value, json.dumps(value)[1:-1], slashes, quote(value, safe=""), escaped, escaped.upper()):
        written = written.replace("\\U", "\\u")
        assert key.masked(f"<{written}>") == "<***>", written


def test_other_text_is_left_alone() -> None:
    assert ApiKey("a.c", what="x").masked("abc a.c A.C") == "abc *** A.C"


def test_a_key_is_neither_shown_nor_pickled() -> None:
    key = ApiKey("secret-7", what="x")
    assert "secret" not in f"{key!r} {key}"
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(key)


@pytest.mark.parametrize("value", ["", "ab\ncd", "schlüssel", "a\0b"])
def test_what_is_no_key_is_refused_and_not_shown(value: str) -> None:
    with pytest.raises(ConfigError, match="key of the oracle is empty or holds characters") as error:
        ApiKey(value, what="oracle")
    assert not value or value not in str(error.value)


def test_a_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORACLE_KEY", " k1\n")  # as `cat` of a file leaves it
    assert key_from_environment("ORACLE_KEY", what="oracle").header_value == "Bearer k1"
    for absent in ("", " "):
        monkeypatch.setenv("ORACLE_KEY", absent)
        with pytest.raises(ConfigError, match=r"The oracle needs an API key: .* variable ORACLE_KEY"):
            key_from_environment("ORACLE_KEY", what="oracle")


@pytest.mark.parametrize("given", ["sk-abcdef", "0a1b2c3d4e", "abcdef0123", "", "A B"])
def test_a_key_given_in_place_of_a_name_is_not_shown(given: str) -> None:
    with pytest.raises(ConfigError, match="must be the name of an environment variable") as error:
        key_from_environment(given, what="oracle")
    assert not given or given not in str(error.value)
