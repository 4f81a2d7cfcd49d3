"""A trajectory tree as text for people: branches indented, sampled and given text told apart, entropies and rewards.

[1] assistant, turn 0: 9 sampled, entropy mean 0.31, max 1.20 at "412"
> Let me see.<tool_call>...           sampled by the policy; tokens it was unsure of are colored
[2] environment, turn 0: 6 given
| <tool_response>408</tool_response>  given to it: prompt, tool results, forced endings
= success, reward 1.00, answered, 2 turns, calculator 1
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import TypeAlias

from rich.text import Text

from agentrl.trajectory import Leaf, Segment, Tree

Decode: TypeAlias = Callable[[Sequence[int]], str]

GIVEN, SAMPLED, UNSURE, VERY_UNSURE = "dim", "bold", "bold yellow", "bold red"
UNSURE_NATS, VERY_UNSURE_NATS = 0.5, 1.5
"""Entropy from which a sampled token is colored; ln 2 = 0.69 is a coin toss between two tokens."""


def tree_lines(tree: Tree, decode: Decode) -> Iterator[Text]:
    """The whole tree, line by line.

    Args:
        tree: The episodes of one task.
        decode: Token ids to text, special tokens included.
    """
    children: dict[int | None, list[Segment]] = {}
    for segment in tree.segments:
        children.setdefault(segment.parent, []).append(segment)
    ends: dict[int, list[Leaf]] = {}
    for leaf in tree.leaves:
        ends.setdefault(leaf.segment, []).append(leaf)

    stack = [(root, 0, "") for root in reversed(children.get(None, []))]
    while stack:  # not recursive: an episode may have more turns than Python has stack
        segment, depth, branch = stack.pop()
        lines = [Text(branch, "cyan")] if branch else []
        lines += [*_segment_lines(segment, decode), *(_leaf_line(leaf) for leaf in ends.get(segment.id, []))]
        yield from (_indented(line, depth) for line in lines)
        following = children.get(segment.id, [])
        if len(following) == 1:
            stack.append((following[0], depth, ""))
        else:
            kind = "sample" if segment.origin == "prompt" else f"branch after [{segment.id}],"
            labels = [f"{kind} {number} of {len(following)}" for number in range(1, len(following) + 1)]
            stack += [(child, depth + 1, label) for child, label in zip(following[::-1], labels[::-1], strict=True)]


def token_pieces(token_ids: Sequence[int], decode: Decode) -> list[str]:
    """The text that each token adds, in linear time; a character made of several tokens belongs to the last of them.

    Every token is decoded together with the piece before it, because tokenizers treat the start of a text specially.
    """
    pieces = []
    context = done = 0
    for end in range(1, len(token_ids) + 1):
        before, after = decode(token_ids[context:done]), decode(token_ids[context:end])
        if after.endswith("\N{REPLACEMENT CHARACTER}") and end < len(token_ids):
            pieces.append("")
        else:
            pieces.append(after[len(before) :])
            context, done = done, end
    return pieces


def _segment_lines(segment: Segment, decode: Decode) -> Iterator[Text]:
    yield Text(_heading(segment, decode), "cyan")
    pieces = token_pieces(segment.token_ids, decode) if any(segment.action_mask) else []
    position = 0
    for sampled, run in groupby(segment.action_mask):
        length = len(list(run))
        span = range(position, position + length)
        if sampled:
            text = Text.assemble(*((printable(pieces[i]), _style(segment.entropies[i])) for i in span))
        else:
            text = Text(printable(decode(segment.token_ids[span.start : span.stop])), GIVEN)
        for line in text.split("\n", allow_blank=True):
            yield Text.assemble(("> " if sampled else "| ", "cyan"), line)
        position += length


def _heading(segment: Segment, decode: Decode) -> str:
    sampled = [i for i, mask in enumerate(segment.action_mask) if mask]
    name = segment.origin if segment.origin == "prompt" else f"{segment.origin}, turn {segment.turn}"
    given = len(segment.token_ids) - len(sampled)
    counts = ", ".join(f"{n} {what}" for n, what in ((len(sampled), "sampled"), (given, "given")) if n)
    heading = f"[{segment.id}] {name}: {counts or 'empty'}"
    if sampled:
        peak = max(sampled, key=lambda i: segment.entropies[i])
        mean = sum(segment.entropies[i] for i in sampled) / len(sampled)
        token = printable(decode([segment.token_ids[peak]])).replace("\n", "\\n")
        heading += f', entropy mean {mean:.2f}, max {segment.entropies[peak]:.2f} at "{token}"'
    return heading


def _leaf_line(leaf: Leaf) -> Text:
    name = f", episode {leaf.episode}" if leaf.episode else ""
    if not leaf.valid:
        return Text(f"= invalid, not counted: {printable(leaf.error or 'unknown failure')}{name}", "red")
    tools = ", ".join(
        f"{name} {count}" + (f" ({leaf.tool_errors[name]} failed)" if leaf.tool_errors.get(name) else "")
        for name, count in leaf.tool_calls.items()
    )
    parts = [
        "success" if leaf.success else "failure",
        f"reward {leaf.reward:.2f}",
        str(leaf.stop_reason),
        f"{leaf.num_turns} turn{'' if leaf.num_turns == 1 else 's'}",
        tools or "no tool call",
    ]
    return Text(f"= {', '.join(parts)}{name}", "bold green" if leaf.success else "bold magenta")


def _style(entropy: float) -> str:
    return VERY_UNSURE if entropy >= VERY_UNSURE_NATS else UNSURE if entropy >= UNSURE_NATS else SAMPLED


def _indented(line: Text, depth: int) -> Text:
    return Text.assemble("    " * depth, line)


def printable(text: str) -> str:
    """Without control characters, with which a model or tool could steer the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
