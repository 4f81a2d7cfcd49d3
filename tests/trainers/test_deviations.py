"""No recipe without an independent reference: what `deviations` measures is complete, and it is small."""

from dataclasses import replace

import deviations
import pytest
from loss_rows import TOLERANCE

from agentrl.trainers import RECIPES, Recipe

MEASURES = deviations.measures()


def test_every_recipe_is_compared_with_a_reference() -> None:
    assert set(RECIPES) <= {*MEASURES, *deviations.SAME_LOSS, *deviations.NO_LOSS_OF_THEIR_OWN}
    for name, other in deviations.SAME_LOSS.items():
        assert other in MEASURES
        ours, theirs = RECIPES[name], RECIPES[other]
        if isinstance(ours, Recipe) and isinstance(theirs, Recipe):
            kept = {"name": ours.name, "paper": ours.paper, "idea": ours.idea, "sampling": ours.sampling}
            assert replace(theirs, reward=ours.reward, **kept) == ours
        else:
            assert ours.loss == theirs.loss  # type: ignore[attr-defined]


@pytest.mark.parametrize("row", [row for row in deviations.ROWS if row.name in RECIPES], ids=lambda row: row.name)
def test_rows_that_bear_the_name_of_a_recipe_are_it(row: deviations.Row) -> None:
    """But for lengths: the cases have a dozen tokens, not thousands."""
    entry = RECIPES[row.name]
    assert isinstance(entry, Recipe)
    short = {"aggregation": entry.aggregation} if row.name == "dr_grpo" else {"shaping": entry.shaping}
    assert (row.recipe if row.name not in ("dr_grpo", "dapo") else replace(row.recipe, **short)) == entry


@pytest.mark.parametrize("name", MEASURES)
def test_deviations_on_a_batch_of_its_own_are_small(name: str) -> None:
    measured = MEASURES[name](deviations.FRESH[0])
    assert max(measured) < TOLERANCE


def test_the_table_is_printed() -> None:
    lines = list(deviations.table({"dpo": MEASURES["dpo"], "cispo": MEASURES["cispo"]}, range(2)))
    assert [line.split(" ")[1] for line in lines[2:]] == ["cispo", "dpo"]
