"""The recipes that come with agentrl, one algorithm per file; importing this package fills `RECIPES`."""

from agentrl.trainers.recipe import RECIPES
from agentrl.trainers.recipes import arpo, dapo, dr_grpo, grpo

__all__ = ["RECIPES", "arpo", "dapo", "dr_grpo", "grpo"]
