"""Scoring under blows: kills, damaged members by the thousand, a machine of a cluster that dies."""

import os
import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from test_archives import WRITERS, write_tar
from test_score import config, picture, rows, start
from tiny_model import write_model

from bench.memory import peak_mb
from serve import score_ray, score_run
from serve.score import score
from serve.score_folder import UNIT_INPUTS, ScoreFolder
from serve.score_ray import score_chunk, score_decoded
from shards.codec import encode
from shards.console import UserError

pytestmark = pytest.mark.soak


@pytest.mark.parametrize("name", ["a.tar", "a.zip"])
def test_a_thousand_damaged_members_are_a_thousand_error_rows(tmp_path, name):
    rng = random.Random(0)
    good = [encode(picture(i, (20, 24)), "png") for i in range(20)]
    members, expected = {}, {}
    for i in range(3000):
        data = good[i % len(good)]
        if i % 3 == 0:
            cut = rng.randrange(len(data) - 12)
            data = rng.choice([data[:cut], rng.randbytes(60), b"", data[:cut] + bytes(20)])
        members[f"{i:05d}.png"] = data
        expected[f"{i:05d}.png"] = i % 3 == 0
    summary = score(config(tmp_path, WRITERS[name](tmp_path / name, members), workers=2))
    assert (summary.rows, summary.errors, summary.scored) == (3000, 1000, 2000)
    found = rows(tmp_path / "out")
    assert {row["member"]: row["error"] is not None for row in found} == expected
    assert all((row["prob_Normal"] is None) == (row["error"] is not None) for row in found)


def test_memory_does_not_grow_with_the_archive(tmp_path):
    """Of what passes through the command's own process; a local tar's bytes do not."""
    image = encode(np.random.default_rng(0).integers(0, 256, (700, 700), np.uint8), "png")
    model, peaks = write_model(tmp_path / "m.onnx"), []
    for count in (150, 450):  # 75 MB and 225 MB
        members = {f"{i:05d}.png": image for i in range(count)}
        archive = WRITERS["a.zip"](tmp_path / f"{count}.zip", members)
        given = ["score", "--model", model, "--out", tmp_path / f"{count}", archive, "--workers", 2]
        peaks.append(peak_mb("serve", [*map(str, given), "--provider", "cpu"]))
        archive.unlink()
    assert peaks[1] < peaks[0] + 60


def test_twenty_kills_end_in_the_rows_of_one_undisturbed_run(tmp_path):
    """At random moments, within a unit, at its commit, and before the first one."""
    write_model(tmp_path / "m.onnx")
    data = encode(picture(0, (20, 24)), "png")
    members = {f"{i:05d}.png": data for i in range(40 * UNIT_INPUTS + 7)}
    members["00700.png"] = data[:50]
    archive = write_tar(tmp_path / "a.tar", members)
    score(config(tmp_path, archive, out="whole"))
    rng = random.Random(1)
    kills, folder = 0, tmp_path / "killed"
    for _ in range(20):
        process = start(tmp_path, "killed", archive)
        before = len(list(folder.glob("parts/part-*.parquet")))
        wait = rng.choice([0, 1, 1, 2])
        while process.poll() is None:
            if len(list(folder.glob("parts/part-*.parquet"))) >= before + wait:
                break
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.02 if wait else 0.8))
        process.kill()
        kills += process.wait() == -signal.SIGKILL
    assert kills == 20
    assert start(tmp_path, "killed", archive).wait() == 0
    assert ScoreFolder(folder).read().equals(ScoreFolder(tmp_path / "whole").read())


@pytest.fixture(scope="module")
def cluster():
    """A Ray cluster on this machine: a head that runs nothing, and a machine with two CPUs."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    utils = pytest.importorskip("ray.cluster_utils")
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    head = {"num_cpus": 0, "object_store_memory": 2**27, "include_dashboard": False}
    made = utils.Cluster(initialize_head=True, head_node_args=head)
    made.add_node(num_cpus=2, object_store_memory=2**27)
    made.wait_for_nodes()
    yield made
    made.shutdown()
    os.environ.pop("PYTHONPATH")
    os.environ.update({} if path is None else {"PYTHONPATH": path})


def archive_of(tmp_path: Path, count: int) -> Path:
    members = {f"{i:05d}.png": encode(picture(i % 50, (20, 24)), "png") for i in range(count)}
    members["00011.png"] = b"damaged"
    return write_tar(tmp_path / "a.tar", members)


def test_a_machine_dies_in_the_middle_and_the_rows_are_the_same(cluster, tmp_path, monkeypatch):
    archive = archive_of(tmp_path, 2 * UNIT_INPUTS + 30)
    asked = config(tmp_path, archive, engine="ray", ray_address=cluster.address)
    score(replace(asked, out=tmp_path / "undisturbed"))
    (victim,) = cluster.worker_nodes
    (raylet,) = victim.all_processes["raylet"]
    add, seen = score_run.Unit.add, []

    def add_and_kill(self, *rest):
        add(self, *rest)
        seen.append(rest)
        if len(seen) == 20:
            family = psutil.Process(raylet.process.pid).children(recursive=True)
            for pid in (raylet.process.pid, *(child.pid for child in family)):
                os.kill(pid, signal.SIGKILL)  # as a power cut: all that is under way is lost
            cluster.add_node(num_cpus=2, object_store_memory=2**27)

    monkeypatch.setattr(score_run.Unit, "add", add_and_kill)
    score(asked)
    assert raylet.process.poll() is not None
    assert rows(tmp_path / "out") == rows(tmp_path / "undisturbed")
    monkeypatch.setattr(score_run.Unit, "add", add)
    score(config(tmp_path, archive, out="local"))
    for one, other in zip(rows(tmp_path / "out"), rows(tmp_path / "local"), strict=True):
        assert one["prob_Normal"] == pytest.approx(other["prob_Normal"], abs=1e-6)
        assert [one[c] for c in ("member", "error")] == [other[c] for c in ("member", "error")]


def test_a_gpu_that_no_machine_has_is_refused_at_once(cluster, tmp_path):
    asked = config(tmp_path, archive_of(tmp_path, 12), engine="ray", provider="cuda")
    with pytest.raises(UserError, match="--provider cuda, but no machine of the Ray cluster has"):
        score(replace(asked, ray_address=cluster.address))


def score_on_cpu(run, wanted, model, config, found):
    """In a worker that was given a GPU which is none."""
    with (config.out / "gpu-processes").open("a") as file:
        file.write(f"{os.getpid()}\n")
    return score_decoded(run, wanted, model, replace(config, provider="cpu"), found)


def test_the_cpus_of_a_cluster_decode_and_its_gpu_scores(cluster, tmp_path, monkeypatch):
    """The GPU's process loads the model once, and decodes nothing."""
    asked = config(tmp_path, archive_of(tmp_path, UNIT_INPUTS + 30), engine="ray")
    asked = replace(asked, ray_address=cluster.address)
    score(replace(asked, out=tmp_path / "on-cpus"))
    monkeypatch.setattr(score_ray, "score_decoded", score_on_cpu)
    machine = cluster.add_node(num_cpus=1, num_gpus=1, object_store_memory=2**27)
    try:
        score(replace(asked, provider="cuda"))
    finally:
        cluster.remove_node(machine)
    assert rows(tmp_path / "out") == rows(tmp_path / "on-cpus")
    processes = (tmp_path / "out/gpu-processes").read_text().split()
    assert len(processes) == UNIT_INPUTS // 8 + 4
    assert len(set(processes)) == 1


def score_chunk_of_cpu(run, wanted, sides, model, config, images):
    assert config.provider == "cpu"
    return score_chunk(run, wanted, sides, model, config, images)


def test_auto_on_a_cluster_is_the_cpu(cluster, tmp_path, monkeypatch):
    """On a machine with a GPU that the task has not been given, CUDA works too."""
    monkeypatch.setattr(score_ray, "score_chunk", score_chunk_of_cpu)
    asked = config(tmp_path, archive_of(tmp_path, 12), engine="ray", provider="auto")
    assert score(replace(asked, ray_address=cluster.address)).provider == "cpu"


def test_without_ray_one_line_names_the_extra(tmp_path, monkeypatch):
    archive = archive_of(tmp_path, 12)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install '\.\[ray\]'"):
        score(config(tmp_path, archive, engine="ray"))
