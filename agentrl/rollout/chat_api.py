"""Models behind `POST {base_url}/chat/completions`, in the OpenAI convention that model servers share.

Environments speak in text with `<tool_call>` markup; servers speak in messages with structured calls. A `Conversation`
holds both, so that an episode sees the one and the server a conversation that is valid for it.
"""

import json
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import httpx

from agentrl import messages as msg
from agentrl.chat.template import without_tools
from agentrl.chat.tool_calls import TOOL_CALL_END, TOOL_CALL_START, parse_tool_calls, visible_text
from agentrl.errors import ConfigError, InfrastructureError, PolicyError
from agentrl.json_service import JsonService, Patience, RefusedError
from agentrl.messages import JsonDict, MalformedCall, Message
from agentrl.policies.core import Sampling
from agentrl.text import clean_text

_PATH = "/chat/completions"
_NEWER_LENGTH_KEY = "max_completion_tokens"
_FIRST_CONNECTS = 2
_CONTEXT_FULL = re.compile(r"context.?(length|size|window)|maximum context", re.IGNORECASE)


class ContextFullError(Exception):
    """The conversation has become longer than the served model accepts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatReply:
    r"""One turn of a served model.

    Example:
        ChatReply(text='<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>', content="",
                  calls=({"id": "call_1", "type": "function", "function": {...}},), cut=False,
                  sampled_tokens=21, total_tokens=180)
    """

    text: str
    """The turn as an environment takes it: structured calls are markup."""
    content: str
    """What the server gave as text, beside the calls."""
    calls: tuple[JsonDict, ...] = ()
    """Structured calls, as the server wants them repeated to it."""
    cut: bool = False
    """The token limit ended it."""
    sampled_tokens: int | None = None
    """None: the server does not count."""
    total_tokens: int | None = None
    """Conversation and reply together."""


@dataclass(slots=True)
class Conversation:
    """An episode in both forms.

    Args:
        messages: The opening.
        tools: Schemas of the tools.
    """

    messages: list[Message]
    tools: list[JsonDict]
    structured: list[JsonDict] = field(init=False)
    """The same messages for a server that takes tools."""

    def __post_init__(self) -> None:
        self.structured = [dict(message) for message in without_tools(self.messages, ())]

    def record(self, reply: ChatReply, answer: Sequence[Message]) -> None:
        """Appends a turn and what the environment answered to it.

        A result goes back as a tool message if its call came structured, and otherwise in the markup that the model
        has used itself: a tool message without the call that it answers is an error for many servers.
        """
        self.messages += [msg.assistant(reply.text), *answer]
        if reply.calls and [message["role"] for message in answer] == ["tool"] * len(reply.calls):
            self.structured.append({"role": "assistant", "content": reply.content, "tool_calls": list(reply.calls)})
            self.structured += [
                {"role": "tool", "tool_call_id": call["id"], "content": message["content"]}
                for call, message in zip(reply.calls, answer, strict=True)
            ]
        else:
            turn = [msg.assistant(reply.text), *answer]
            self.structured += [dict(message) for message in without_tools(turn, ())]

    @property
    def estimated_tokens(self) -> int:
        """A rough length, at four characters a token, for servers that do not count."""
        return sum(4 + len(message["content"]) // 4 for message in self.messages)


@dataclass(frozen=True, slots=True)
class _Dialect:
    """What differs from server to server."""

    takes_tools: bool = True
    length_key: str = "max_tokens"

    def adapted(self, refusal: str, sent_tools: bool) -> "_Dialect | None":
        """What to try after a refusal; None if it is not about the dialect."""
        text = refusal.lower()
        if self.length_key != _NEWER_LENGTH_KEY and _NEWER_LENGTH_KEY in text:
            return replace(self, length_key=_NEWER_LENGTH_KEY)
        if self.takes_tools and sent_tools and "tool" in text:
            return replace(self, takes_tools=False)
        return None


class ChatServer:
    """A model behind an OpenAI-compatible endpoint; any number of threads may use it at a time.

    The first request is made alone: it finds out whether the server takes `tools` (if it refuses them, the fallback
    prompt of `agentrl.chat` describes them instead), and whatever it fails of concerns every episode and is raised as a
    `PolicyError`. A later failure concerns one episode.

    Args:
        base_url: Such as "http://localhost:8000/v1"; without a path, "/v1" is added.
        model: Name of the model at the server.
        api_key: Sent as a bearer token if the server wants one; never part of a message.
        timeout_s: Longest wait for one turn, attempts and pauses included.

    Raises:
        ConfigError: The URL, the key or the time cannot be used.
    """

    def __init__(self, base_url: str, model: str, *, api_key: str | None = None, timeout_s: float = 300.0) -> None:
        self.base_url = _normalized(base_url)
        self.model = model
        patience = Patience(connect_s=10.0, read_s=timeout_s, deadline_s=timeout_s)
        self._service = JsonService(self.base_url + _PATH, what="model server", patience=patience, api_key=api_key)
        self._dialect = _Dialect()
        self._first = threading.Lock()
        self._answered = False
        self._failure = ""

    @property
    def takes_tools(self) -> bool:
        """Whether tool schemas are sent as such; known after the first request."""
        return self._dialect.takes_tools

    def complete(self, conversation: Conversation, *, max_tokens: int, sampling: Sampling, seed: int) -> ChatReply:
        """Asks for the next turn.

        Args:
            conversation: So far.
            max_tokens: Limit of the turn.
            sampling: How tokens are drawn; `top_k` is an extension that not every server has.
            seed: Servers that can, draw the same tokens for the same seed.

        Raises:
            PolicyError: The first request failed.
            ContextFullError: The conversation has become too long.
            InfrastructureError: No usable answer.
        """
        if not self._answered:
            with self._first:
                if self._failure:
                    raise PolicyError(self._failure)
                if not self._answered:
                    reply = self._negotiate(conversation, max_tokens, sampling, seed)
                    self._answered = True
                    return reply
        try:
            return self._ask(conversation, max_tokens, sampling, seed)
        except RefusedError as error:
            if _CONTEXT_FULL.search(error.text):
                raise ContextFullError from error
            raise

    def _negotiate(self, conversation: Conversation, max_tokens: int, sampling: Sampling, seed: int) -> ChatReply:
        """The first request, in the dialect that turns out to be the server's."""
        while True:
            try:
                return self._ask(conversation, max_tokens, sampling, seed, max_connects=_FIRST_CONNECTS)
            except InfrastructureError as error:
                text = error.text if isinstance(error, RefusedError) else ""
                dialect = self._dialect.adapted(text, bool(conversation.tools))
                if dialect is None:
                    self._failure = f"{error} {_remedy(error)}"
                    raise PolicyError(self._failure) from error
                self._dialect = dialect

    def _ask(
        self,
        conversation: Conversation,
        max_tokens: int,
        sampling: Sampling,
        seed: int,
        *,
        max_connects: int | None = None,
    ) -> ChatReply:
        body: JsonDict = {
            "model": self.model,
            "messages": conversation.structured,
            "temperature": sampling.temperature,
            self._dialect.length_key: max_tokens,
            "seed": seed % 2**31,  # what every server can hold
        }
        if sampling.top_p < 1.0:
            body["top_p"] = sampling.top_p
        if sampling.top_k:
            body["top_k"] = sampling.top_k
        in_prompt = bool(conversation.tools) and not self._dialect.takes_tools
        if in_prompt:
            body["messages"] = without_tools(conversation.messages, conversation.tools)
            body["stop"] = [TOOL_CALL_END]  # or the model goes on and invents the result
        elif conversation.tools:
            body["tools"] = conversation.tools
        try:
            return read_reply(self._service.post(body, max_connects=max_connects), stops_at_call=in_prompt)
        except ValueError as error:
            raise InfrastructureError(
                f"{self._service.name} does not speak the chat-completions protocol: {error}."
            ) from error


def read_reply(answer: Any, *, stops_at_call: bool = False) -> ChatReply:
    """A turn from a server's answer, with structured calls turned into markup.

    Args:
        answer: Decoded JSON.
        stops_at_call: The server was told to stop at the end marker of a call, which it then leaves out.

    Raises:
        ValueError: Saying what was expected.
    """
    choices = _get(answer, "choices", list)
    if not choices:
        raise ValueError('"choices" is empty')
    message = _get(choices[0], "message", dict)
    content = _get(message, "content", str, default="")
    cut = choices[0].get("finish_reason") == "length"
    calls = tuple(_read_call(call, number) for number, call in enumerate(_get(message, "tool_calls", list, default=[])))
    usage = _get(answer, "usage", dict, default={})
    reply = ChatReply(
        text=_closed(content) if stops_at_call and not cut else content,
        content=content,
        cut=cut,
        sampled_tokens=_count(usage, "completion_tokens"),
        total_tokens=_count(usage, "total_tokens"),
    )
    return reply if cut or not calls else _with_calls(reply, calls)


def _with_calls(reply: ChatReply, calls: tuple[JsonDict, ...]) -> ChatReply:
    """The reply with its structured calls in the text."""
    markup = "\n".join(_markup(**call["function"]) for call in calls)
    said = visible_text(reply.content)
    text = f"{said}\n{markup}" if said else markup
    parsed = parse_tool_calls(text)
    if len(parsed) != len(calls):  # what was said beside the calls holds markup, too
        text, said, parsed = markup, "", parse_tool_calls(markup)
    # Servers parse the arguments of calls that are repeated to them, and fail if they are no JSON.
    repeatable = not any(isinstance(call, MalformedCall) for call in parsed)
    return replace(reply, text=text, content=said, calls=calls if repeatable else ())


def _read_call(call: Any, number: int) -> JsonDict:
    function = _get(call, "function", dict)
    arguments = function.get("arguments") or "{}"
    return {
        "id": _get(call, "id", str, default="") or f"call{number}",
        "type": "function",
        "function": {
            "name": _get(function, "name", str),
            "arguments": clean_text(arguments if isinstance(arguments, str) else json.dumps(arguments)),
        },
    }


def _markup(name: str, arguments: str) -> str:
    """The call as text; arguments that are no JSON stay as they are, for the environment to say so to the model."""
    body = f'{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": {arguments}}}'
    for marker in (TOOL_CALL_START, TOOL_CALL_END):
        body = body.replace(marker, "\\u003c" + marker[1:])
    return f"{TOOL_CALL_START}\n{body}\n{TOOL_CALL_END}"


def _closed(text: str) -> str:
    """The text with the end marker of its last call, if that lacks it."""
    calls = parse_tool_calls(text)
    is_open = bool(calls) and isinstance(calls[-1], MalformedCall) and not text.rstrip().endswith(TOOL_CALL_END)
    closed = f"{text.rstrip()}\n{TOOL_CALL_END}"
    return closed if is_open and len(parse_tool_calls(closed)) == len(calls) else text


def _get(data: Any, key: str, kind: type, **default: Any) -> Any:
    """A value of a JSON object; null counts as absent.

    Raises:
        ValueError: It is no object, or the value is absent or of another type.
    """
    if not isinstance(data, dict):
        raise ValueError(f'an object with "{key}" was expected, got {type(data).__name__}')
    value = data.get(key)
    if value is None and default:
        return default["default"]
    if not isinstance(value, kind):
        raise ValueError(f'"{key}" must be of type {kind.__name__}, got {type(value).__name__}')
    return clean_text(value) if isinstance(value, str) else value  # text that could not be sent back


def _count(usage: Mapping[str, Any], key: str) -> int | None:
    value = usage.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _remedy(error: InfrastructureError) -> str:
    if not isinstance(error, RefusedError):
        return "Is the server running, and does the base URL end in the path of its API, usually /v1?"
    if error.status in (401, 403):
        return "Put the key into the environment variable OPENAI_API_KEY, or name another with --api-key-env."
    if error.status in (404, 405):
        return "Check the name of the model, and that the base URL ends in the path of the API, usually /v1."
    return "Check what the server expects."


def _normalized(base_url: str) -> str:
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise ConfigError(f"The base URL {base_url!r} cannot be read: {error}.") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigError(f"The base URL must look like http://localhost:8000/v1, got {base_url!r}.")
    path = url.path.rstrip("/").removesuffix(_PATH) or "/v1"
    return str(url.copy_with(path=path))
