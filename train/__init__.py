"""Shards -> checkpoint: input, augmentation, models, recipes, the loop, metrics."""
