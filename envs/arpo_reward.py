r"""The reward of ARPO (Dong et al., "Agentic Reinforced Policy Optimization", arXiv 2507.19849, section 3.3 and code).

    r = -1                 if the format is bad
    r = score + 0.1        if score > 0 and every required tool was used
    r = score              otherwise, from 0 to 1

How the parts of the released code map to chat messages with tool calls:

* *paired `<think>` tags*: in every turn, thinking that is opened is closed. A turn may begin inside of thinking, as
  some chat templates open it in the prompt.
* *each `<search>` or `<python>` block is followed by its `<result>`*: every call reached a tool. Malformed calls,
  unknown tools and wrong arguments (`ToolStatus.INVALID_CALL`) did not; whether a tool that ran succeeded does not
  matter here.
* *exactly one `<answer>` with a `\boxed{}` in it*: the episode ends with a turn without calls that marks one answer,
  as one `\boxed{...}` or as one `<answer>...</answer>`, with or without a box in it.
* *score*: token F1, in which a number other than the reference number is simply wrong; SQuAD's normalization drops
  signs and decimal points, so the score of a reference that is a number is whether the numbers are equal.
* *tool bonus*: the released code looks for the text `</search>` and `</python>` anywhere, which is had by mentioning
  them. Here calls count that were executed and succeeded.
"""

import re
from collections.abc import Sequence
from typing import Any

from agentrl.chat.tool_calls import THINK_END, THINK_START, strip_tool_calls
from agentrl.envs.answers import boxed_contents, tagged_contents
from agentrl.envs.episode import Episode
from agentrl.envs.rewards import numeric_match, token_f1
from agentrl.tools.core import ToolStatus
from agentrl.trajectory import StopReason

BAD_FORMAT = -1.0
TOOL_BONUS = 0.1

_THINK = re.compile(f"{THINK_START}|{THINK_END}")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def arpo_reward(episode: Episode, gold: Any, tools: Sequence[str]) -> float:
    """The reward of a finished episode (see the module's text).

    Args:
        episode: What happened.
        gold: Reference answer, or a list of which any will do.
        tools: Names of the tools that earn the bonus together.
    """
    if not is_well_formed(episode):
        return BAD_FORMAT
    score = arpo_score(episode.answer or "", gold)
    bonus = score > 0 and all(any(result.ok for result in episode.results(tool)) for tool in tools)
    return score + TOOL_BONUS if bonus else score


def arpo_score(text: str, gold: Any) -> float:
    """Token F1, or equality where the reference answer is a number."""
    if _NUMBER.fullmatch(str(gold)):
        return float(numeric_match(text, gold))
    return token_f1(text, gold)


def is_well_formed(episode: Episode) -> bool:
    """Whether thinking, calls and final answer have the form that the module's text describes."""
    if episode.stop_reason is not StopReason.ANSWERED or episode.answer is None:
        return False
    if any(result.status is ToolStatus.INVALID_CALL for result in episode.results()):
        return False
    turns = [message["content"] for message in episode.messages if message["role"] == "assistant"]
    return all(_thinking_is_paired(turn) for turn in turns) and _marks_one_answer(episode.answer)


def _thinking_is_paired(turn: str) -> bool:
    markers = _THINK.findall(strip_tool_calls(turn))
    if markers and markers[0] == THINK_END:
        markers = markers[1:]
    pairs = zip(markers[::2], markers[1::2], strict=False)
    return len(markers) % 2 == 0 and all(pair == (THINK_START, THINK_END) for pair in pairs)


def _marks_one_answer(text: str) -> bool:
    boxes, tags = boxed_contents(text), tagged_contents(text)
    if text.count("<answer>") + text.count("</answer>") == 0:
        return len(boxes) == 1 and bool(boxes[0])
    one_tag = len(tags) == text.count("<answer>") == text.count("</answer>") == 1
    return one_tag and bool(tags[0]) and len(boxes) <= 1 and boxed_contents(tags[0]) == boxes and all(boxes)
