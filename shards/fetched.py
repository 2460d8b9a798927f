"""A shard as a local file, wherever its data set lies: one of a URL is copied for a short time."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from shards.manifest import ShardInfo, shard_path
from shards.remote import is_remote


@contextmanager
def local_shard(folder: Path, shard: ShardInfo) -> Iterator[Path]:
    """The path of the tar, with its index beside it."""
    path = shard_path(folder, shard)
    if not is_remote(path):
        yield path
        return
    with TemporaryDirectory(prefix="cxrstack-") as temporary:
        copy = Path(temporary) / shard.name
        for suffix in (".idx", ".tar"):
            path.with_suffix(suffix).fetch(copy.with_suffix(suffix))
        yield copy
