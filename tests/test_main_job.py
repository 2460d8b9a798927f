"""The whole way through the commands that people type: raw sets -> shards -> model -> report."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from shards.codec import decode_grey
from shards.manifest import load_manifest
from shards.preprocess import resize
from shards.reader import read_split
from train.runs import load_run_model
from train.warp import normalise

COVID = "covid-radiography"
# Toy length: one epoch a phase at 32 pixels, 8x for all classes. The numbers mean nothing.
SETTINGS = (
    "--size 32 --start.kind random --micro-batch 32 --precision fp32 "
    "--stages.0.phases.0.epochs 1 --stages.0.phases.1.epochs 1 "
    "--stages.1.phases.0.epochs 1 --stages.1.phases.1.epochs 1 "
    "--stages.1.phases.2.epochs 1 --stages.1.phases.3.epochs 1 "
    "--stages.1.expansions.2.expansion.rotations 2 "
    "--stages.1.expansions.2.expansion.translations 2"
)


def command(line: str, *more: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m <line>`; it must end well."""
    done = subprocess.run(
        [sys.executable, "-m", *line.split(), *more],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "200"},
    )
    assert done.returncode == 0, f"{line}: {done.stderr}"
    assert "Traceback" not in done.stderr
    return done


def trained(shards: Path, run: Path) -> Path:
    """A run of network C, toy length, with its model exported."""
    settings = f"{SETTINGS} --architecture densenet121"
    command(f"train network-c --shards {shards} --run {run} {settings}")
    command(f"serve export --run {run} --out {run}/model.onnx")
    return run


@pytest.fixture(scope="module")
def run(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tiny_shards, tmp_path_factory.mktemp("run") / "c")


def torch_probabilities(run: Path, shards: Path) -> dict[str, np.ndarray]:
    """File name -> probabilities of the test split, as training evaluates them."""
    model, spec = load_run_model(run)
    folder = shards / COVID
    samples = list(read_split(folder, load_manifest(folder), "test"))
    images = np.stack([resize(decode_grey(sample.image), spec.size) for sample in samples])
    with torch.inference_mode():
        out = torch.sigmoid(model(normalise(torch.from_numpy(images))))
    return dict(zip([file_name(sample.meta.file) for sample in samples], out.numpy()))


def file_name(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def scored_probabilities(out: Path, names: dict[str, str]) -> dict[str, np.ndarray]:
    """File name -> probabilities of a score folder; names: key of a shard -> file name."""
    rows = pq.read_table(out / "parts").to_pylist()
    return {
        names.get(row["key"], file_name(row["member"])): np.array(
            [value for column, value in row.items() if column.startswith("prob_")]
        )
        for row in rows
    }


def test_shards_and_archives_score_as_training_evaluates(
    run: Path, tiny_shards: Path, tiny_raw: Path, tmp_path: Path
):
    expected = torch_probabilities(run, tiny_shards)
    archives = [tiny_shards / COVID / "test", tiny_raw / COVID / "NORMAL"]
    folder = tiny_shards / COVID
    samples = read_split(folder, load_manifest(folder), "test")
    names = {sample.key: file_name(sample.meta.file) for sample in samples}
    for number, archive in enumerate(archives):
        out = tmp_path / str(number)
        command(f"serve score --model {run}/model.onnx --out {out}", str(archive))
        found = scored_probabilities(out, names)
        common = expected.keys() & found.keys()
        # The raw folder holds the test split's three healthy images among the others.
        assert len(common) == (9 if number == 0 else 3)
        for key in common:
            assert np.abs(found[key] - expected[key]).max() < 1e-3


def test_evaluate_explain_and_report(run: Path, tiny_shards: Path, tiny_raw: Path):
    scores = run / "scores"
    test = tiny_shards / COVID / "test"
    command(f"serve score --model {run}/model.onnx --out {scores}", str(test))
    command(
        f"serve evaluate --scores {scores} --labels {tiny_shards / COVID} --out {run}/evaluation"
    )
    metrics = json.loads((run / "evaluation" / "metrics.json").read_bytes())
    result = json.loads((run / "covid" / "result.json").read_bytes())
    assert metrics["evaluated"] == 9
    # ONNX Runtime's accuracy is the one that training measured after its last phase.
    assert metrics["accuracy"]["value"] == pytest.approx(
        result["phases"][-1]["test"]["accuracy"], abs=1e-9
    )
    images = sorted((tiny_raw / COVID / "COVID-19").glob("*.png"))[:2]
    explain = f"serve explain --run {run} --method gradcam --out {run}/maps"
    command(explain, *map(str, images))
    made = [path.name for path in (run / "maps").glob("*.png")]
    assert len(made) == 4  # of two images the strip and the overlay
    assert sum(name.endswith("-overlay.png") for name in made) == 2
    command(f"serve report --run {run} --out {run}/report.html")
    page = (run / "report.html").read_text()
    assert "not a medical device" in page
    assert "SYNTHETIC DATA" in page
    assert "data:image/webp;base64," in page


def test_the_metrics_log_counts_every_copy(run: Path):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == ["chestxray14"] * 2 + ["covid"] * 4
    counts = json.loads((run / "covid" / "result.json").read_bytes())["counts"]
    batches = -(-counts["train"] // 9)
    assert {line["copies"] for line in lines if line["stage"] == "covid"} == {batches * 9 * 8}


@pytest.mark.soak
def test_network_c_on_real_images(shared_data: Path, tmp_path: Path):
    shards = tmp_path / "shards"
    nih = f"ingest chestxray14 --src {shared_data / 'chestxray14'} --out {shards}"
    refused = subprocess.run(
        [sys.executable, "-m", *nih.split()], capture_output=True, text=True, check=False
    )
    assert refused.returncode == 2
    assert "111970 of the table's 112120 images" in refused.stderr
    command(f"{nih} --allow-missing")
    command(f"ingest {COVID} --src {shared_data / COVID} --out {shards} --test-per-class 15")
    command(f"shards verify {shards}")
    run = trained(shards, tmp_path / "run")
    archive = shared_data / "chestxray14" / "images_001.tar.gz"
    command(f"serve score --model {run}/model.onnx --out {tmp_path}/nih", str(archive))
    rows = pq.read_table(tmp_path / "nih" / "parts")
    assert rows.num_rows == 75
    assert rows["error"].null_count == 75
    command(f"serve score --model {run}/model.onnx --out {run}/scores", f"{shards}/{COVID}/test")
    command(
        f"serve evaluate --scores {run}/scores --labels {shards}/{COVID} --out {run}/evaluation"
    )
    command(f"serve report --run {run} --out {run}/report.html")
    metrics = json.loads((run / "evaluation" / "metrics.json").read_bytes())
    assert metrics["evaluated"] == 45
    assert not json.loads((run / "settings.json").read_bytes())["synthetic"]
