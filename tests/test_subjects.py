"""The rows of a score file are found again in the archives, whatever their keys were made of."""

import pytest
from test_archives import write_folder
from test_score import config, rows
from test_score_inputs import dicom

from serve.explain.subjects import Where, choose_scored, from_archives, from_files
from serve.score import score
from shards.console import UserError


@pytest.mark.parametrize("keep_names", [False, True])
def test_scored_dicom_files_are_found_by_their_names_and_without(tmp_path, capsys, keep_names):
    folder = write_folder(tmp_path / "f", {f"{i}.dcm": dicom(i) for i in range(3)})
    score(config(tmp_path, folder, keep_names=keep_names))
    keys = choose_scored(tmp_path / "out", Where(), None)
    assert sorted(keys) == sorted(row["key"] for row in rows(tmp_path / "out"))
    assert all(key.startswith("dicom-") != keep_names for key in keys)
    found = {one.key: one.data for one in from_archives([folder], keys, tmp_path / "out")}
    assert set(found) == set(keys)
    assert set(found.values()) == {dicom(i) for i in range(3)}
    assert "cannot be read" not in capsys.readouterr().err


def test_images_that_vanished_are_counted_and_the_first_is_named(tmp_path, capsys):
    folder = write_folder(tmp_path / "f", {f"{i}.png": b"" for i in range(3)})
    keys = ["2", "z", "0", "a"]  # in the order of the scores
    assert [one.key for one in from_archives([folder], keys, tmp_path / "scores.csv")] == ["0", "2"]
    told = "2 of the 4 chosen images cannot be read from these archives, the first of them z;"
    assert told in capsys.readouterr().err
    gone = [folder / "0.png", folder / "x.png", folder / "y.png"]
    with pytest.raises(
        UserError, match=r"no file .*x\.png \(2 of 3 are missing\); name image files"
    ):
        from_files(gone)


def test_rows_that_lack_a_score_are_not_chosen(tmp_path):
    """evaluate leaves them out too; the highest of the others is no call."""
    path = tmp_path / "scores.csv"
    path.write_text("key,A,B\nx,,1\ny,0,1\nz,,\n")
    assert choose_scored(path, Where(predicted="B"), None) == ["y"]
    assert choose_scored(path, Where(), None) == ["y"]
    # Nor does it hide that the others' add up to 1: a call is the largest, from 0.5 on or not.
    path.write_text("key,A,B,C\nx,,1,0\ny,0.4,0.3,0.3\n")
    assert choose_scored(path, Where(predicted="A"), None) == ["y"]
    path.write_text("key,A,B\nx,,1\n")
    with pytest.raises(UserError, match="no row of"):
        choose_scored(path, Where(predicted="A"), None)
