"""serve summary: what it counts, and the sheet of the highest scores."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from test_archives import write_tar
from test_score import config, picture, pictures, rows
from tiny_model import LABELS, model_info, write_model

from serve.model_info import to_metadata
from serve.score import score
from serve.score_folder import ScoreFolder
from serve.summary import HISTOGRAM_FILE, SHEET_FILE, SummaryConfig, count_rows, summary
from shards.codec import encode
from shards.console import RunFailed, UserError
from shards.preprocess import prepare


def test_the_summary_counts_and_the_sheet_shows_the_highest(tmp_path):
    members = pictures(9, (64, 64)) | {"bad.png": b"no image"}
    first, second = (write_tar(tmp_path / f"{n}.tar", members) for n in "ab")
    score(config(tmp_path, first, second))
    lines = summary(SummaryConfig(tmp_path / "out", top=4, label="COVID-19"))
    assert lines[0].startswith("20 rows, 2 of them errors; m.onnx")
    counts = {row["predicted"] for row in rows(tmp_path / "out")} - {None}
    assert all(any(label in line for line in lines) for label in counts)
    assert any("2  error: " in line for line in lines)
    assert Image.open(tmp_path / "out" / HISTOGRAM_FILE).width > 300


@pytest.mark.parametrize("label", LABELS)
def test_the_sheet_shows_the_highest_of_its_label_in_order(tmp_path, label):
    members = {f"{i:05d}.png": encode(picture(i, (64, 64)), "png") for i in range(9)}
    score(config(tmp_path, write_tar(tmp_path / "a.tar", members)))
    summary(SummaryConfig(tmp_path / "out", top=4, label=label))
    sheet = np.asarray(Image.open(tmp_path / "out" / SHEET_FILE))[22 + 8 + 34 :][:192]
    best = sorted(rows(tmp_path / "out"), key=lambda row: row[f"prob_{label}"], reverse=True)
    for place, row in enumerate(best[:4]):
        shown = sheet[:, 8 + 200 * place :][:, :192]
        assert (shown == prepare(picture(int(row["member"][:5]), (64, 64)), None, 192)).all()


def test_the_histograms_count_each_score_once(tmp_path):
    score(config(tmp_path, write_tar(tmp_path / "a.tar", pictures(9) | {"bad.png": b"none"})))
    counts = count_rows(ScoreFolder(tmp_path / "out"), LABELS)
    for label, found in zip(LABELS, counts.histograms, strict=True):
        scores = [row[f"prob_{label}"] for row in rows(tmp_path / "out")]
        bins = [int(score * len(found)) for score in scores if score is not None]
        assert found.tolist() == [bins.count(place) for place in range(len(found))]


def test_the_pictures_say_what_they_show(tmp_path, monkeypatch):
    """The model is of synthetic radiographs, not what it scored."""
    titles = []
    monkeypatch.setattr("serve.summary.to_png", lambda f: titles.append(f.get_suptitle()) or b"")
    score(config(tmp_path, write_tar(tmp_path / "a.tar", pictures(2))))
    heads = []
    for label in ("Normal", "COVID-19"):
        summary(SummaryConfig(tmp_path / "out", top=1, label=label))
        heads.append(np.asarray(Image.open(tmp_path / "out" / SHEET_FILE))[:28])
    said = "2 rows, 0 of them errors; m.onnx (trained on synthetic radiographs, all or some)"
    assert titles == [said, said]
    assert all((head < 128).any() for head in heads)
    assert (heads[0] != heads[1]).any()


def test_summaries_that_cannot_be(tmp_path):
    path = write_tar(tmp_path / "a.tar", pictures(3))
    with pytest.raises(UserError, match="no finished scores"):
        summary(SummaryConfig(tmp_path / "out"))
    score(config(tmp_path, path))
    for changes, message in [
        ({"top": 0}, "allowed: 1 to"),
        ({"label": "Normal"}, "belongs to --top"),
        ({"top": 1, "label": "Flu"}, "no label 'Flu'.* they have: Normal"),
    ]:
        with pytest.raises(UserError, match=message):
            summary(SummaryConfig(tmp_path / "out", **changes))
    write_tar(path, pictures(2))
    with pytest.raises(UserError, match="another archive than the one that was scored"):
        summary(SummaryConfig(tmp_path / "out", top=1))


def test_a_sheet_of_archives_that_vanished_says_so(tmp_path):
    folder = tmp_path / "src"
    folder.mkdir()
    paths = [write_tar(folder / f"{n}.tar", pictures(2)) for n in "ab"]
    score(config(tmp_path, folder))
    paths[0].unlink()
    with pytest.raises(UserError, match="1 archives are there now, 2 were scored; bring back"):
        summary(SummaryConfig(tmp_path / "out", top=4))
    paths[1].unlink()
    with pytest.raises(UserError, match="no image and no archive in the folder"):
        summary(SummaryConfig(tmp_path / "out", top=4))


def test_names_of_strangers_reach_no_terminal_as_they_are(tmp_path):
    labels = ("A\x1b[31m", "B\n$x$", "C[bold]")
    info = to_metadata(model_info(labels=labels))
    model = write_model(tmp_path / "e.onnx", metadata=info)
    path = write_tar(tmp_path / "a\x1b[2J$\n.tar", pictures(3) | {"x\x1b[0m.png": b"none"})
    cut = write_tar(tmp_path / "b\x1b[2J.tar", pictures(2))
    cut.write_bytes(cut.read_bytes()[:700])
    asked = config(tmp_path, path, cut, model=model)
    lines = score(replace(asked, dry_run=True)).lines()
    with pytest.raises(RunFailed, match="cut short"):
        score(asked)
    for label in labels:
        lines += summary(SummaryConfig(tmp_path / "out", top=4, label=label))
    assert all(line.isprintable() for line in lines)
    assert any("damaged: b\\x1b[2J.tar" in line for line in lines)
