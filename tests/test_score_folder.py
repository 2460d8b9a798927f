"""serve.score_folder, serve.score_json: what became of a folder of scores since it was written."""

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_archives import WRITERS, write_tar
from test_score import config, picture, pictures, rows
from test_score_requests import run_cli

from serve import score_run
from serve.predictions import read_predictions
from serve.score import ScoreConfig, score
from serve.score_folder import UNIT_INPUTS, ArchiveEnd, Columns, Row, ScoreFolder
from serve.score_json import SUMMARY, load
from serve.score_run import Share, Work
from serve.summary import SummaryConfig, summary
from shards.codec import encode
from shards.console import UserError


@pytest.fixture(scope="module")
def scored(tmp_path_factory) -> ScoreConfig:
    """Two archives, of two units and of one. Read only."""
    folder = tmp_path_factory.mktemp("scored")
    image = encode(picture(0, (8, 8)), "png")
    names = [f"{i:05d}.png" for i in range(UNIT_INPUTS + 5)]
    archives = [WRITERS["a.zip"](folder / "a.zip", dict.fromkeys(names, image))]
    archives.append(write_tar(folder / "b.tar", pictures(3)))
    asked = config(folder, *archives)
    score(asked)
    return asked


@pytest.fixture
def copy(scored: ScoreConfig, tmp_path: Path) -> ScoreConfig:
    shutil.copytree(scored.out, tmp_path / "out")
    return replace(scored, out=tmp_path / "out")


def part(folder: Path, archive: int, unit: int) -> Path:
    return folder / f"parts/part-{archive:05d}-{unit:06d}.parquet"


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def of_other_columns(path: Path) -> None:
    pq.write_table(pa.table({"error": ["x"]}), path)


def of_fewer_rows(path: Path) -> None:
    pq.write_table(pq.read_table(path).slice(1), path)


def of_more_rows(path: Path) -> None:
    table = pq.read_table(path)
    pq.write_table(pa.concat_tables([table] * 2), path)


DAMAGE = {
    cut_short: "is damaged",
    of_other_columns: "has other columns than these scores",
    of_fewer_rows: "has 2 rows, expected 3",
    of_more_rows: "has 6 rows, expected 3",
}


@pytest.mark.parametrize("spoil", DAMAGE)
def test_a_spoilt_part_is_named_and_scored_again(copy, spoil):
    path, whole = part(copy.out, 1, 0), rows(copy.out)
    spoil(path)
    way_out = f"{path} {DAMAGE[spoil]}.*; delete it and scores.json, and the same serve score"
    for read in (
        lambda: score(copy),
        lambda: summary(SummaryConfig(copy.out)),
        lambda: summary(SummaryConfig(copy.out, top=1)),
        lambda: read_predictions(copy.out),
    ):
        with pytest.raises(UserError, match=way_out):
            read()
    (copy.out / "scores.json").unlink()
    with pytest.raises(UserError, match=f"{path} {DAMAGE[spoil]}.*; delete it, and the same"):
        score(copy)
    path.unlink()
    assert score(copy).scored == 3
    assert rows(copy.out) == whole


def test_a_byte_that_changed_gives_no_other_rows(copy):
    """By the checksums of Parquet's pages; a few bytes mean nothing. And no run that goes on or is
    done already takes such a part for its own."""
    path, folder = part(copy.out, 1, 0), ScoreFolder(copy.out)
    whole, data, told = folder.read(), path.read_bytes(), 0
    ends, schema = [folder.end_of(archive) for archive in range(2)], whole.schema
    for place in range(0, len(data), 7):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :])
        try:
            assert folder.read().equals(whole)
        except UserError:
            told += 1
            for again in (folder.check, lambda: folder.counts(ends, schema)):
                with pytest.raises(UserError, match=f"{path} "):
                    again()
    assert told > len(data) / 7 / 2


def test_a_missing_part_is_named_and_scored_again(copy):
    path, whole = part(copy.out, 0, 1), rows(copy.out)
    path.unlink()
    for read in (
        lambda: summary(SummaryConfig(copy.out)),
        lambda: read_predictions(copy.out),
        lambda: score(copy),
    ):
        with pytest.raises(UserError, match=f"{path} is missing; delete scores.json, and the same"):
            read()
    (copy.out / "scores.json").unlink()
    assert score(copy).scored == 5
    assert rows(copy.out) == whole


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    "name",
    [
        "part-00001-000000 (1).parquet",
        "part-000001-000000.parquet",
        "part-00001-000001.parquet",
        "part-00002-000000.parquet",
        "part-0000x-000000.parquet",
    ],
)
def test_a_stray_part_is_named_and_never_counted(copy, name, finished):
    shutil.copy(part(copy.out, 1, 0), copy.out / "parts" / name)
    reads = [lambda: score(copy)]
    if finished:
        reads += [lambda: summary(SummaryConfig(copy.out)), lambda: read_predictions(copy.out)]
    else:
        (copy.out / "scores.json").unlink()
    for read in reads:
        with pytest.raises(UserError) as caught:
            read()
        assert (
            str(caught.value) == f"{copy.out / 'parts' / name} is none of these scores; remove it"
        )


def test_what_a_kill_left_half_written_is_in_nobodys_way(copy):
    draft = part(copy.out, 1, 0).with_name("part-00001-000000.parquet.tmp")
    draft.write_bytes(b"half")
    summary(SummaryConfig(copy.out))
    for path in (copy.out / "scores.json", part(copy.out, 1, 0)):
        path.unlink()
    assert score(copy).scored == 3
    assert not draft.exists()


def test_rows_are_in_the_order_of_the_numbers_not_of_the_names(tmp_path):
    folder = ScoreFolder(tmp_path)
    columns = Columns(("A",), True, "0", 1)
    with folder.locked():
        for archive in (100_000, 99_999, 10_000):
            row = Row(str(archive), "x", "x", np.zeros(1, np.float32), None)
            folder.write_unit(archive, 0, columns.table([row]))
    found = [pq.read_table(path)["archive"][0].as_py() for path in folder._units().values()]
    assert found == ["10000", "99999", "100000"]


def test_parts_and_archives_are_listed_once(tmp_path, monkeypatch):
    """Once for each archive, 20,000 archives took hours."""
    archives = [write_tar(tmp_path / f"{i}.tar", pictures(1)) for i in range(6)]
    listed, units = [], ScoreFolder._units
    monkeypatch.setattr(ScoreFolder, "_units", lambda self: listed.append(1) or units(self))
    score(config(tmp_path, *archives[:1], out="one"))
    of_one = len(listed)
    listed.clear()
    score(config(tmp_path, *archives))
    assert len(listed) == of_one


DAMAGED_JSON = [
    b"",
    b"[]",
    b"{}",
    b"null",
    b"\xff",
    b"[" * 100_000,
    b'{"labels": {"a": 1}}',
]
CHANGES = {
    "labels": [None, "A", [1], [[]], {"a": 1}, [], ["A", "A"], ["\ud800"]],
    "archives": [None, 3, [], [3], [{}], [{"rows": "3"}]],
    "rows": ["3", None, True, 2.5],
    "seconds": ["1", None],
    "synthetic": [None, 1],
    "model": [None, 3],
    "operating_point": ["youden", 3],
}


def every_use(asked: ScoreConfig) -> list:
    return [
        lambda: score(asked),
        lambda: summary(SummaryConfig(asked.out, top=1)),
        lambda: read_predictions(asked.out),
    ]


@pytest.mark.parametrize("data", DAMAGED_JSON)
@pytest.mark.parametrize("name", ["scores.json", "request.json", "ends/archive-00001.json"])
def test_damaged_json_is_one_line(copy, name, data):
    path = copy.out / name
    path.write_bytes(data)
    if name.startswith("ends"):
        (copy.out / "scores.json").unlink()
    uses = every_use(copy)
    for use in uses if name == "scores.json" else uses[:1]:
        with pytest.raises(UserError, match=f"{path} is damaged .*; (delete|score into)"):
            use()
    if name == "scores.json":
        path.unlink()
        assert not score(copy).already_done  # made again of what is there
        assert rows(copy.out)
    if name.startswith("ends"):
        path.unlink()
        assert score(copy).scored == 0


@pytest.mark.parametrize(("field", "value"), [(f, v) for f, vs in CHANGES.items() for v in vs])
def test_scores_json_with_a_wrong_field_is_one_line(copy, field, value):
    path = copy.out / "scores.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    for use in every_use(copy)[1:]:
        with pytest.raises(UserError):
            use()


def test_a_folder_whose_name_is_no_utf8_is_scored_once_and_read_again(tmp_path):
    images = tmp_path / os.fsdecode(b"r\xf6ntgen")
    images.mkdir()
    (images / "a.png").write_bytes(encode(picture(0, (8, 8)), "png"))
    asked = config(tmp_path, images)
    score(asked)
    assert score(asked).already_done
    summary(SummaryConfig(asked.out, top=1))


def test_scores_json_names_the_wrong_field(copy):
    path = copy.out / "scores.json"
    content = json.loads(path.read_text())
    content["archives"][1]["damage"] = ["x"]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"scores\.archives\[1\]\.damage is \[\"x\"\]"):
        load(path, SUMMARY, "")
    del content["archives"][1]["damage"]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"scores\.archives\[1\] lacks damage"):
        load(path, SUMMARY, "")


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_file_system_without_locks_is_said_and_used(tmp_path, monkeypatch, capsys, number):
    def unknown(*_: object) -> None:
        raise OSError(number, "no locks here")

    monkeypatch.setattr("shards.lock.fcntl.flock", unknown)
    score(config(tmp_path, write_tar(tmp_path / "a.tar", pictures(1))))
    err = capsys.readouterr().err
    assert "cannot be locked (no locks here); see that no other run writes there" in err
    assert err.count("\n") == 1


def test_a_run_does_not_go_on_with_another_provider(tmp_path, monkeypatch):
    """auto found a GPU at first; its scores and a CPU's differ in the last digits."""
    asked = config(tmp_path, write_tar(tmp_path / "a.tar", pictures(3)), provider="auto")
    score(asked)
    request = asked.out / "request.json"
    content = json.loads(request.read_text())
    assert content["provider"] == "cpu"
    request.write_text(json.dumps(content | {"provider": "cuda"}))
    assert score(asked).already_done  # where nothing is left, another machine will do
    wanted = "go on with --provider cuda, or with --provider cpu into another --out"
    with pytest.raises(UserError, match=wanted):
        score(replace(asked, provider="cpu"))
    (asked.out / "scores.json").unlink()
    with pytest.raises(UserError, match=wanted):
        score(asked)
    request.write_text(json.dumps(content | {"provider": "auto"}))  # what it found is not known
    with pytest.raises(UserError, match='provider was "auto", now "cpu"; use another --out'):
        score(asked)


def test_a_kill_between_the_last_part_the_ends_and_the_summary(copy):
    whole = rows(copy.out)
    for names in (["scores.json"], ["scores.json", "ends/archive-00000.json"]):
        for name in names:
            (copy.out / name).unlink()
        done = score(copy)
        assert (done.scored, done.rows, done.already_done) == (0, len(whole), False)
        assert rows(copy.out) == whole


def test_the_bar_ends_where_the_work_does(copy, monkeypatch):
    (copy.out / "scores.json").unlink()
    part(copy.out, 0, 1).unlink()
    run, expected = score_run.run_here, []

    def noted(work: Work, *rest: object) -> None:
        expected.extend(work.expected(share) for share in (Share(), Share(0, 2)))
        expected.append(replace(work, limit=UNIT_INPUTS + 1).expected(Share()))
        run(work, *rest)

    monkeypatch.setattr("serve.score.run_here", noted)
    score(copy)
    assert expected == [5, 2, 0]


def test_ends_hold_what_they_were_given(tmp_path):
    folder, end = ScoreFolder(tmp_path), ArchiveEnd(3, {"other files": 2}, "cut", 1)
    with folder.locked():
        folder.write_end(7, end)
    assert folder.end_of(7) == end


def test_each_is_one_line_of_the_command(copy, monkeypatch, capsys):
    (copy.out / "scores.json").write_text("{}")
    for command in (
        ["summary", copy.out],
        ["evaluate", "--scores", copy.out, "--labels", copy.out, "--out", copy.out / "e"],
    ):
        assert run_cli(monkeypatch, *command) == 2
        assert capsys.readouterr().err.count("\n") == 1
