"""serve score: what a dry run says, and requests that cannot be met."""

import errno
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import onnxruntime
import pytest
from test_archives import WRITERS, write_folder, write_tar
from test_score import config, picture, pictures, rows
from tiny_model import foreign_model, write_model

from serve import __main__ as command
from serve import score_folder
from serve.dry_run import DryRun, dry_run, expected_inputs
from serve.opened import open_network
from serve.score import score
from serve.score_folder import UNIT_INPUTS
from serve.score_inputs import find_archives
from serve.score_json import first_difference
from shards import console
from shards.codec import encode
from shards.console import UserError


def run_cli(monkeypatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["serve", *map(str, arguments)])
    try:
        console.run(command.main)
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_a_dry_run_counts_and_writes_nothing(tmp_path):
    path = write_tar(tmp_path / "a.tar", pictures(9) | {"list.csv": b""})
    cut = write_tar(tmp_path / "b.tar", pictures(3))
    cut.write_bytes(cut.read_bytes()[:1000])
    found = score(config(tmp_path, path, cut, dry_run=True))
    assert isinstance(found, DryRun)
    assert (found.archives, found.inputs) == (2, 10)
    assert found.bytes == path.stat().st_size + 1000
    assert found.img_s is not None
    assert any("damaged: " in line and "b.tar" in line for line in found.lines())
    assert not (tmp_path / "out").exists()
    for limit, inputs, damaged in ((9, 9, 0), (10, 10, 1), (99, 10, 1)):
        found = score(config(tmp_path, path, cut, dry_run=True, limit=limit))
        assert (found.inputs, len(found.damaged)) == (inputs, damaged)
    nothing = score(config(tmp_path, cut, dry_run=True))
    assert "expected time: unknown" in nothing.lines()[1]


@pytest.mark.parametrize(
    ("provider", "gpus", "seconds"), [("cpu", 1, 12), ("cuda", 1, 10), ("cuda", 4, 2.5)]
)
def test_what_decodes_and_scores_at_a_time_is_not_added_up(
    tmp_path, monkeypatch, provider, gpus, seconds
):
    """2 s to decode an image and 10 to score one, which on the CPU share the cores."""
    path = write_tar(tmp_path / "a.tar", pictures(4, (8, 8)))
    network = open_network(config(tmp_path, path))
    network.provider = provider
    clock = SimpleNamespace(perf_counter=iter((0, 8, 10, 50)).__next__)  # decoding, then scoring
    monkeypatch.setattr("serve.dry_run.time", clock)
    found = dry_run(find_archives([path]), network, 1, gpus, None)
    assert found.img_s == 1 / seconds


@pytest.mark.parametrize("name", WRITERS)
def test_the_number_of_inputs_is_known_cheaply_or_not_at_all(tmp_path, name):
    path = WRITERS[name](tmp_path / name, pictures(100, (20, 20)) | {"x.csv": b"a"})
    (archive,) = find_archives([path])
    expected = expected_inputs(archive)
    assert (expected is None) == (archive.kind == "compressed tar")
    assert expected is None or expected == pytest.approx(100, abs=8)


BAD = {
    "not an ONNX file": (["--model", "a.tar"], "is not an ONNX model"),
    "no model": (["--model", "none.onnx"], "no model at"),
    "no metadata": (["--model", "f.onnx"], "no cxrstack"),
    "no archive": (["none.tar"], "no archive at none.tar"),
    "an unknown protocol": (["nonsense://x/a.tar"], "the protocol nonsense is not known"),
    "an empty path": (["--out", ""], "an empty path"),
    "scores among the images": (["images", "--out", "images/out"], "images, which is scored"),
    "a CSV among the images": (["images", "--csv", "images/rows.csv"], "images, which is scored"),
    "a file as folder": (["--out", "a.tar"], "--out names a folder"),
    "links in a circle as folder": (["--out", "circle"], "circle is a link that leads nowhere"),
    "a URL as folder": (["--out", "s3://bucket/x"], "allowed: a path on this machine"),
    "no such provider": (["--provider", "cuda"], "provider cuda needs"),
    "no TensorRT": (["--provider", "tensorrt"], "provider tensorrt needs"),
    "GPUs on the CPU": (["--gpus", "2"], "--gpus is for --provider cuda"),
    "GPUs of a cluster": (["--gpus", "2", "--engine", "ray"], "--gpus is for --provider cuda"),
    "fp16 on the CPU": (["--fp16"], "--fp16 is for --provider tensorrt"),
    "an address without Ray": (["--ray-address", "h:1"], "needs --engine ray"),
    "no cluster": (["--engine", "ray", "--ray-address", "127.0.0.1:9"], "no Ray cluster at"),
    "text as number": (["--batch", "many"], "--batch"),
}


@pytest.mark.parametrize("name", BAD)
def test_each_bad_request_is_one_line_and_status_2(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    options, message = BAD[name]
    write_model(tmp_path / "m.onnx")
    foreign_model(tmp_path / "f.onnx", channels=3)
    write_tar(tmp_path / "a.tar", pictures(1))
    write_folder(tmp_path / "images", pictures(1))
    (tmp_path / "circle").symlink_to("circle")
    given = ["--model", "m.onnx", "--out", "out", "a.tar", "--provider", "cpu"]
    if name == "no archive" or "protocol" in name or "images" in name:
        given.remove("a.tar")
    assert run_cli(monkeypatch, "score", *given, *options) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert re.search(message, err)
    assert not (tmp_path / "out/scores.json").exists()


def test_links_in_a_circle_leave_no_trace(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "rows.csv").symlink_to("rows.csv")
    write_folder(tmp_path / "images", pictures(1))
    given = ["score", "--model", write_model(tmp_path / "m.onnx"), "--provider", "cpu", "images"]
    assert run_cli(monkeypatch, *given, "--out", "circle/out") == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert run_cli(monkeypatch, *given, "--out", "out", "--csv", "rows.csv") == 0


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_no_space_and_no_permission_lose_nothing(tmp_path, monkeypatch, capsys, number):
    """Told in one line; the same command goes on from the units that are there."""
    good = encode(picture(0, (8, 8)), "png")
    members = {f"{i:05d}.png": good for i in range(2 * UNIT_INPUTS + 3)}
    archive = write_tar(tmp_path / "a.tar", members)
    asked = config(tmp_path, archive)
    real, written = score_folder.write_atomic, []

    def full(path: Path, data: bytes) -> None:
        written.append(path)
        if len([p for p in written if p.suffix == ".parquet"]) == 2:
            raise OSError(number, "no more", str(path))
        real(path, data)

    monkeypatch.setattr(score_folder, "write_atomic", full)
    given = ["--model", asked.model, "--out", asked.out, archive, "--provider", "cpu"]
    given += ["--batch", 8, "--workers", 1]
    assert run_cli(monkeypatch, "score", *given) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "the same command goes on" in err
    assert len(list((tmp_path / "out/parts").glob("*.parquet"))) == 1
    monkeypatch.setattr(score_folder, "write_atomic", real)
    assert run_cli(monkeypatch, "score", *given) == 0
    assert len(rows(tmp_path / "out")) == len(members)


def test_folders_of_images_and_what_is_no_score_folder(tmp_path):
    folder = write_folder(tmp_path / "f", pictures(2))
    (tmp_path / "out/parts").mkdir(parents=True)
    (tmp_path / "out/parts/part-00000-000000.parquet").write_bytes(b"")
    with pytest.raises(UserError, match="holds scores without request"):
        score(config(tmp_path, folder))


def test_the_first_difference_is_shown():
    same = [{"path": "x" * 300, "bytes": 1}] * 40
    other = [*same[:30], {"path": "x" * 299 + "y", "bytes": 1}, *same[31:]]
    said = first_difference(same, other, "archives")
    assert said.startswith("archives[30].path was ...xxx")
    assert 'x", now ...' in said
    assert said.endswith('xy"')
    assert first_difference(same, same[:3], "archives") == "archives was 40 long, now 3"
    assert first_difference(None, {"a": 1}, "foreign") == 'foreign was null, now {"a": 1}'
    assert first_difference({"a": 1}, {"a": True, "b": 2}, "x") == "x.b was null, now 2"
