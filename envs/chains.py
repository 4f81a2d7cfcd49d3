"""Questions that lead from one entity of a made-up world to the next, each step by a fact of its own document."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from agentrl.envs.world import LINKS, MEASURES, Entity, Kind, Link, Measure, World
from agentrl.errors import ConfigError

_MAX_DRAWS = 1000


@dataclass(frozen=True, slots=True)
class Chain:
    """A path of facts and the words for where it leads.

    Example:
        Chain(phrase="the population of the birthplace of Anna Ostrin", path=("Anna Ostrin", "Velby"),
              fact="population", kind=None, answers=("31204",))
    """

    phrase: str
    path: tuple[str, ...]
    """Titles of the documents to read, in this order; the question names the first only."""
    fact: str
    """Name of the last fact."""
    kind: Kind | None
    """What it leads to; None for a number."""
    answers: tuple[str, ...]
    """Equally right names of it."""


def draw_chain(world: World, rng: np.random.Generator, hops: int, *, last: Collection[str] | None = None) -> Chain:
    """A chain of as many facts as `hops`, that cannot be cut short.

    No document that names an entity on the way, except the last one's own, holds the answer. So whoever searches for
    anything but the last entity does not find it, and who that is has to be found out first.

    Args:
        world: Where the facts are from.
        rng: Random stream.
        hops: Number of documents to read, at least 1.
        last: Names of the facts of which one is to be the last; None for any.

    Raises:
        ConfigError: There is no such chain, as far as one can see.
    """
    for _ in range(_MAX_DRAWS):
        chain = _walk(world, rng, hops, last)
        if chain is not None:
            return chain
    raise ConfigError(f"No chain of {hops} facts in {_MAX_DRAWS} draws: the world is too small.")


def _walk(world: World, rng: np.random.Generator, hops: int, last: Collection[str] | None) -> Chain | None:
    """One random walk; None if it has a short cut, or ends where no fact fits."""
    entity = world.entities[int(rng.integers(len(world.entities)))]
    phrase = f"the {entity.name}" if entity.kind is Kind.RIVER else entity.name
    path = [entity]
    for _ in range(hops - 1):
        link = LINKS[entity.kind][int(rng.integers(len(LINKS[entity.kind])))]
        entity = world.entities[entity.links[link.name]]
        phrase = link.phrase.format(phrase)
        path.append(entity)
    endings: tuple[Link | Measure, ...] = (*MEASURES[entity.kind], *LINKS[entity.kind])
    facts = [fact for fact in endings if last is None or fact.name in last]
    if not facts:
        return None
    fact = facts[int(rng.integers(len(facts)))]
    kind: Kind | None = None
    target = entity.links.get(fact.name)
    if target is None:
        answers = [str(entity.measures[fact.name])]
    else:
        kind, answers = world.entities[target].kind, world.entities[target].answers
    if _has_short_cut(world, path, target, answers[0]):
        return None
    return Chain(fact.phrase.format(phrase), tuple(step.name for step in path), fact.name, kind, tuple(answers))


def _has_short_cut(world: World, path: list[Entity], target: int | None, answer: str) -> bool:
    """Whether the answer, or a later step, stands in a document where it would make a search unnecessary."""
    numbers = [step.number for step in path]
    if len(set(numbers)) < len(numbers) or target in numbers:
        return True
    for position, step in enumerate(path[:-1]):
        later = set(numbers[position + 2 :])
        if later & set(step.links.values()):
            return True
        readers = [world.entities[number] for number in (step.number, *world.mentioned_by[step.number])]
        if any(_holds(reader, target, answer) for reader in readers):
            return True
    return False


def _holds(entity: Entity, target: int | None, answer: str) -> bool:
    """Whether a document tells the answer, be it about something else."""
    if target is not None:
        return entity.number == target or target in entity.links.values()
    return answer in (str(value) for value in entity.measures.values())
