"""From messages to token ids, token-exactly: what the model sampled is never rendered or tokenised again.

A conversation is tokenised once as a prompt. After that only *new* text is: the glue of the chat template and the tool
results, as a suffix that is read off a dummy conversation (algorithms reference, section 10).
"""

import json
from collections.abc import Sequence
from itertools import groupby
from typing import Any, Protocol

from agentrl import messages as msg
from agentrl.chat.tool_calls import TOOL_CALL_END, format_tool_call
from agentrl.errors import ChatTemplateError
from agentrl.messages import JsonDict, Message, ToolCall

# Templates that know thinking render a turn with a thought as it was sampled, and put an empty one into a turn without.
_TURN = "<think>\ndummy thought\n</think>\n\ndummy turn of the assistant"
_REMEDY = "Set model.chat_template to a Jinja file that keeps earlier turns verbatim."
_PROBE_TOOL: JsonDict = {
    "type": "function",
    "function": {
        "name": "probe_tool_9731",
        "description": "Probe.",
        "parameters": {"type": "object", "properties": {}, "required": []},
    },
}
_FALLBACK_PROMPT = """Use the tools below instead of working things out in your head.
<tools>
{schemas}
</tools>
To call a tool, write its name and arguments as JSON between markers, like this, and nothing after it:
{example}
The result is then given to you between <tool_response> markers. When you know the answer, write it without a call."""


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that this module uses."""

    chat_template: Any
    eos_token_id: int | None

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any:
        """Renders a conversation."""
        ...

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Text to ids."""
        ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> Any:
        """Ids to text."""
        ...

    def get_added_vocab(self) -> dict[str, int]:
        """Tokens with a meaning of their own, control tokens among them."""
        ...


class ChatFormat:
    """A tokenizer's chat template, checked once and then used append-only.

    Args:
        tokenizer: A Hugging Face tokenizer with a chat template.
        stop_at_tool_call: End a turn at the first `</tool_call>`, so that the model cannot invent the result. Without
            it a turn ends at the end-of-turn token only, and may hold several calls.

    Raises:
        ChatTemplateError: No template, no end-of-turn token, or a template that is not append-only.
    """

    def __init__(self, tokenizer: Tokenizer, *, stop_at_tool_call: bool = True) -> None:
        if not tokenizer.chat_template:
            raise ChatTemplateError(
                "The tokenizer has no chat template. Use an instruction-tuned model, or set model.chat_template to a "
                "Jinja file."
            )
        self.tokenizer = tokenizer
        self.stop_strings = (TOOL_CALL_END,) if stop_at_tool_call else ()
        self._control_tokens = sorted(tokenizer.get_added_vocab(), key=len, reverse=True)
        self._opening = [msg.user("dummy request")]
        self._takes_system = self._renders([msg.system("instruction 2216"), *self._opening], "instruction 2216")
        self.native_tools = self._takes_tools()
        self._after_turn = self._tail_of_turn()
        self.end_of_turn_id = self._find_end_of_turn()
        eos = tokenizer.eos_token_id
        self.end_ids = frozenset({self.end_of_turn_id} if eos is None else {self.end_of_turn_id, eos})
        """Tokens that end a turn when they are sampled."""
        self._check_append_only()

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[JsonDict]) -> list[int]:
        """The opening of an episode, up to where the assistant begins to speak."""
        text = self._render(self._defused(messages), tools, generation_prompt=True)
        return self._encode(text)

    def suffix_ids(self, last_token: int, new: Sequence[Message]) -> list[int]:
        """What stands between a sampled turn and the next one: end of turn, the new messages, the assistant's header.

        Args:
            last_token: The last token that was sampled; an end of turn that is there already is not repeated.
            new: What the environment said.
        """
        base = self._render([*self._opening, msg.assistant(_TURN)], ())
        full = self._render([*self._opening, msg.assistant(_TURN), *self._defused(new)], (), generation_prompt=True)
        if not full.startswith(base):
            raise self._refusal(base, full)
        glue = self._after_turn
        if last_token == self.end_of_turn_id:
            glue = glue.removeprefix(self._text(self.end_of_turn_id))
        return self._encode(glue + full[len(base) :])

    def turn_text(self, token_ids: Sequence[int]) -> str:
        """The text of a sampled turn as the environment gets it: without the end-of-turn token."""
        ids = list(token_ids)
        if ids and ids[-1] in self.end_ids:
            ids.pop()
        return str(self.tokenizer.decode(ids, skip_special_tokens=False))

    def turn_ids(self, text: str) -> list[int]:
        """The tokens a model samples to say `text` and end its turn: for demonstrations, never for sampled turns."""
        return [*self._encode(text), self.end_of_turn_id]

    # Checks, once per tokenizer --------------------------------------------------------------------------------------

    def _renders(self, messages: Sequence[Message], text: str, tools: Sequence[JsonDict] = ()) -> bool:
        """Whether the template takes these messages and shows a text of them."""
        try:
            return text in self._apply(messages, tools, generation_prompt=True)
        except ChatTemplateError:
            return False

    def _takes_tools(self) -> bool:
        """Whether the template shows both tool schemas and tool results; if not, the fallback prompt does."""
        turn = [*self._opening, msg.assistant(_TURN)]
        answered = [*turn, msg.tool_result("probe_tool_9731", "result 5518")]
        return (
            self._renders(self._opening, "probe_tool_9731", [_PROBE_TOOL])
            and self._renders(answered, "result 5518")
            and self._apply(answered, []).startswith(self._apply(turn, []))
        )

    def _tail_of_turn(self) -> str:
        _, found, tail = self._render([*self._opening, msg.assistant(_TURN)], ()).rpartition(_TURN)
        if not found:
            raise ChatTemplateError(
                f"The chat template changes what the assistant said, its thoughts for example. {_REMEDY}"
            )
        return tail

    def _find_end_of_turn(self) -> int:
        """The control token that closes an assistant turn: the first one the template writes after it."""
        for token in self._control_tokens:
            if self._after_turn.startswith(token):
                return self.tokenizer.get_added_vocab()[token]
        raise ChatTemplateError(
            f"The chat template closes an assistant turn with {self._after_turn[:40]!r}, which is no control token of "
            "the tokenizer, so a model cannot be seen to end its turn. Use a template with an end-of-turn token."
        )

    def _check_append_only(self) -> None:
        """A turn and its thoughts must be rendered alike whatever follows."""
        turns = [*self._opening, msg.assistant(_TURN)]
        for text in ("first result", "second result"):
            shorter = self._render(turns, ())
            turns.append(msg.tool_result("tool", text))
            longer = self._render(turns, ())
            if not longer.startswith(shorter):
                raise self._refusal(shorter, longer)
            turns.append(msg.assistant(_TURN))

    def _refusal(self, shorter: str, longer: str) -> ChatTemplateError:
        at = next((i for i, (a, b) in enumerate(zip(shorter, longer, strict=False)) if a != b), len(longer))
        return ChatTemplateError(
            "The chat template is not append-only: adding a message changed earlier text, from "
            f"{shorter[at : at + 40]!r} to {longer[at : at + 40]!r}. Training would see tokens nobody sampled. "
            f"{_REMEDY}"
        )

    # Rendering -------------------------------------------------------------------------------------------------------

    def _render(
        self, messages: Sequence[Message], tools: Sequence[JsonDict], *, generation_prompt: bool = False
    ) -> str:
        if not self.native_tools:
            messages, tools = without_tools(messages, tools), ()
        if not self._takes_system:
            messages = _without_system(messages)
        return self._apply(messages, tools, generation_prompt=generation_prompt)

    def _apply(self, messages: Sequence[Message], tools: Sequence[JsonDict], *, generation_prompt: bool = False) -> str:
        try:
            rendered = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tools=[dict(tool) for tool in tools] or None,
                tokenize=False,
                add_generation_prompt=generation_prompt,
            )
        except Exception as error:  # a template is a program: it may raise anything
            roles = ", ".join(message["role"] for message in messages)
            raise ChatTemplateError(
                f"The chat template fails on messages of the roles {roles}: {error}. Set model.chat_template to a "
                "Jinja file that takes them."
            ) from error
        return str(rendered)

    def _defused(self, messages: Sequence[Message]) -> list[Message]:
        """Breaks control tokens that stand in outside text, which could otherwise speak as another role."""
        return [{**message, "content": self._defuse(message["content"])} for message in messages]

    def _defuse(self, text: str) -> str:
        for token in self._control_tokens:
            if token in text and token.strip():
                text = text.replace(token, f"{token[0]} {token[1:]}")
        return text

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _text(self, token: int) -> str:
        return str(self.tokenizer.decode([token], skip_special_tokens=False))


def without_tools(messages: Sequence[Message], tools: Sequence[JsonDict]) -> list[Message]:
    """The same conversation for a template or server that knows no tools: schemas in the system text, results as turns.

    Args:
        messages: A conversation, or the messages that are new in one.
        tools: Schemas to describe; none where they have been described before.

    Returns:
        Messages of the roles system, user and assistant only.
    """
    adapted: list[Message] = []
    for are_results, run in groupby(messages, key=lambda message: message["role"] == "tool"):
        if are_results:  # as one turn: many templates and servers want user and assistant to alternate
            results = (f"<tool_response>\n{message['content']}\n</tool_response>" for message in run)
            adapted.append(msg.user("\n".join(results)))
        else:
            adapted.extend(run)
    if tools:
        schemas = "\n".join(json.dumps(tool) for tool in tools)
        prompt = _FALLBACK_PROMPT.format(schemas=schemas, example=_example_call(tools[0]["function"]))
        if adapted and adapted[0]["role"] == "system":
            adapted[0] = msg.system(f"{adapted[0]['content']}\n\n{prompt}")
        else:
            adapted.insert(0, msg.system(prompt))
    return adapted


def _without_system(messages: Sequence[Message]) -> list[Message]:
    """The same conversation for a template without a system role: the request begins with the instructions."""
    if not messages or messages[0]["role"] != "system":
        return list(messages)
    instructions, *rest = messages
    if rest and rest[0]["role"] == "user":
        return [msg.user(f"{instructions['content']}\n\n{rest[0]['content']}"), *rest[1:]]
    return [msg.user(instructions["content"]), *rest]


def _example_call(function: JsonDict) -> str:
    """A call of the first tool: small models copy a form more readily than they derive it from a schema."""
    arguments = {name: "..." for name in function["parameters"].get("properties", {})}
    return format_tool_call(ToolCall(function["name"], arguments))
