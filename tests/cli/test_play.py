"""A person plays through a pipe: moves, help, the end, and the oracle."""

import re
from typing import Any

import pytest

from agentrl.chat.tool_calls import parse_tool_calls
from agentrl.cli.play_input import Hint, Turn, help_lines, read_move, usage
from agentrl.messages import JsonDict, ToolCall


def schema(name: str, required: list[str], **properties: str) -> JsonDict:
    parameters = {
        "type": "object",
        "properties": {key: {"type": kind, "description": f"The {key}."} for key, kind in properties.items()},
        "required": required,
    }
    return {"type": "function", "function": {"name": name, "description": "Does it.", "parameters": parameters}}


TOOLS = [
    schema("calculator", ["expression"], expression="string"),
    schema("search", ["query"], query="string", top_k="integer"),
    schema("move", ["x", "y"], x="integer", y="number"),
    schema("look", [], far="boolean"),
    schema("wait", []),
]


def move(line: str, *more: str) -> Turn | Hint:
    following = iter(more)
    return read_move(line, TOOLS, lambda: next(following, None))


@pytest.mark.parametrize(
    ("line", "call"),
    [
        ("calculator 12*34", ToolCall("calculator", {"expression": "12*34"})),
        ("  calculator   3 + 4 ", ToolCall("calculator", {"expression": "3 + 4"})),
        ("calculator expression=3", ToolCall("calculator", {"expression": "3"})),
        ("search who's the mayor of Ulm", ToolCall("search", {"query": "who's the mayor of Ulm"})),
        ('search query="deep sea" top_k=3', ToolCall("search", {"query": "deep sea", "top_k": 3})),
        ("search deep sea top_k=3", ToolCall("search", {"query": "deep sea", "top_k": 3})),
        ("search is top_k=3 or other=4 right", ToolCall("search", {"query": "is top_k=3 or other=4 right"})),
        ('search {"query": "a", "top_k": 2}', ToolCall("search", {"query": "a", "top_k": 2})),
        ("search a=b", ToolCall("search", {"query": "a=b"})),
        ("move 3 0.5", ToolCall("move", {"x": 3, "y": 0.5})),
        ("move y=1 x=2", ToolCall("move", {"y": 1, "x": 2})),
        ("move one 2", ToolCall("move", {"x": "one", "y": 2})),  # the tool says what it expects
        ("look", ToolCall("look", {})),
        ("look true", ToolCall("look", {"far": True})),
        ("wait", ToolCall("wait", {})),
        ('{"name": "move", "arguments": {"x": 1}}', ToolCall("move", {"x": 1})),
        ('<tool_call>{"name": "wait"}</tool_call>', ToolCall("wait", {})),
        ("calculator </tool_call>", ToolCall("calculator", {"expression": "</tool_call>"})),
    ],
)
def test_a_call_as_people_type_it(line: str, call: ToolCall) -> None:
    turn = move(line)
    assert isinstance(turn, Turn)
    assert parse_tool_calls(turn.text) == [call]


def test_an_argument_of_several_lines() -> None:
    turn = move("calculator", "a = 1", "", "  a + 1", ".", "not read")
    assert isinstance(turn, Turn)
    assert parse_tool_calls(turn.text) == [ToolCall("calculator", {"expression": "a = 1\n\n  a + 1"})]
    assert move("calculator", "1") == move("calculator 1")  # the input ends without a dot


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("408", "408"),
        ("The answer is 408.", "The answer is 408."),
        ("= calculator 3", "calculator 3"),
        ('= {"a": 1}', '{"a": 1}'),
        ("=", ""),
        ("calculators", "calculators"),  # one word is no failed call
    ],
)
def test_an_answer(line: str, answer: str) -> None:
    assert move(line) == Turn(answer)


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("calculater 3", "Did you mean 'calculator'"),
        ("move", r"Usage: move X Y"),
        ("move 1 2 3", "Usage: move X Y"),
        ("wait a minute", "Usage: wait"),
        ('{"name": "move"', "Not valid JSON.*type: = "),
        ("", "calculator EXPRESSION"),
        ("!", r"search QUERY \[top_k=...\]"),
    ],
)
def test_what_cannot_be_played_gets_a_hint(line: str, hint: str) -> None:
    shown = move(line)
    assert isinstance(shown, Hint)
    assert re.search(hint, shown.text)


def test_help_tells_every_parameter() -> None:
    lines = list(help_lines(TOOLS))
    assert "    top_k (integer, optional): The top_k." in lines
    assert usage(TOOLS[3]["function"]) == "look [far=...]"
    assert len(list(help_lines([]))) == 2  # how to answer, and how to stop


def test_an_answer_that_is_json_where_there_is_no_tool() -> None:
    assert read_move('{"a": 1}', [], lambda: None) == Turn('{"a": 1}')


# The command


def test_a_person_solves_a_task_through_a_pipe(agentrl: Any) -> None:
    result = agentrl(
        "play", "Arithmetic-v0", "--task", 3, stdin="!\ncalculator 411 + 9776\ncalculater 1\nIt is 10187.\n"
    )
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == "task 3 of 1000 in the test split, at most 4 turns"
    assert lines[1].startswith("[user] There are 411 books in one bag and 9776")
    assert "Tools: calculator EXPRESSION" in lines
    assert "[calculator] 10187" in lines
    assert any(line.startswith("There is no tool 'calculater'.") for line in lines)
    assert lines[-1] == "right, reward 1"


def test_a_wrong_answer_is_corrected(agentrl: Any) -> None:
    result = agentrl("play", "Arithmetic-v0", "--task", 3, stdin="5\n")
    assert result.stdout.endswith("wrong, reward 0\nThe answer is 10187\n")


def test_the_end_of_the_input_stops(agentrl: Any) -> None:
    result = agentrl("play", "Arithmetic-v0", "--task", 3, stdin="calculator 1\n")
    assert result.stdout.endswith("[calculator] 1\nStopped before the end: no reward.\n")


def test_the_turn_limit_ends_the_episode(agentrl: Any) -> None:
    result = agentrl("play", "parity_env:Parity-v0", "--task", 0, stdin="shout a\n" * 5)
    assert result.stdout.count("[shout] A") == 3
    assert "(max_turns)" in result.stdout


@pytest.mark.parametrize("level", [1, 3, 5])
def test_the_oracle_plays(agentrl: Any, level: int) -> None:
    result = agentrl("play", "Arithmetic-v0", "--oracle", "--env-arg", f"level={level}", "--split", "train")
    assert "of 20000 in the train split" in result.stdout
    assert '"name": "calculator"' in result.stdout
    assert result.stdout.endswith("right, reward 1\n")


def test_control_characters_do_not_reach_the_terminal(agentrl: Any) -> None:
    result = agentrl("play", "parity_env:Parity-v0", "--task", 0, stdin="shout \x1b[2J\nok\n")
    assert "\x1b" not in result.stdout
    assert "[shout] \\x1b[2J" in result.stdout


def test_an_environment_without_tools_or_oracle(agentrl: Any) -> None:
    result = agentrl("play", "plain_env:Echo-v0", "--task", 5, stdin="stop\n")
    assert result.stdout.splitlines() == [
        "seed 5",
        "[user] say 5",
        "[assistant] stop",
        "[user] you said stop",
        "right, reward 1 (terminated)",
    ]
    result = agentrl("play", "plain_env:Echo-v0", "--oracle")
    assert (result.exit_code, result.stderr) == (
        2,
        "error: Echo has no oracle: only environments derived from agentrl.ToolEnv do.\n",
    )


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["Arithmetik-v0"], "error: Unknown environment 'Arithmetik-v0'. Did you mean 'agentrl/Arithmetic-v0'?"),
        (["Arithmetic-v0", "--task", "1000"], "error: Task 1000 does not exist: the test split has 1000 tasks."),
        (["Arithmetic-v0", "--split", "dev"], "error: Unknown split 'dev'. Known: test, train."),
        (["Arithmetic-v0", "--env-arg", "level"], "error: --env-arg looks like key=value, got 'level'."),
        (["no_module:X-v0"], "error: Environment 'no_module:X-v0' names a module that cannot be imported"),
    ],
)
def test_a_mistake_is_one_line(agentrl: Any, arguments: list[str], line: str) -> None:
    result = agentrl("play", *arguments, stdin="5\n")
    assert result.exit_code == 2
    assert result.stderr.startswith(line)
    assert result.stderr.count("\n") == 1
