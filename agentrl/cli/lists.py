"""`agentrl envs | tools | algorithms`: what there is, read from the tables that configs are resolved with."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import gymnasium
from gymnasium.envs.registration import load_env_creator
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agentrl.errors import AgentRLError


@dataclass(frozen=True, slots=True)
class Listing:
    """A small table of text.

    Example:
        Listing(("id", "turns"), (("agentrl/Arithmetic-v0", "8"),))
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def print_listing(listing: Listing) -> None:
    """Prints a table to a terminal; elsewhere aligned lines of unlimited width, without a heading."""
    console = Console()
    if not console.is_terminal:
        console.file.writelines(f"{line}\n" for line in _aligned(listing.rows))
        return
    table = Table(box=None, header_style="bold cyan", padding=(0, 2, 0, 0))
    for position, column in enumerate(listing.columns):
        table.add_column(column, no_wrap=position == 0, style="bold" if position == 0 else "")
    for row in listing.rows:
        table.add_row(*map(Text, row))
    console.print(table)


def list_environments() -> Listing:
    """Every environment in the namespace "agentrl/"."""
    from agentrl.envs import make

    rows = []
    for env_id in sorted(gymnasium.registry):
        if env_id.startswith("agentrl/"):
            creator = gymnasium.spec(env_id).entry_point
            cls = load_env_creator(creator) if isinstance(creator, str) else creator
            rows.append((env_id, _tools_of(partial(make, env_id)), _first_line(cls.__doc__ or "")))
    return Listing(("id", "tools", "what the agent does"), tuple(rows))


def list_tools() -> Listing:
    """Every tool in the catalog with the options of its factory."""
    from agentrl.tools.catalog import TOOLS, make_tools

    rows = []
    for name, factory in TOOLS.items():
        options = inspect.signature(factory).parameters.values()
        description = make_tools(name)[0].description if not options else inspect.getdoc(factory) or ""
        rows.append((name, ", ".join(map(_option, options)), _first_line(description)))
    return Listing(("name", "options", "what it does"), tuple(rows))


def list_algorithms() -> Listing:
    """Every recipe, with what it needs beside the policy and its episodes."""
    from agentrl.trainers import RECIPES

    rows = [
        (name, f"arXiv:{recipe.paper}", ", ".join(recipe.needs) or "-", recipe.idea)
        for name, recipe in sorted(RECIPES.items())
    ]
    return Listing(("name", "paper", "needs", "idea"), tuple(rows))


def print_algorithm(name: str) -> None:
    """Prints one recipe: what it is for, its parts with their numbers, and where its definition differs from others.

    Args:
        name: As in the listing, or "module:name".

    Raises:
        UnknownNameError: There is no such recipe.
    """
    from agentrl.trainers.recipe import DESCRIPTIONS
    from agentrl.trainers.recipe_card import card_of
    from agentrl.trainers.recipes import find_recipe

    algorithm = find_recipe(name)
    more = [
        DESCRIPTIONS[algorithm.name],
        "",
        f"https://arxiv.org/abs/{algorithm.paper}",
        f"agentrl train CONFIG recipe={name}",
    ]
    Console().file.writelines(f"{line}\n" for line in [*card_of(algorithm), "", *more])


def _aligned(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _tools_of(make_env: Callable[[], gymnasium.Env[str, str]]) -> str:
    """Names of an environment's tools; an instance has to be made, as tools may depend on its arguments."""
    from agentrl.envs import ToolEnv

    try:
        env = make_env()
    except AgentRLError:  # it has arguments without a default
        return "as configured"
    inner = env.unwrapped
    names = [tool.name for tool in inner.tools] if isinstance(inner, ToolEnv) else []
    env.close()
    return ", ".join(names)


def _option(option: inspect.Parameter) -> str:
    return option.name if option.default is option.empty else f"{option.name}={option.default!r}"


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0].strip()
