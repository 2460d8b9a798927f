"""Shards -> checkpoint: input, augmentation, models, recipes, the loop, metrics."""

import shards  # noqa: F401  # before torch: how its threads wait
