"""Compiling a cell and reporting what went wrong in it, apart from any process."""

import json

import pytest

from agentrl.sandbox.runner.cells import compile_cell, describe_exception, remember_source


def run(code: str) -> tuple[dict[str, object], object]:
    names: dict[str, object] = {}
    body, last = compile_cell(code, "<cell 1>")
    exec(body, names)
    return names, None if last is None else eval(last, names)


def error_of(code: str, number: int = 1) -> BaseException:
    filename = f"<cell {number}>"
    remember_source(code, filename)
    names: dict[str, object] = {}
    try:
        body, last = compile_cell(code, filename)
        exec(body, names)
        if last is not None:
            eval(last, names)
    except Exception as error:
        return error
    raise AssertionError(f"no error in {code!r}")


@pytest.mark.parametrize(
    ("code", "value"),
    [
        ("1 + 1", 2),
        ("x = 2\nx * 3", 6),
        ("x = 2", None),
        ("", None),
        ("# nothing", None),
        ("'doc'", "doc"),
        ("if True:\n    5", None),  # only a top-level expression has a value
        ("(1,\n 2\n)", (1, 2)),
        ("f = lambda: 7; f()", 7),
        ("5;", 5),
    ],
)
def test_the_last_expression_is_the_value(code: str, value: object) -> None:
    assert run(code)[1] == value


def test_a_future_import_holds_for_the_last_expression() -> None:
    names, value = run("from __future__ import annotations\ndef f(x: undefined): pass\nf.__annotations__")
    assert value == {"x": "undefined"}
    assert "f" in names


def test_the_runners_own_futures_do_not_leak_into_cells() -> None:
    names, _ = run("def f(x: int): pass")
    assert names["f"].__annotations__ == {"x": int}  # type: ignore[attr-defined]


@pytest.mark.parametrize("code", ["x =", "a\0b", "def f(:", "  1\n 2", "(" * 300])
def test_what_does_not_compile_raises(code: str) -> None:
    with pytest.raises((SyntaxError, ValueError, MemoryError)):
        compile_cell(code, "<cell 1>")


def test_the_report_shows_the_cells_lines_and_nobody_elses() -> None:
    text = describe_exception(error_of("import json\ndef read(t):\n    return json.loads(t)\nread('{')"))
    assert text.splitlines()[0] == "Traceback (most recent call last):"
    assert "  File \"<cell 1>\", line 4, in <module>\n    read('{')" in text
    assert '  File "<cell 1>", line 3, in read\n    return json.loads(t)' in text
    assert text.splitlines()[-1].startswith("json.decoder.JSONDecodeError: Expecting property name")
    assert json.__file__ not in text
    assert __file__ not in text


def test_causes_are_reported_without_foreign_frames_too() -> None:
    code = "import json\ntry:\n    json.loads('{')\nexcept ValueError as error:\n    raise KeyError('k') from error"
    text = describe_exception(error_of(code))
    assert "json.loads('{')" in text
    assert "direct cause of the following exception" in text
    assert text.splitlines()[-1] == "KeyError: 'k'"
    assert json.__file__ not in text


def test_a_frame_of_an_earlier_cell_is_shown() -> None:
    names: dict[str, object] = {}
    code = "def divide(a, b):\n    return a / b"
    remember_source(code, "<cell 1>")
    exec(compile_cell(code, "<cell 1>")[0], names)
    with pytest.raises(ZeroDivisionError) as caught:
        eval(compile_cell("divide(1, 0)", "<cell 2>")[1], names)  # type: ignore[arg-type]
    text = describe_exception(caught.value)
    assert text.index('"<cell 2>", line 1') < text.index('"<cell 1>", line 2, in divide\n    return a / b')


def test_a_syntax_error_points_at_the_place_and_has_no_traceback() -> None:
    assert describe_exception(error_of("y = (1 +")) == (
        "  File \"<cell 1>\", line 1\n    y = (1 +\n        ^\nSyntaxError: '(' was never closed\n"
    )


def test_a_syntax_error_raised_by_the_cell_has_a_traceback() -> None:
    text = describe_exception(error_of("compile('x =', 'inner', 'exec')"))
    assert '"<cell 1>", line 1, in <module>' in text
    assert text.splitlines()[-1].startswith("SyntaxError")


def test_endless_recursion_is_shortened() -> None:
    text = describe_exception(error_of("def f(n):\n    return f(n + 1)\nf(0)"))
    assert "Previous line repeated" in text
    assert len(text) < 2000


def test_an_exception_that_cannot_be_printed_is_named() -> None:
    text = describe_exception(error_of("class E(Exception):\n    def __str__(self): raise self\nraise E"))
    assert "E: <exception str() failed>" in text
