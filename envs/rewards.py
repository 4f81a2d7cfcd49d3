"""Rewards by name: how a finished episode is judged against the reference answer of its task."""

import importlib
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from agentrl.envs.answers import boxed_contents, clean_answer, extract_answer, last_number, reference_number
from agentrl.envs.episode import Episode
from agentrl.envs.unit_tests import unit_tests
from agentrl.errors import ConfigError, DataError
from agentrl.registry import Registry
from agentrl.tasks import Task

RewardFunction: TypeAlias = Callable[[Task, Episode], float | Mapping[str, float]]
"""What judges a finished episode, by a number or by named parts of one.

One of your own is named by its import path, "module:function"."""
Score: TypeAlias = Callable[[str, Any], float]
"""What compares the text of a final turn with a reference answer, or with several of which any will do."""

REWARDS: Registry[Callable[..., RewardFunction]] = Registry("reward")
"""Name to factory. A factory takes the reward's options as keyword arguments."""

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_CLOSED = frozenset({"yes", "no", "noanswer"})


@dataclass(frozen=True, slots=True)
class AnswerReward:
    """A reward that looks at the final turn alone; 0 if there is none."""

    score: Score

    def __call__(self, task: Task, episode: Episode) -> float:
        """Judges an episode."""
        return 0.0 if episode.answer is None else float(self.score(episode.answer, task.answer))

    def check(self, gold: Any) -> None:
        """Checks that a reference answer is one to judge by.

        Raises:
            DataError: It is not.
        """
        self.score("", gold)


def exact_match(text: str, gold: Any) -> bool:
    """Whether the final answer is the reference answer: letter by letter, white space aside (see `clean_answer`)."""
    given = _one_spaced(extract_answer(text))
    return given in [_one_spaced(clean_answer(answer)) for answer in _texts(gold)]


def normalized_match(text: str, gold: Any) -> bool:
    """The exact match of question answering: case, punctuation and articles do not count (see `normalize`).

    Not for numbers: it takes -3.5 for 35.
    """
    given = normalize(extract_answer(text))
    return given in [normalize(answer) for answer in _texts(gold)]


def numeric_match(text: str, gold: Any) -> bool:
    """Whether the last number of the final answer equals the reference number (see `Quantity.equals`).

    Raises:
        DataError: The reference answer is no number.
    """
    given = last_number(extract_answer(text))
    answers = [reference_number(answer) for answer in _alternatives(gold)]
    return given is not None and any(given.equals(answer) for answer in answers)


def boxed_match(text: str, gold: Any) -> bool:
    r"""Whether the last `\boxed{...}` holds the reference answer; without one the answer is wrong.

    A reference that is one number is compared as a number, anything else as text in which white space, `\left`,
    `\right`, `\,` and `\text{}` do not count.
    """
    boxes, answers = boxed_contents(text), list(_texts(gold))
    return bool(boxes) and any(_same_boxed(boxes[-1], answer) for answer in answers)


def token_f1(text: str, gold: Any) -> float:
    """The harmonic mean of precision and recall of the words of the final answer, at best over the reference answers.

    Rajpurkar et al., "SQuAD: 100,000+ Questions for Machine Comprehension of Text" (2016), section 6.1. As in
    HotpotQA, "yes", "no" and "noanswer" count only as the whole answer.
    """
    given = normalize(extract_answer(text))
    return max(_f1(given, normalize(answer)) for answer in _texts(gold))


def normalize(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces.

    >>> normalize("The  Great, Gatsby!")
    'great gatsby'
    """
    letters = text.lower().translate(str.maketrans("", "", string.punctuation))
    return _one_spaced(_ARTICLES.sub(" ", letters))


def make_reward(name: str, options: Mapping[str, Any] | None = None) -> RewardFunction:
    """The reward of that name.

    Args:
        name: A key of `REWARDS`, or "module:function" for a function of (task, episode) that returns a number, or
            named parts of one.
        options: Keyword arguments of the factory, `{"sandbox": "unsafe_subprocess"}` of "unit_tests" for example.

    Raises:
        UnknownNameError: No reward has this name.
        ConfigError: The function cannot be imported, or the options are not those of the reward.
    """
    options = dict(options or {})
    if ":" not in name:
        try:
            return REWARDS[name](**options)
        except TypeError as error:
            raise ConfigError(f"The reward {name!r} refuses its options {options}: {error}.") from error
    if options:
        raise ConfigError(f"The reward {name!r} is a function of (task, episode) and takes no options, got {options}.")
    return _imported(name)


def _answer_reward(name: str, score: Score) -> None:
    REWARDS.add(name, lambda: AnswerReward(score))


_answer_reward("exact_match", exact_match)
_answer_reward("normalized_match", normalized_match)
_answer_reward("numeric", numeric_match)
_answer_reward("boxed", boxed_match)
_answer_reward("token_f1", token_f1)
REWARDS.add("unit_tests", unit_tests)


def _imported(path: str) -> RewardFunction:
    module, _, name = path.partition(":")
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"The reward {path!r} names a module that cannot be imported: {error}.") from error
    function = vars(found).get(name)
    if not callable(function):
        raise ConfigError(f"The reward {path!r} does not exist: the module {module} has no function {name!r}.")
    return function  # type: ignore[no-any-return]


def _alternatives(gold: Any) -> Sequence[Any]:
    """The answers of which any will do.

    Raises:
        DataError: There is none.
    """
    answers = gold if isinstance(gold, list | tuple) else [gold]
    if not answers or None in answers:
        raise DataError("A reference answer is missing.")
    return answers


def _texts(gold: Any) -> list[str]:
    """The same as texts.

    Raises:
        DataError: One is no text or number.
    """
    for answer in _alternatives(gold):
        if not isinstance(answer, str | int | float):
            raise DataError(f"A text or a number was expected as the reference answer, got {answer!r}.")
    return [str(answer) for answer in _alternatives(gold)]


def _one_spaced(text: str) -> str:
    return " ".join(text.split())


def _same_boxed(given: str, gold: str) -> bool:
    number = last_number(gold)
    if number is not None and re.fullmatch(r"[-+\d.,/%$\s]+|-?\\[dt]?frac\s*\{\d+\}\s*\{\d+\}", gold.strip()):
        mine = last_number(given)
        return mine is not None and mine.equals(number)
    return _plain_latex(given) == _plain_latex(gold)


def _plain_latex(text: str) -> str:
    text = re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", clean_answer(text))
    return "".join(re.sub(r"\\left|\\right|\\[,!;: ]", "", text).split())


def _f1(given: str, gold: str) -> float:
    if given in _CLOSED or gold in _CLOSED or not given or not gold:
        return float(given == gold)
    mine, theirs = given.split(), gold.split()
    num_common = (Counter(mine) & Counter(theirs)).total()
    return 2 * num_common / (len(mine) + len(theirs))
