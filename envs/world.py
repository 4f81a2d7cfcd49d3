"""A made-up world of people, towns and companies, and the collection of documents that tells about it.

Every fact stands in exactly one document, that of the thing it is about: the document of a company names its founder,
that of the founder does not name the company. So a question over several facts takes several searches.
"""

import enum
import functools
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from agentrl.envs.names import NameSource
from agentrl.seeding import generator
from agentrl.tools.corpus import Document
from agentrl.tools.search import SearchTool, local_search


class Kind(enum.StrEnum):
    """What an entity is."""

    PERSON = "person"
    TOWN = "town"
    COMPANY = "company"
    SCHOOL = "school"
    BOOK = "book"
    RIVER = "river"


class Link(NamedTuple):
    """A fact that leads to another entity, and how a question speaks of it.

    The name that it is about comes last in every phrase, so that phrases nest without becoming unclear.
    """

    name: str
    target: Kind
    phrase: str


class Measure(NamedTuple):
    """A fact that is a number from `low` to `high`, and how a question speaks of it."""

    name: str
    low: int
    high: int
    phrase: str


NUM_ENTITIES = {
    Kind.PERSON: 1200,
    Kind.TOWN: 400,
    Kind.COMPANY: 400,
    Kind.SCHOOL: 200,
    Kind.BOOK: 600,
    Kind.RIVER: 200,
}

LINKS: Mapping[Kind, Sequence[Link]] = {
    Kind.PERSON: (
        Link("hometown", Kind.TOWN, "the birthplace of {}"),
        Link("school", Kind.SCHOOL, "the school attended by {}"),
        Link("teacher", Kind.PERSON, "the teacher of {}"),
        Link("employer", Kind.COMPANY, "the employer of {}"),
    ),
    Kind.TOWN: (
        Link("river", Kind.RIVER, "the river that runs through {}"),
        Link("mayor", Kind.PERSON, "the mayor of {}"),
    ),
    Kind.COMPANY: (
        Link("home", Kind.TOWN, "the home town of {}"),
        Link("founder", Kind.PERSON, "the founder of {}"),
    ),
    Kind.SCHOOL: (
        Link("home", Kind.TOWN, "the home town of {}"),
        Link("founder", Kind.PERSON, "the founder of {}"),
    ),
    Kind.BOOK: (
        Link("author", Kind.PERSON, "the author of {}"),
        Link("publisher", Kind.COMPANY, "the publisher of {}"),
    ),
    Kind.RIVER: (Link("source", Kind.TOWN, "the town near the source of {}"),),
}

MEASURES: Mapping[Kind, Sequence[Measure]] = {
    Kind.PERSON: (Measure("birth_year", 1750, 1990, "the birth year of {}"),),
    Kind.TOWN: (
        Measure("population", 2_000, 900_000, "the population of {}"),
        Measure("altitude", 101, 2_900, "the altitude in meters of {}"),
    ),
    Kind.COMPANY: (
        Measure("founding_year", 1750, 2015, "the founding year of {}"),
        Measure("employees", 120, 48_000, "the number of employees of {}"),
    ),
    Kind.SCHOOL: (
        Measure("founding_year", 1500, 1990, "the founding year of {}"),
        Measure("students", 110, 9_500, "the number of students at {}"),
    ),
    Kind.BOOK: (
        Measure("year", 1800, 2020, "the year of publication of {}"),
        Measure("pages", 101, 1_400, "the number of pages of {}"),
    ),
    Kind.RIVER: (Measure("length", 101, 1_800, "the length in kilometers of {}"),),
}

QUANTITIES = frozenset({"population", "altitude", "employees", "students", "pages", "length"})
"""The measures one can calculate with; all have at least three digits."""

_TEXTS: Mapping[Kind, Sequence[str]] = {
    Kind.PERSON: (
        "{name} is a {trade}, born in {hometown} in {birth_year}. {name} went to {school} and had {teacher} as a "
        "teacher. Today {name} works for {employer}.",
        "Born in {birth_year} in {hometown}, {name} became a {trade}. At {school}, {teacher} was the teacher of "
        "{name}. Since then {name} has worked for {employer}.",
    ),
    Kind.TOWN: (
        "{name} is a town on the {river}, known for its {goods}. {name} has a population of {population} and lies at "
        "an altitude of {altitude} meters. The mayor of {name} is {mayor}.",
        "The {river} flows through the town of {name}, at an altitude of {altitude} meters. {population} people live "
        "in {name}, where {goods} are made. {mayor} is the mayor of {name}.",
    ),
    Kind.COMPANY: (
        "{name} is a company that makes {goods}. It was founded by {founder} in {founding_year}. {name} has its seat "
        "in {home} and has {employees} employees.",
        "In {founding_year}, {founder} founded {name}, a maker of {goods}. {name} employs {employees} people; its seat "
        "is in {home}.",
    ),
    Kind.SCHOOL: (
        "{name} is a school in {home}. {founder} founded it in {founding_year}. {name} has {students} students.",
        "The school {name} stands in {home} and was founded by {founder} in {founding_year}. {students} students go "
        "to {name}.",
    ),
    Kind.BOOK: (
        "{name} is a book by {author} about {goods}. It appeared in {year}, has {pages} pages, and was published by "
        "{publisher}.",
        "{name} was written by {author} and published by {publisher} in {year}. The book tells of {goods} on {pages} "
        "pages.",
    ),
    Kind.RIVER: (
        "The {name} is a river that rises near {source}. It is {length} kilometers long.",
        "The {name} rises near the town of {source} and flows for {length} kilometers into the sea.",
    ),
}

_TRADES = ("painter", "surgeon", "judge", "baker", "carpenter", "botanist", "pilot", "singer", "printer", "surveyor")
_GOODS = ("glass beads", "copper bells", "wool carpets", "clay pipes", "sailing boats", "brass clocks", "silk hats")
_ADJECTIVES = ("Silent", "Amber", "Hollow", "Distant", "Crooked", "Frozen", "Scarlet", "Broken")
_NOUNS = ("Lantern", "Garden", "Bridge", "Mirror", "Harvest", "Orchard", "Compass", "Winter")


@dataclass(frozen=True, slots=True)
class Entity:
    """A person, a town, a company ...

    Example:
        Entity(number=17, kind=Kind.RIVER, name="River Talvern", links={"source": 402}, measures={"length": 318})
    """

    number: int
    kind: Kind
    name: str
    links: dict[str, int] = field(default_factory=dict)
    """Name of the link to number of the entity."""
    measures: dict[str, int] = field(default_factory=dict)

    @property
    def answers(self) -> list[str]:
        """What counts as its name."""
        return [self.name, self.name.removeprefix("River ")] if self.kind is Kind.RIVER else [self.name]


class World:
    """Entities and facts drawn from a seed; never changes.

    Args:
        seed: Names the world.
        split: "train" and "test" are two worlds, so that nothing learned of one helps in the other.
    """

    def __init__(self, seed: int, split: str) -> None:
        rng = generator(seed, "world", split)
        self.entities: list[Entity] = []
        self._numbers: dict[Kind, range] = {}
        names = _Names(rng)
        for kind, count in NUM_ENTITIES.items():
            first = len(self.entities)
            self._numbers[kind] = range(first, first + count)
            self.entities += [Entity(number, kind, names.draw(kind)) for number in self._numbers[kind]]
        self.mentioned_by: list[list[int]] = [[] for _ in self.entities]
        """Of each entity, the entities whose documents name it."""
        for entity in self.entities:
            self._draw_facts(entity, rng)
        self._texts = [self._write(entity, rng) for entity in self.entities]

    @property
    def documents(self) -> list[Document]:
        """One document for each entity."""
        return [Document(str(e.number), e.name, text) for e, text in zip(self.entities, self._texts, strict=True)]

    def _draw_facts(self, entity: Entity, rng: np.random.Generator) -> None:
        for link in LINKS[entity.kind]:
            numbers = self._numbers[link.target]
            target = entity.number
            while target == entity.number or target in entity.links.values():
                target = int(rng.integers(numbers.start, numbers.stop))
            entity.links[link.name] = target
            self.mentioned_by[target].append(entity.number)
        for measure in MEASURES[entity.kind]:
            # Uniform in the logarithm, so that towns and companies are of all sizes.
            value = float(np.exp(rng.uniform(np.log(measure.low), np.log(measure.high))))
            entity.measures[measure.name] = round(value)

    def _write(self, entity: Entity, rng: np.random.Generator) -> str:
        variants = _TEXTS[entity.kind]
        return variants[int(rng.integers(len(variants)))].format(
            name=entity.name,
            trade=_TRADES[int(rng.integers(len(_TRADES)))],
            goods=_GOODS[int(rng.integers(len(_GOODS)))],
            **{name: self.entities[number].name for name, number in entity.links.items()},
            **{name: str(value) for name, value in entity.measures.items()},
        )


class _Names:
    """Names of entities; all but those of people hold a word of their own."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._source = NameSource(rng)
        self._rng = rng
        self._first = [self._source.word() for _ in range(80)]
        self._last = [self._source.word() for _ in range(400)]

    def draw(self, kind: Kind) -> str:
        word = self._source.word
        match kind:
            case Kind.PERSON:
                return self._source.combined(self._first, self._last)
            case Kind.TOWN:
                return word(("by", "wick", "holt", "ford", "mouth", "stad"))
            case Kind.COMPANY:
                return f"{word()} {self._one_of(('Works', 'Brothers', 'Trading', 'Company'))}"
            case Kind.SCHOOL:
                return f"{word()} {self._one_of(('Academy', 'College', 'Institute'))}"
            case Kind.BOOK:
                return f"The {self._one_of(_ADJECTIVES)} {self._one_of(_NOUNS)} of {word()}"
            case Kind.RIVER:
                return f"River {word()}"

    def _one_of(self, options: Sequence[str]) -> str:
        return options[int(self._rng.integers(len(options)))]


_lock = threading.Lock()


def world(seed: int, split: str) -> World:
    """The world of a seed and split, built once per process."""
    with _lock:
        return _build_world(seed, split)


def search_in_world(seed: int, split: str) -> SearchTool:
    """The search tool over a world's documents, built once per process and shared by all episodes."""
    with _lock:
        return _build_search(seed, split)


@functools.lru_cache(maxsize=8)
def _build_world(seed: int, split: str) -> World:
    return World(seed, split)


@functools.lru_cache(maxsize=8)
def _build_search(seed: int, split: str) -> SearchTool:
    return local_search(_build_world(seed, split).documents)
