"""serve.score_run, serve.gpus: the processes of a run, one for each GPU, and what they commit."""

import ctypes
import os
import re
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_archives import write_tar
from test_score import config, picture, pictures
from tiny_model import LABELS, SIZE

from serve.decode import Decoded
from serve.gpus import gpu_count, on_the_others, wanted_gpus
from serve.identity import identify
from serve.score import ScoreConfig, _counts, open_network, run_share, score
from serve.score_folder import UNIT_INPUTS, Columns, ScoreFolder
from serve.score_inputs import find_archives
from serve.score_run import Share, Unit, Work, run_here, shares_of, take_in
from serve.units import Chunk, Input
from shards.codec import encode
from shards.console import RunFailed, UserError


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
    """As on several GPUs, one process for each: this one and another."""
    archive = write_tar(tmp_path / "a.tar", dict.fromkeys(
        (f"{i:05d}.png" for i in range(3 * UNIT_INPUTS + 5)), encode(picture(0, (8, 8)), "png")
    ))  # fmt: skip
    asked = replace(config(tmp_path, archive, out="shared"), csv=None)
    work = work_of(tmp_path, asked)
    with on_the_others(run_share, [(work, asked, 1, Share(1, 2))]):
        run_share(work, asked, 1, Share(0, 2))
    assert work.folder.finished_units() == {(0, unit) for unit in range(4)}
    assert _counts(work) == [(3 * UNIT_INPUTS + 5, 0)]
    (second,) = work.folder.parts.glob("*-000001.parquet")
    second.unlink()  # of a process that died; the archive's end is there
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


def test_a_run_on_two_gpus_is_one_of_two_processes(tmp_path, monkeypatch):
    asked = config(tmp_path, write_tar(tmp_path / "a.tar", pictures(UNIT_INPUTS + 3, (8, 8))))
    begun = []

    def noted(work, arguments):
        begun.extend(arguments)
        return on_the_others(work, arguments)

    monkeypatch.setattr("serve.score.wanted_gpus", lambda gpus, provider: 2)
    monkeypatch.setattr("serve.score.on_the_others", noted)
    assert score(asked).scored == UNIT_INPUTS + 3
    assert [share for *_, share in begun] == [Share(1, 2)]


@pytest.mark.parametrize(
    ("limit", "committed", "count", "left"),
    [(None, 0, 1, 8), (6, 0, 1, 6), (99, 2, 1, 6), (None, 2, 2, 3), (None, 9, 1, 0)],
)
def test_the_bar_knows_how_much_is_left(tmp_path, limit, committed, count, left):
    archives = [write_tar(tmp_path / f"{i}.tar", pictures(4, (8, 8))) for i in range(2)]
    work = work_of(tmp_path, replace(config(tmp_path, archives[0]), archives=tuple(archives)))
    work = replace(work, limit=limit, committed=committed)
    assert work.expected(Share(0, count)) == left


@pytest.mark.parametrize(("count", "said"), [(1, "img/s"), (2, "img/s on one of 2 GPUs")])
def test_the_bar_says_whose_speed_it_shows(tmp_path, monkeypatch, count, said):
    asked = config(tmp_path, write_tar(tmp_path / "a.tar", pictures(3, (8, 8))))
    notes = []

    @contextmanager
    def bar(what, total, shown):
        yield lambda n, note: notes.append(note)

    monkeypatch.setattr("serve.score_run.progress", bar)
    run_here(work_of(tmp_path, asked), open_network(asked), 1, Share(0, count))
    assert notes
    assert all(re.fullmatch(rf"\d+ {said}", note) for note in notes)


def _fail(number: int) -> None:
    if number:
        raise UserError("no such GPU")


def test_a_failing_process_fails_the_run(capfd):
    with (
        pytest.raises(RunFailed, match="the process of GPU 2 ended with status 2"),
        on_the_others(_fail, [(0,), (1,)]),
    ):
        pass
    assert "error: no such GPU" in capfd.readouterr().err


def _note(path: Path, seconds: float) -> None:
    time.sleep(seconds)
    path.write_text(os.environ["CUDA_VISIBLE_DEVICES"])


@pytest.mark.parametrize(
    ("visible", "seen"),
    [(None, "12"), ("", "12"), ("5,GPU-8932f937,3,4", ["GPU-8932f937", "3"])],
)
def test_a_process_sees_its_gpu_alone(tmp_path, monkeypatch, visible, seen):
    """Else each would also take memory of the first, where a thread begins."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    paths = [tmp_path / "1", tmp_path / "2"]
    with on_the_others(_note, [(path, 0.0) for path in paths]):
        pass
    assert [path.read_text() for path in paths] == list(seen)
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == visible


def test_what_fails_here_leaves_the_others_to_their_end(tmp_path):
    with pytest.raises(RunFailed, match="here"), on_the_others(_note, [(tmp_path / "1", 0.5)]):
        raise RunFailed("here")
    assert (tmp_path / "1").exists()


def test_ctrl_c_ends_the_others(tmp_path):
    with pytest.raises(KeyboardInterrupt), on_the_others(_note, [(tmp_path / "1", 60.0)]):
        raise KeyboardInterrupt
    assert not (tmp_path / "1").exists()


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
