"""What comes out beside the rows, models of strangers, and requests that cannot be met."""

import ctypes
import errno
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from PIL import Image
from test_archives import WRITERS, write_folder, write_tar
from test_score import config, picture, pictures, rows
from tiny_model import LABELS, SIZE, model_info, write_model

from serve import __main__ as command
from serve import score_folder
from serve.archives import identify
from serve.decode import Decoded
from serve.dry_run import DryRun, expected_inputs
from serve.gpus import gpu_count, run_on_each, wanted_gpus
from serve.model_info import to_metadata
from serve.score import ScoreConfig, _counts, open_network, run_share, score
from serve.score_folder import UNIT_INPUTS, Columns, ScoreFolder
from serve.score_inputs import find_archives
from serve.score_run import Share, Unit, Work, run_here, shares_of, take_in
from serve.summary import HISTOGRAM_FILE, SHEET_FILE, SummaryConfig, summary
from serve.units import Chunk, Input
from shards import console
from shards.codec import encode
from shards.console import RunFailed, UserError
from shards.preprocess import prepare


def run_cli(monkeypatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["serve", *map(str, arguments)])
    try:
        console.run(command.main)
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


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
    sheet = np.asarray(Image.open(tmp_path / "out" / SHEET_FILE))
    best = max(rows(tmp_path / "out"), key=lambda row: row["prob_COVID-19"] or 0)
    number = int(best["member"][:5])
    if number % 3 != 2:  # JPEG loses something
        assert (sheet[8 + 34 :][:192, 8:200] == prepare(picture(number, (64, 64)), None, 192)).all()


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


def test_a_dry_run_counts_and_writes_nothing(tmp_path):
    path = write_tar(tmp_path / "a.tar", pictures(9) | {"list.csv": b""})
    cut = write_tar(tmp_path / "b.tar", pictures(3))
    cut.write_bytes(cut.read_bytes()[:1000])
    found = score(config(tmp_path, path, cut, dry_run=True))
    assert isinstance(found, DryRun)
    assert (found.archives, found.inputs) == (2, 10)
    assert found.img_s is not None
    assert any("damaged: " in line and "b.tar" in line for line in found.lines())
    assert not (tmp_path / "out").exists()
    for limit, inputs, damaged in ((9, 9, 0), (10, 10, 1), (99, 10, 1)):
        found = score(config(tmp_path, path, cut, dry_run=True, limit=limit))
        assert (found.inputs, len(found.damaged)) == (inputs, damaged)
    nothing = score(config(tmp_path, cut, dry_run=True))
    assert "expected time: unknown" in nothing.lines()[1]


@pytest.mark.parametrize("name", WRITERS)
def test_the_number_of_inputs_is_known_cheaply_or_not_at_all(tmp_path, name):
    path = WRITERS[name](tmp_path / name, pictures(100, (20, 20)) | {"x.csv": b"a"})
    (archive,) = find_archives([path])
    expected = expected_inputs(archive)
    assert (expected is None) == (archive.kind == "compressed tar")
    assert expected is None or expected == pytest.approx(100, abs=8)


def foreign_model(path: Path, *, channels: int, kind: int = TensorProto.FLOAT) -> Path:
    """Images -> the mean of each corner block, as three raw outputs; nothing of ours in it."""
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("GlobalAveragePool", ["f"], ["mean"]),
        helper.make_node("ReduceMean", ["mean"], ["one"], axes=[1, 2, 3], keepdims=1),
        helper.make_node("Flatten", ["one"], ["flat"]),
        helper.make_node("Concat", ["flat", "flat", "flat"], ["y"], axis=1),
    ]
    x = helper.make_tensor_value_info("x", kind, ["n", channels, "h", "w"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])
    graph = helper.make_graph(nodes, "foreign", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


def test_a_model_without_metadata_is_used_as_said_and_says_so(tmp_path, capsys):
    model = foreign_model(tmp_path / "f.onnx", channels=3)
    path = write_tar(tmp_path / "a.tar", {"x.png": encode(picture(0), "png")})
    said = {"model": model, "labels": "A,B,C", "size": 16}
    score(config(tmp_path, path, **said, normalise="0-1"))
    assert "says nothing of itself" in capsys.readouterr().err
    mean = prepare(picture(0), None, 16).mean() / 255
    assert rows(tmp_path / "out")[0]["prob_B"] == pytest.approx(mean, abs=1e-5)
    score(config(tmp_path, path, **said, outputs="sigmoid", out="two"))
    grey = (mean - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    expected = 1 / (1 + np.exp(-grey.mean()))
    assert rows(tmp_path / "two")[0]["prob_C"] == pytest.approx(expected, abs=1e-5)
    assert score(config(tmp_path, path, **said, outputs="sigmoid", out="two")).already_done
    with pytest.raises(UserError, match=r'foreign\.normalise was "0-1", now "imagenet"; use'):
        score(config(tmp_path, path, **said))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "no cxrstack"),
        ({"labels": "A,B,C"}, "--labels and --size go together"),
        ({"normalise": "xrv"}, "--labels and --size go together"),
        ({"outputs": "sigmoid"}, "--labels and --size go together"),
        ({"labels": "A,,C", "size": 16}, "different names"),
        ({"labels": "A,B", "size": 16}, "has 3 outputs, --labels names 2"),
        ({"labels": "A,B,C", "size": 0}, "allowed: 1 to"),
    ],
)
def test_what_is_said_of_a_model_has_to_fit(tmp_path, changes, message):
    model = foreign_model(tmp_path / "f.onnx", channels=3)
    path = write_tar(tmp_path / "a.tar", pictures(1))
    with pytest.raises(UserError, match=message):
        score(config(tmp_path, path, model=model, **changes))


def test_outputs_that_are_no_probabilities_are_told(tmp_path):
    model = foreign_model(tmp_path / "f.onnx", channels=1)
    path = write_tar(tmp_path / "a.tar", pictures(1))
    with pytest.raises(RunFailed, match=r"no probabilities.*--outputs sigmoid"):
        score(config(tmp_path, path, model=model, labels="A,B,C", size=16, normalise="xrv"))


def test_a_model_of_ours_is_not_overruled(tmp_path):
    path = write_tar(tmp_path / "a.tar", pictures(1))
    with pytest.raises(UserError, match="says its labels and size itself"):
        score(config(tmp_path, path, labels="A,B,C", size=16))
    for changes in (
        {"labels": "A,B,C"},
        {"size": 16},
        {"normalise": "xrv"},
        {"outputs": "softmax"},
    ):
        with pytest.raises(UserError, match="leave all out for one of python -m serve export"):
            score(config(tmp_path, path, **changes))


def test_a_model_of_one_channel_is_not_normalised_as_three(tmp_path):
    model = foreign_model(tmp_path / "f.onnx", channels=1)
    path = write_tar(tmp_path / "a.tar", pictures(1))
    said = {"model": model, "labels": "A,B,C", "size": 16}
    for normalise in (None, "imagenet"):
        with pytest.raises(UserError, match=r"one channel.*say --normalise 0-1, xrv or none"):
            score(config(tmp_path, path, **said, normalise=normalise))
    assert score(config(tmp_path, path, **said, normalise="0-1")).scored == 1


def test_of_several_outputs_it_is_said_which_is_taken(tmp_path, capsys):
    model = onnx.load(foreign_model(tmp_path / "f.onnx", channels=3))
    model.graph.output.append(helper.make_tensor_value_info("mean", TensorProto.FLOAT, None))
    onnx.save(model, tmp_path / "f.onnx")
    path = write_tar(tmp_path / "a.tar", pictures(1))
    said = {"model": tmp_path / "f.onnx", "labels": "A,B,C", "size": 16, "outputs": "sigmoid"}
    score(config(tmp_path, path, **said))
    told = " ".join(capsys.readouterr().err.split())
    assert "its first output, y, not mean, as sigmoid" in told


def work_of(tmp_path: Path, asked: ScoreConfig) -> Work:
    archives = find_archives(asked.archives)
    folder = ScoreFolder(asked.out)
    with folder.locked():
        folder.begin({})
    identities = [identify(archive).to_dict() for archive in archives]
    columns = Columns(LABELS, True, "0", 1)
    names = [archive.path.name for archive in archives]
    return Work(archives, names, identities, folder, columns, None, False)


def test_processes_share_the_units_and_write_the_rows_of_one(tmp_path):
    """As on several GPUs, one process for each."""
    archive = write_tar(tmp_path / "a.tar", dict.fromkeys(
        (f"{i:05d}.png" for i in range(3 * UNIT_INPUTS + 5)), encode(picture(0, (8, 8)), "png")
    ))  # fmt: skip
    asked = config(tmp_path, archive, out="shared")
    work = work_of(tmp_path, asked)
    run_on_each(run_share, [(work, replace(asked, csv=None), 1, Share(i, 2)) for i in range(2)])
    assert work.folder.finished_units() == {(0, unit) for unit in range(4)}
    assert _counts(work) == [(3 * UNIT_INPUTS + 5, 0)]
    work.folder.part_paths()[1].unlink()  # of a process that died; the archive's end is there
    assert next(task.tag[1].unit for task in work.tasks(Share()) if task.images) == 1


@given(st.integers(1, 9), st.integers(0, 90), st.integers(0, 40), st.none() | st.just(7))
def test_every_unit_has_one_process(count, archive, unit, limit):
    for archives in (archive + 1, 8 * count):
        shares = shares_of(count, archives, limit)
        assert [share.index for share in shares] == list(range(count))
        assert sum(share.has(archive, unit) for share in shares) == 1


def test_small_archives_are_not_all_of_the_first_process(tmp_path):
    archives = [write_tar(tmp_path / f"{i:02d}.tar", pictures(1, (8, 8))) for i in range(16)]
    work = work_of(tmp_path, replace(config(tmp_path, archives[0]), archives=tuple(archives)))
    for limit in (None, 16):  # whole archives, and unit by unit
        shares = shares_of(2, 16, limit)
        assert [share.whole for share in shares] == [limit is None] * 2
        found = [[t.tag[0] for t in work.tasks(share) if t.images] for share in shares]
        assert found == [list(range(0, 16, 2)), list(range(1, 16, 2))]
        met = [{task.tag[0] for task in work.tasks(share)} for share in shares]
        assert [len(indices) for indices in met] == ([8, 8] if limit is None else [16, 16])


@pytest.mark.parametrize("whole", [False, True])
def test_of_several_processes_one_writes_an_archives_end(tmp_path, monkeypatch, whole):
    """Two would write the same temporary file, and one would miss it or leave half of it."""
    archives = [write_tar(tmp_path / f"{i}.tar", pictures(3, (8, 8))) for i in range(3)]
    asked = replace(config(tmp_path, archives[0]), archives=tuple(archives))
    work, network, written = work_of(tmp_path, asked), open_network(asked), []
    write_end = ScoreFolder.write_end

    def noted(self, archive, end):
        written.append(archive)
        write_end(self, archive, end)

    monkeypatch.setattr(ScoreFolder, "write_end", noted)
    run_here(work, network, 1, Share(1, 2, whole))
    assert written == [1]
    run_here(work, network, 1, Share(0, 2, whole))
    assert written == [1, 0, 2]
    assert _counts(work) == [(3, 0)] * 3


def test_what_is_complete_is_committed_when_the_rest_cannot_be_read(tmp_path, monkeypatch):
    archive = write_tar(tmp_path / "a.tar", pictures(9, (8, 8)))
    work = work_of(tmp_path, config(tmp_path, archive))
    network = open_network(config(tmp_path, archive))
    chunks = [Chunk(0, inputs=[Input("x", "x", b"", None)], closes_unit=True)]
    found = Decoded(np.zeros((1, SIZE, SIZE), np.uint8), [None])

    def decoded():
        yield (0, chunks[0]), found
        raise RunFailed("the server is gone")

    monkeypatch.setattr(Unit, "scored", False)  # its batch is under way until somebody waits
    with pytest.raises(RunFailed, match="the server is gone"):
        take_in(work, network, decoded())
    assert work.folder.finished_units() == {(0, 0)}


def _fail(number: int) -> None:
    if number:
        raise UserError("no such GPU")


def test_a_failing_process_fails_the_run(capfd):
    with pytest.raises(RunFailed, match="process 1 of 2 ended with status 2"):
        run_on_each(_fail, [(0,), (1,)])
    assert "error: no such GPU" in capfd.readouterr().err


def driver_of(count: int, status: int = 0) -> SimpleNamespace:
    """Stands for CUDA's driver."""

    def count_into(place) -> int:
        place._obj.value = count
        return status

    return SimpleNamespace(cuInit=lambda flags: status, cuDeviceGetCount=count_into)


def test_gpus_are_counted_and_never_assumed(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver_of(8, status=100))  # no device
    assert gpu_count() == 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,9")  # of 9 the driver knows nothing
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver_of(2))
    assert gpu_count() == wanted_gpus(None, "cuda") == 2
    assert wanted_gpus(1, "cuda") == wanted_gpus(None, "cpu") == 1
    with pytest.raises(UserError, match="--gpus 3; this machine has 2"):
        wanted_gpus(3, "cuda")
    with pytest.raises(UserError, match="this run is on the CPU"):
        wanted_gpus(1, "cpu")


@pytest.mark.parametrize("provider", ["cpu", "auto"])
def test_gpus_of_a_run_on_the_cpu_are_refused_before_anything_is_written(
    tmp_path, monkeypatch, provider
):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    asked = config(tmp_path, write_tar(tmp_path / "a.tar", pictures(1)), gpus=2, provider=provider)
    with pytest.raises(UserError, match="--gpus is for"):
        score(asked)
    assert not asked.out.exists()


def test_half_precision_is_of_the_request_and_said(tmp_path, monkeypatch):
    """A run that stopped does not go on in another precision than it began."""
    asked = config(tmp_path, write_tar(tmp_path / "a.tar", pictures(3)), provider="cpu")
    network = open_network(asked)
    monkeypatch.setattr("serve.score.open_network", lambda config: network)
    for fp16 in (False, True):
        on_gpu = replace(asked, provider="tensorrt", fp16=fp16, out=tmp_path / f"out-{fp16}")
        score(on_gpu)
        done = ScoreFolder(on_gpu.out).summary()
        assert done is not None
        assert done["precision"] == ("fp16" if fp16 else "fp32")
        with pytest.raises(UserError, match=r"fp16 was (false, now true|true, now false)"):
            score(replace(on_gpu, fp16=not fp16))


@pytest.mark.gpu
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_gpu_gives_the_scores_of_the_cpu(tmp_path, provider):
    asked = config(tmp_path, write_tar(tmp_path / "a.tar", pictures(1)), provider="cpu")
    images = [picture(i, (16, 16)) for i in range(40)]
    try:
        there = open_network(replace(asked, provider=provider))
    except UserError as error:  # onnxruntime-gpu names TensorRT also where its libraries are not
        pytest.skip(str(error))
    here = open_network(asked)
    for begin in (0, 5, 8, 30):  # the first batch captures a CUDA graph, the others replay it
        part = images[begin : begin + 8]
        np.testing.assert_allclose(there.score(part), here.score(part), atol=1e-3)


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
    given = ["--model", "m.onnx", "--out", "out", "a.tar", "--provider", "cpu"]
    if name == "no archive" or "protocol" in name or "images" in name:
        given.remove("a.tar")
    assert run_cli(monkeypatch, "score", *given, *options) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert re.search(message, err)
    assert not (tmp_path / "out/scores.json").exists()


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
