"""Links and devices are never followed: each with an image's name is an input that is refused."""

import os
import re
import tarfile
import zipfile

import pytest
from test_archives import MEMBERS, add, contents, only, write_folder, write_tar
from test_score import pictures, rows
from test_score_requests import run_cli
from tiny_model import write_model

from serve.archives import LINK
from serve.dry_run import expected_inputs
from serve.identity import identify
from serve.score_inputs import find_archives
from shards.console import UserError


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_links_and_devices_are_inputs_that_are_refused(tmp_path, name):
    with tarfile.open(tmp_path / name, "w:gz" if name.endswith("gz") else "w") as tar:
        add(tar, "images", kind=tarfile.DIRTYPE)
        add(tar, "link.png", kind=tarfile.SYMTYPE)
        add(tar, "hard.png", kind=tarfile.LNKTYPE)
        add(tar, "device.png", kind=tarfile.CHRTYPE)
        add(tar, "real.png", b"real")
        add(tar, "link.csv", kind=tarfile.SYMTYPE)
    archive = only(tmp_path / name)
    refused = [(f"{kind}.png", LINK) for kind in ("link", "hard", "device")]
    found = [(name, data) for name, _, data in contents(archive)]
    assert found == [*refused, ("real.png", b"real")]
    assert archive.skipped == {"other files": 1}
    if name == "a.tar":
        assert expected_inputs(archive) == len(found)


def test_links_in_folders_and_zips_are_not_followed(tmp_path):
    (tmp_path / "secret").write_bytes(b"secret")
    folder = write_folder(tmp_path / "f", {"real.png": b"real"})
    os.symlink(tmp_path / "secret", folder / "link.png")
    os.symlink(tmp_path, folder / "folder.png")
    os.symlink(tmp_path / "gone.tar", folder / "packed.tar")
    os.mkfifo(folder / "pipe.png")
    archive = only(folder)
    names = ["link.png", "packed.tar", "pipe.png"]
    found = [(name, data) for name, _, data in contents(archive)]
    assert found == [*((name, LINK) for name in names), ("real.png", b"real")]
    assert archive.skipped == {"linked folders": 1}
    assert expected_inputs(archive) == len(found)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        info = zipfile.ZipInfo("link.png")
        info.external_attr = 0o120777 << 16
        packed.writestr(info, "/etc/passwd")
    archive = only(tmp_path / "a.zip")
    assert contents(archive) == [("link.png", "link", LINK)]


def test_a_folder_of_links_is_scored_as_errors_and_one_of_linked_folders_refused(tmp_path):
    (tmp_path / "one").mkdir()
    os.symlink("/etc/passwd", tmp_path / "one/x.png")
    before = identify(only(tmp_path / "one"))
    os.symlink("/etc/passwd", tmp_path / "one/y.png")
    assert [data for _, _, data in contents(only(tmp_path / "one"))] == [LINK] * 2
    assert identify(only(tmp_path / "one")) != before
    (tmp_path / "two").mkdir()
    os.symlink(tmp_path / "one", tmp_path / "two/one")
    with pytest.raises(UserError, match=r"0 files, 1 links to folders, which are not followed"):
        find_archives([tmp_path / "two"])
    write_tar(tmp_path / "two/t.tar", MEMBERS)
    kinds = [archive.kind for archive in find_archives([tmp_path / "two"])]
    assert kinds == ["tar", "folder"]


def test_links_are_rows_with_an_error_and_linked_folders_are_said(tmp_path, monkeypatch, capsys):
    write_model(tmp_path / "m.onnx")
    folder = write_folder(tmp_path / "f", pictures(2))
    (folder / "link.png").symlink_to(folder / "00000.png")
    (folder / "more").symlink_to(tmp_path)
    asked = ["score", "--model", tmp_path / "m.onnx", "--out", tmp_path / "out", folder]
    for more in (["--dry-run"], [], []):  # counted, scored, already done
        assert run_cli(monkeypatch, *asked, *more) == 0
        said = capsys.readouterr().out
        assert re.search(r"\b3 (inputs|rows)", said)
        assert "1 links to folders are not followed; name those folders" in said
    found = {row["member"]: row for row in rows(tmp_path / "out")}
    assert found["link.png"]["error"] == "a link or device, which is not followed"
    assert found["link.png"]["prob_Normal"] is None
    assert len(found) == 3
