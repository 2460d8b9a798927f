"""The rows as CSV: what they say beside the scores, how evaluate reads it, where it may lie."""

import csv
import errno
import json
from dataclasses import replace
from pathlib import Path

import pytest
from test_archives import write_folder, write_tar
from test_score import config, pictures, rows
from tiny_model import LABELS, foreign_model, write_model

from serve import score as score_module
from serve.evaluate import EvaluateConfig, evaluate
from serve.predictions import read_predictions
from serve.score import score
from shards.console import RunFailed, UserError


def csv_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_csv_holds_the_same_rows(tmp_path):
    members = pictures(7) | {'"quoted",\n.png': b"no image"}
    path = write_tar(tmp_path / "a.tar", members)
    score(config(tmp_path, path, csv=tmp_path / "rows.csv"))
    for row, expected in zip(csv_rows(tmp_path / "rows.csv"), rows(tmp_path / "out"), strict=True):
        assert row["member"] == expected["member"]
        assert row["error"] == (expected["error"] or "")
        if expected["prob_Normal"] is not None:
            assert float(row["prob_Normal"]) == pytest.approx(expected["prob_Normal"], abs=1e-6)
    (tmp_path / "rows.csv").unlink()
    renamed = json.loads((tmp_path / "out/scores.json").read_text())
    renamed["archives"][0]["name"] = "b.tar"
    (tmp_path / "out/scores.json").write_text(json.dumps(renamed))
    assert score(config(tmp_path, path, csv=tmp_path / "rows.csv")).already_done
    assert (tmp_path / "rows.csv").is_file()
    with pytest.raises(UserError, match="no folder"):
        score(config(tmp_path, path, csv=tmp_path / "none/rows.csv"))


def test_a_damaged_part_gives_no_csv(tmp_path):
    path = write_tar(tmp_path / "a.tar", pictures(3))
    score(config(tmp_path, path))
    (part,) = (tmp_path / "out/parts").iterdir()
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(UserError, match=part.name):
        score(config(tmp_path, path, csv=tmp_path / "rows.csv"))
    assert not (tmp_path / "rows.csv").exists()


def test_a_csv_that_is_broken_off_is_not_there(tmp_path, monkeypatch):
    asked = config(tmp_path, write_tar(tmp_path / "a.tar", pictures(3)))
    score(asked)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "rows.csv"
    with monkeypatch.context() as patched:
        patched.setattr("serve.score_csv.os.fsync", full)
        with pytest.raises(OSError, match="No space"):
            score(replace(asked, csv=path))
    assert not path.exists()
    score(replace(asked, csv=path))
    assert path.read_text().count("\n") == 4


def metrics_of(scores: Path, labels: Path) -> dict:
    out = scores.parent / f"metrics of {scores.name}"
    evaluate(EvaluateConfig(scores, labels, out, bootstrap=0))
    return json.loads((out / "metrics.json").read_text())


@pytest.mark.parametrize("inner", [False, True])
def test_the_csv_of_an_archive_cut_short_is_judged_as_its_folder(tmp_path, monkeypatch, inner):
    monkeypatch.setattr("serve.evaluate.write_pictures", lambda *_: None)
    told = "cannot be read to their ends: 1" if inner else "cut short"
    cut = write_tar(tmp_path / "cut.tar", {"-0.png": b"no image"} | pictures(7))
    cut.write_bytes(cut.read_bytes()[:-11_000])
    if inner:
        cut = write_tar(tmp_path / "=outer.tar", {"x.tar": cut.read_bytes()})
    whole = write_folder(tmp_path / "whole", {f"9{n}": data for n, data in pictures(9).items()})
    with pytest.raises(RunFailed, match=told):
        score(config(tmp_path, cut, whole, csv=tmp_path / "rows.csv"))
    found = rows(tmp_path / "out")
    assert [row["member"] for row in found].count("") == int(not inner)
    lines = [f"{row['key']},{LABELS[i % 3]}" for i, row in enumerate(found) if row["key"]]
    (tmp_path / "labels.csv").write_text("\n".join(["key,label", *lines]))
    of_folder = metrics_of(tmp_path / "out", tmp_path / "labels.csv")
    assert of_folder == metrics_of(tmp_path / "rows.csv", tmp_path / "labels.csv")
    assert (of_folder["errors"], of_folder["synthetic"]) == (1 + inner, True)
    assert of_folder["scored_by"]["precision"] == "fp32"
    assert any(told in line for line in of_folder["omitted"])


def test_what_the_model_does_not_say_the_csv_does_not_say(tmp_path):
    model = foreign_model(tmp_path / "f.onnx", channels=1)
    said = {"model": model, "labels": "A,B,C", "size": 16, "normalise": "0-1"}
    score(
        config(tmp_path, write_tar(tmp_path / "a.tar", pictures(2)), csv=tmp_path / "r.csv", **said)
    )
    found, folder = (read_predictions(tmp_path / name) for name in ("r.csv", "out"))
    assert found.scored_by == folder.scored_by
    assert found.scored_by.precision is None
    assert (found.exclusive, found.synthetic) == (False, False)


def test_a_table_of_two_models_is_refused(tmp_path):
    for name, seed in (("m.onnx", 0), ("n.onnx", 1)):
        model, path = write_model(tmp_path / name, seed), write_tar(tmp_path / "a.tar", pictures(2))
        asked = config(tmp_path, path, model=model, out=f"of {name}", csv=tmp_path / f"{name}.csv")
        score(asked)
    lines = (tmp_path / "n.onnx.csv").read_text().replace('"0000', '"1000').splitlines()
    text = (tmp_path / "m.onnx.csv").read_text() + "\n".join(lines[1:])
    (tmp_path / "both.csv").write_text(text)
    with pytest.raises(UserError, match=r"column 'model' has m.onnx, n.onnx; .* divide it"):
        read_predictions(tmp_path / "both.csv")
    (tmp_path / "both.csv").write_text(text.replace("n.onnx", "m.onnx"))
    with pytest.raises(UserError, match="column 'model_sha256' has"):
        read_predictions(tmp_path / "both.csv")
    (tmp_path / "odd.csv").write_text("key,exclusive,A\nx,maybe,0.5\n")
    with pytest.raises(UserError, match="'exclusive' has 'maybe'; allowed: true, false or nothing"):
        read_predictions(tmp_path / "odd.csv")


def test_no_cell_is_a_formula(tmp_path):
    names = ["=1+1.png", "+x.png", "-x.png", "@x.png", "\tx.png", "\rx.png", "none.png", "'.png"]
    names += ["'=1+1.png", "''-x.png"]
    members = dict(zip(names, pictures(len(names)).values()))
    path = write_tar(tmp_path / "=cmd.tar", members)
    score(config(tmp_path, path, csv=tmp_path / "rows.csv"))
    found = csv_rows(tmp_path / "rows.csv")
    assert [row["member"] for row in found] == [n if n in names[6:8] else f"'{n}" for n in names]
    assert {row["archive"] for row in found} == {"'=cmd.tar"}
    assert found[2]["key"] == "'-x"
    keys = tuple(row["key"] for row in rows(tmp_path / "out"))
    assert keys[2:7:4] == ("-x", "none")
    assert read_predictions(tmp_path / "rows.csv").keys == keys


def test_the_csv_takes_no_others_place(tmp_path, monkeypatch):
    """That of an archive, a list, the model, labels, a file of the scores: told before any work."""
    monkeypatch.setattr(score_module, "open_network", None)
    monkeypatch.chdir(tmp_path)
    write_tar(tmp_path / "a.csv", pictures(1))
    write_folder(tmp_path / "f", pictures(1))
    (tmp_path / "list.csv").write_text("a.csv\n")
    (tmp_path / "link.csv").symlink_to("list.csv")
    write_model(tmp_path / "m.csv")
    for name, message in {
        "a.csv": "a.csv is there, and not of this command",
        "list.csv": "list.csv is there, and not of this command",
        "link.csv": "link.csv is there, and not of this command",
        "m.csv": "m.csv is there, and not of this command",
        "f": "is a folder",
        "f/x.csv": "lies in .*f, which is scored",
        "out/request.json": "allowed: a name that ends in .csv",
        "out/parts/x.csv": "lies in a folder of the scores; allowed: out/x.csv",
        "none/x.csv": "no folder none",
    }.items():
        model = Path("m.csv")
        asked = config(tmp_path, Path("@list.csv"), Path("f"), model=model, out="out")
        with pytest.raises(UserError, match=message):
            score(replace(asked, out=Path("out"), csv=Path(name)))
    assert not Path("out").exists()


def test_the_csv_may_lie_in_the_new_folder_of_the_scores(tmp_path):
    asked = config(tmp_path, write_tar(tmp_path / "a.tar", pictures(2)))
    score(replace(asked, csv=asked.out / "rows.csv"))
    assert len(csv_rows(asked.out / "rows.csv")) == 2
