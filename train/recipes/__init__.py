"""Recipes: typed functions that return all settings of a training. `python -m train list`."""

from shards.console import UserError
from train.config import TrainConfig
from train.recipes import bassi, dd2424, deepcovid, soares
from train.recipes.entry import Recipe

RECIPES: dict[str, Recipe] = {
    entry.build().recipe: entry
    for entry in (*bassi.RECIPES, *dd2424.RECIPES, *soares.RECIPES, *deepcovid.RECIPES)
}


def recipe(name: str) -> TrainConfig:
    """The settings of a recipe by name. UserError that lists all when there is none."""
    return entry_of(name).build()


def entry_of(name: str) -> Recipe:
    """What is known of a recipe. UserError as for `recipe`."""
    if name not in RECIPES:
        raise UserError(f"no recipe {name!r}; there are: {', '.join(RECIPES)}")
    return RECIPES[name]
