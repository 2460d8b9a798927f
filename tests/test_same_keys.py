"""An image has one key, whether its raw file or its sample in a shard is scored."""

from pathlib import PurePosixPath

from hypothesis import given
from hypothesis import strategies as st
from ingest_runs import covid
from test_archives import only, write_tar

from ingest.record import Record, with_short_keys
from serve.score_inputs import find_archives
from shards.sample import KEY_PATTERN, make_key

PARTS = st.text("ab._ ü", min_size=1, max_size=3).filter(lambda part: part.strip("."))
LOCATIONS = st.lists(st.lists(PARTS, min_size=1, max_size=3).map("/".join), unique=True)


def test_raw_files_and_their_samples_have_the_same_keys(tiny_raw, tiny_shards, tmp_path):
    raw = {record.location: record for record in covid(tiny_raw).records()}
    in_shards = {
        entry.key
        for archive in find_archives([tiny_shards / "covid-radiography"])
        for entry in archive.entries()
    }
    left_out = {record.key for record in raw.values()} - in_shards
    folder = tiny_raw / "covid-radiography"
    (scored,) = find_archives([folder])
    keys = {entry.key for entry in scored.entries()} - {
        "SYNTHETIC"
    }  # this file says they are drawn
    assert keys - left_out == in_shards
    members = {name: (folder / name).read_bytes() for name in raw}
    packed = {entry.key for entry in only(write_tar(tmp_path / "raw.tar", members)).entries()}
    assert packed - left_out == in_shards


@given(LOCATIONS)
def test_keys_are_short_where_that_is_unique(locations):
    records = with_short_keys([Record(name, make_key(name), ()) for name in locations])
    keys = [record.key for record in records]
    assert len(set(keys)) == len(keys)
    assert all(KEY_PATTERN.fullmatch(key) for key in keys)
    stems = [make_key(PurePosixPath(name).stem) for name in locations]
    for record, stem in zip(records, stems):
        assert record.key in (stem, make_key(record.location))
        if stems.count(stem) > 1:
            assert record.key == make_key(record.location)
