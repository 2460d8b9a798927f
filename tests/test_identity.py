"""An archive that is not the one of an earlier run is told, without reading all of it."""

import os
import random

import pytest
from test_archives import MEMBERS, WRITERS, only, write_folder, write_tar

from serve.identity import identify
from serve.score_inputs import find_archives


@pytest.mark.parametrize("name", WRITERS)
def test_identity_tells_archives_apart(tmp_path, name):
    path = WRITERS[name](tmp_path / name, MEMBERS)
    before = identify(only(path))
    assert identify(only(path)) == before
    other = MEMBERS | {"images/zz": b"threee"}
    assert identify(only(WRITERS[name](tmp_path / name, other))) != before


@pytest.mark.parametrize("place", [0, 1_000_000, 1_500_000, 2_222_222, 3_000_000])
def test_an_archive_changed_in_its_middle_is_another(tmp_path, place):
    path = write_tar(tmp_path / "a.tar", {"x.png": random.Random(0).randbytes((4 << 20) - 20_000)})
    before = identify(only(path))
    os.utime(path, (0, 0))  # its times do not count, so that a copy may go on
    assert identify(only(path)) == before
    with path.open("r+b") as file:
        file.seek(1000 + place)
        file.write(bytes(1000))
    assert identify(only(path)) != before


def test_a_large_archive_is_told_by_blocks_all_over_it(tmp_path):
    path = write_tar(tmp_path / "a.tar", {"x.png": bytes(32 << 20)})
    before = identify(only(path))
    with path.open("r+b") as file:
        file.seek(16 << 20)
        file.write(b"1" * (1 << 20))
    assert identify(only(path)) != before


@pytest.mark.parametrize("listed", [False, True])
def test_a_file_with_other_content_of_the_same_size_is_told(tmp_path, listed):
    write_folder(tmp_path, {"a.png": b"one", "b.png": b"two"})
    asked = tmp_path / "*.png" if listed else tmp_path
    (archive,) = find_archives([asked])
    before = identify(archive)
    assert identify(archive) == before
    (tmp_path / "b.png").write_bytes(b"TWO")
    os.utime(tmp_path / "b.png", ns=(0, 0))
    assert identify(archive) != before
