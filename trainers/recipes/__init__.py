"""The recipes that come with agentrl, one algorithm per file; importing this package fills `RECIPES`."""

import importlib
import pkgutil

from agentrl.errors import UnknownNameError
from agentrl.trainers.algorithm import Algorithm
from agentrl.trainers.recipe import RECIPES

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["RECIPES", "find_recipe"]


def find_recipe(name: str) -> Algorithm:
    """The recipe of a config: one of `RECIPES`, or "module:name" for one of your own.

    Args:
        name: The module is imported, and enters its recipes by `@recipe`.

    Raises:
        UnknownNameError: No such recipe, or no such module.
    """
    module, _, recipe = name.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise UnknownNameError(f"Recipe {name!r} names a module that cannot be imported: {error}.") from error
    return RECIPES[recipe]
