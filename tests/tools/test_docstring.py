"""Google docstrings, read the way people write them."""

from agentrl.tools.docstring import Docstring, parse_docstring


def test_every_section_goes_where_it_belongs() -> None:
    text = """Look a word up.

    The dictionary is a small one:
        only nouns.

    Args:
        word: What to look up, in the singular: "mouse",
            never "mice".
        lang (str, optional): Two letters.
        *more: Further words.

    Returns:
        text: Not an argument.

    Raises:
        ToolError: Neither.
    """
    assert parse_docstring(text) == Docstring(
        description="Look a word up.\n\nThe dictionary is a small one:\n    only nouns.",
        arguments={
            "word": 'What to look up, in the singular: "mouse", never "mice".',
            "lang": "Two letters.",
            "more": "Further words.",
        },
    )


def test_a_description_may_begin_on_its_own_line() -> None:
    text = """Add.

        Args:
            a:
                The first number.

                It may be negative.
            b: The second one.
        """
    assert parse_docstring(text).arguments == {"a": "The first number. It may be negative.", "b": "The second one."}


def test_arguments_is_another_name_of_the_section() -> None:
    assert parse_docstring("Add.\n\nArguments:\n    a: One.").arguments == {"a": "One."}


def test_without_sections_all_of_it_is_the_description() -> None:
    assert parse_docstring("Add: a to b.") == Docstring("Add: a to b.")
    assert parse_docstring(None) == parse_docstring("") == Docstring()


def test_a_header_counts_only_at_the_left_edge() -> None:
    text = "Show.\n\n    Args:\n        x: in an example.\n\nArgs:\n    y: Real."
    assert parse_docstring(text).arguments == {"y": "Real."}
