"""Synthetic images among real ones: marked, counted and told as so many of so many, everywhere."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from tiny_model import model_info

from ingest.merge import MergeConfig, merge
from ingest.resplit import ResplitConfig, resplit
from serve.evaluate import _summary
from serve.metrics import MeasureConfig, measure
from serve.model_card import write_card
from serve.predictions import PredictionTable, join
from serve.report_run import _synthetic
from serve.truth import read_label_table
from shards.manifest import Manifest, SplitCounts, load_manifest
from shards.stats import print_left_out

NIH, COVID = "chestxray14", "covid-radiography"


@pytest.fixture(scope="module")
def sets(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both synthetic sets, of which ChestX-ray14 passes for real."""
    folder = Path(shutil.copytree(tiny_shards, tmp_path_factory.mktemp("both") / "sets"))
    real = replace(load_manifest(folder / NIH), synthetic=False)
    (folder / NIH / "manifest.json").write_bytes(real.to_json())
    lines = ["dataset,source_label,label"]
    for name in (NIH, COVID):
        lines += [f"{name},{one},{one}" for one in load_manifest(folder / name).labels]
    (folder / "map.csv").write_text("\n".join(lines))
    return folder


def merged(sets: Path, out: Path, *names: Path | str, **options) -> Manifest:
    folders = tuple(sets / name for name in names or (NIH, COVID))
    return merge(MergeConfig(folders, map=sets / "map.csv", out=out, progress=False, **options))


def counts(folder: Path, split: str | None = None) -> tuple[int, int]:
    """How many of how many images are of the drawn set, as samples.parquet says."""
    rows = pq.read_table(folder / "samples.parquet").to_pylist()
    sources = [row["source"] for row in rows if split in (None, row["split"])]
    return sources.count(COVID), len(sources)


def test_a_merge_counts_them_and_so_does_a_resplit(sets: Path, tmp_path: Path, capsys):
    manifest = merged(sets, tmp_path)
    drawn, images = counts(tmp_path / "merged")
    assert manifest.synthetic
    assert 0 < drawn < images
    note = f"synthetic: {drawn} of {images} images"
    assert manifest.synthetic_note == note
    assert manifest.notes.count(note) == 1
    print_left_out(manifest)
    assert capsys.readouterr().out.count("synthetic") == 1
    assert merged(sets, tmp_path) == manifest  # finished already
    config = ResplitConfig((tmp_path / "merged",), cap_per_class=5, progress=False)
    ((_, manifest),) = resplit(config)
    fewer, left = counts(tmp_path / "merged")
    assert fewer < drawn
    assert manifest.synthetic_note == f"synthetic: {fewer} of {left} images"
    assert len([note for note in manifest.notes if note.startswith("synthetic")]) == 1


def test_a_merge_of_a_merge_counts_them_too(sets: Path, tmp_path: Path):
    merged(sets, tmp_path)
    other = Path(shutil.copytree(sets / NIH, tmp_path / "other"))
    (other / "manifest.json").write_bytes(
        replace(load_manifest(other), dataset="other", synthetic=False).to_json()
    )
    labels = load_manifest(tmp_path / "merged").labels
    lines = ["dataset,source_label,label"]
    lines += [f"merged,{one},{one}" for one in labels]
    lines += [f"other,{one},{one}" for one in load_manifest(other).labels]
    (tmp_path / "map.csv").write_text("\n".join(lines))
    options = {"map": tmp_path / "map.csv", "progress": False, "name": "all"}
    folders = (tmp_path / "merged", other)
    manifest = merge(MergeConfig(folders, out=tmp_path, on_duplicate="keep", **options))
    drawn, images = counts(tmp_path / "all")
    assert images == counts(tmp_path / "merged")[1] + counts(other)[1]
    assert manifest.synthetic_note == f"synthetic: {drawn} of {images} images"


def test_of_synthetic_sets_alone_all_are_and_of_real_ones_none(sets: Path, tmp_path: Path):
    alone = merged(sets, tmp_path, COVID)
    images = sum(split.samples for split in alone.splits.values())
    assert (alone.synthetic, alone.synthetic_note) == (True, f"synthetic: all {images} images")
    assert not any(note.startswith("synthetic") for note in alone.notes)
    real = merged(sets, tmp_path, NIH, name="real")
    assert (real.synthetic, real.synthetic_note, real.settings.get("synthetic")) == (
        False,
        "",
        None,
    )


def test_where_none_of_the_synthetic_images_stays_none_are(sets: Path, tmp_path: Path):
    text = (sets / "map.csv").read_text()
    lines = [f"{line.rsplit(',', 1)[0]}," if COVID in line else line for line in text.split("\n")]
    (tmp_path / "map.csv").write_text("\n".join(lines))
    folders = (sets / NIH, sets / COVID)
    manifest = merge(MergeConfig(folders, tmp_path / "map.csv", tmp_path / "out", progress=False))
    assert counts(tmp_path / "out/merged")[0] == 0
    assert (manifest.synthetic, manifest.synthetic_note) == (False, "")


def bare(**changes) -> Manifest:
    common = {"labels": ("a", "b"), "exclusive": True, "image_extension": "png", "shards": ()}
    splits = {"train": SplitCounts(4, {}), "test": SplitCounts(3, {})}
    first = {"dataset": "x", "preprocessing_version": 1, "shorter_side": None, "excluded": {}}
    return Manifest(**{**common, **first, "splits": splits, "settings": {}, **changes})


@pytest.mark.parametrize(
    ("changes", "note", "of_x"),
    [
        ({}, "", False),
        ({"synthetic": True}, "synthetic: all 7 images", True),
        (
            {"synthetic": True, "settings": {"merged": {}, "synthetic": ["y"]}},
            "synthetic: all 7 images",
            False,
        ),
        (
            {
                "synthetic": True,
                "settings": {"merged": {}, "synthetic": ["x"]},
                "notes": ("b", "synthetic: 2 of 7 images"),
            },
            "synthetic: 2 of 7 images",
            True,
        ),
        # Merged by a version that noted no more than that some are.
        (
            {"synthetic": True, "settings": {"merged": {}}},
            "synthetic: some or all images",
            None,
        ),
    ],
)
def test_what_a_manifest_says(changes: dict, note: str, of_x: bool | None):
    manifest = bare(**changes)
    assert (manifest.synthetic_note, manifest.is_synthetic("x")) == (note, of_x)


def test_an_evaluation_counts_those_that_it_judged(sets: Path, tmp_path: Path):
    merged(sets, tmp_path)
    truth = read_label_table(tmp_path / "merged", "test")
    assert truth.synthetic is not None
    assert (sum(map(bool, truth.synthetic)), len(truth.keys)) == counts(tmp_path / "merged", "test")
    keys = truth.keys[2:]
    probabilities = np.random.default_rng(0).random((len(keys), len(truth.names)))
    scores = PredictionTable(keys, truth.names, probabilities, (None,) * len(keys))
    found = measure(join(scores, truth), config=MeasureConfig(replicates=0))
    drawn = sum(map(bool, truth.synthetic[2:]))
    assert (found.synthetic, found.synthetic_images) == (True, drawn)
    assert f"synthetic  {drawn} of {len(keys)}, drawn by a program" in _summary(found)
    unknown = replace(truth, synthetic=(None,) * len(truth.keys))
    of_unknown = join(scores, unknown)
    assert (of_unknown.synthetic, of_unknown.synthetic_images) == (True, None)
    real = join(scores, replace(truth, synthetic=(False,) * len(truth.keys)))
    assert (real.synthetic, real.synthetic_images) == (False, 0)
    table = join(scores, replace(truth, synthetic=None))
    assert (table.synthetic, table.synthetic_images) == (False, None)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ("172 of 9000 images", "made-up radiographs (172 of 9000 images of its data set"),
        ("", "made-up radiographs (some or all images of its data set"),
    ],
)
def test_the_model_card_says_how_many(tmp_path: Path, told: str, words: str):
    info = model_info(synthetic_images=told)
    assert words in write_card(info, {}, {}, tmp_path)
    assert "made-up" not in write_card(replace(info, synthetic=False), {}, {}, tmp_path)


def test_the_report_says_how_many_of_which_set():
    data = [{"name": "x", "synthetic": "2 of 7 images"}, {"name": "y", "synthetic": ""}]
    assert _synthetic({"synthetic": True}, data) == ["2 of 7 images of x"]
    assert _synthetic({"synthetic": True}, [{"name": "x", "omitted": "gone"}]) == [
        "some or all images"
    ]
    assert _synthetic({"synthetic": False}, data[1:]) == []
