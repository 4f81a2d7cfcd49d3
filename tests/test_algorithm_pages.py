"""`docs/algorithms.md` and the pages below it say what the recipes say: every one is there, with its own numbers."""

import re
from pathlib import Path

import pytest

from agentrl.trainers import RECIPES
from agentrl.trainers.preference.recipe import PreferenceRecipe
from agentrl.trainers.recipe import Recipe
from agentrl.trainers.recipe_card import card_of, parts_of

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted((DOCS / "algorithms").glob("*.md"))
SECTIONS = ["Recipe", "Defaults", "When to use it", "Often told wrong"]
ON_POLICY = ("advantage", "ratio", "surrogate", "aggregation", "kl")
PREFERENCE = ("loss", "builder")
ALSO = ("shaping", "group_filter", "reward", "trust_region")

_CARD = re.compile(r"^```text recipe (\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[`(\w+)`\]\(algorithms/(\w+)\.md\)")


def cards_of(page: Path) -> dict[str, str]:
    return dict(_CARD.findall(page.read_text()))


def rows_of(overview: str) -> dict[str, tuple[str, ...]]:
    """The cells of every row that begins with the link to a recipe's page."""
    rows = [line.strip("| \n").split(" | ") for line in overview.splitlines() if line.startswith("| [`")]
    return {_LINK.findall(row[0])[0][0]: tuple(row[1:]) for row in rows}


def cells_of(name: str) -> tuple[str, ...]:
    """What the row of a recipe has to say."""
    algorithm, parts = RECIPES[name], parts_of(RECIPES[name])
    columns = ON_POLICY if isinstance(algorithm, Recipe) else PREFERENCE
    middle = [f"`{parts[column]}`" if column in parts else "-" for column in columns]
    if isinstance(algorithm, Recipe):
        middle.append(", ".join(f"`{parts[column]}`" for column in ALSO if column in parts) or "-")
    return (*middle, parts["sampling"], ", ".join(algorithm.needs) or "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_shows_recipes_as_they_are(page: Path) -> None:
    text = page.read_text()
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == SECTIONS
    assert cards_of(page), "a page shows at least one recipe"
    for name, shown in cards_of(page).items():
        assert shown.splitlines() == card_of(RECIPES[name])
        assert f"https://arxiv.org/abs/{RECIPES[name].paper}" in text


def test_every_recipe_has_a_page() -> None:
    shown = [name for page in PAGES for name in cards_of(page)]
    assert sorted(shown) == sorted(set(shown)) == sorted(RECIPES)


def test_every_recipe_has_its_row_and_its_link() -> None:
    overview = (DOCS / "algorithms.md").read_text()
    in_tables = [name for name, algorithm in RECIPES.items() if isinstance(algorithm, Recipe | PreferenceRecipe)]
    assert rows_of(overview) == {name: cells_of(name) for name in in_tables}
    page_of = {name: page.stem for page in PAGES for name in cards_of(page)}
    linked = dict(_LINK.findall(overview))
    assert all(page_of[name] == page for name, page in linked.items())
    assert {page.stem for page in PAGES} <= set(re.findall(r"\(algorithms/(\w+)\.md", overview))
