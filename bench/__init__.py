import shards  # noqa: F401  # before torch: how its threads wait
