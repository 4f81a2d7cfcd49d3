"""What a phrase such as "the mayor of the home town of Velkar Works" means, found by taking its words apart."""

from agentrl.envs.world import LINKS, MEASURES, Kind, World


def readings(world: World, phrase: str) -> set[str]:
    """Names and numbers that a phrase can stand for; one if it is clear.

    What stands innermost, a name, is looked up first; then each "the ... of" around it is followed, whichever way the
    words allow. The path by which the question was made plays no part.
    """
    return {answer for answer, _ in _meanings(world, phrase)}


def _meanings(world: World, phrase: str) -> list[tuple[str, int | None]]:
    """Texts with the entity they name, if they name one."""
    name = phrase.removeprefix("the ") if phrase.startswith("the River ") else phrase
    found: list[tuple[str, int | None]] = [(e.name, e.number) for e in world.entities if e.name == name]
    for kind in Kind:
        for fact in (*LINKS[kind], *MEASURES[kind]):
            opening = fact.phrase.removesuffix("{}")
            if not phrase.startswith(opening):
                continue
            for _, number in _meanings(world, phrase.removeprefix(opening)):
                if number is None or world.entities[number].kind is not kind:
                    continue
                entity = world.entities[number]
                if fact.name in entity.links:
                    target = world.entities[entity.links[fact.name]]
                    found.append((target.name, target.number))
                else:
                    found.append((str(entity.measures[fact.name]), None))
    return found
