"""The contract between the rooms: samples, labels, tar shards, manifest, order, preprocessing."""
