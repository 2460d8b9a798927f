"""16-bit images that declare no depth, scored: as ingested, as told, or not at all."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from deep_images import picture, png
from ingest_runs import config as ingest_config
from tiny_model import LABELS, model_info, write_model
from tiny_run import small_densenet, stand_in
from tiny_training import CONFIG, COVID

from ingest.encode import EncodeConfig, Rejected, encode_image
from ingest.run import ingest
from ingest.sources.folders import Folders, FoldersConfig
from serve.decode import decode_images
from serve.dry_run import DryRun
from serve.explain.command import ExplainConfig, explain
from serve.inspect import describe
from serve.model_info import from_metadata, to_metadata
from serve.score import ScoreConfig, score
from serve.score_folder import ScoreFolder
from shards.codec import decode_grey
from shards.console import RunFailed, UserError
from shards.manifest import Manifest, load_manifest, shard_path
from shards.preprocess import resize
from train.loop import Trainer
from train.runs import _read_spec, save_model

BITS = {"a/0.png": 12, "a/1.png": 11, "b/2.png": 10, "b/3.png": 12}


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    for i, (name, bits) in enumerate(BITS.items()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(picture(bits, seed=i)))
    return folder


def request(raw: Path, depth: int | None = None, **options) -> ScoreConfig:
    """depth: that the model's metadata have."""
    model = raw.parent / f"{depth}.onnx"
    write_model(model, metadata=to_metadata(model_info(depth=depth)))
    base = ScoreConfig(model, raw.parent / "out", (raw,), "cpu", workers=1, threads=1)
    return replace(base, **options)


def scored(config: ScoreConfig) -> dict[str, tuple]:
    """Member -> probabilities and error."""
    score(config)
    rows = ScoreFolder(config.out).read().to_pylist()
    names = [f"prob_{label}" for label in LABELS]
    return {r["member"]: (*(r[n] for n in names), r["error"]) for r in rows}


def test_raw_files_and_their_shards_have_the_same_scores(raw: Path):
    source = Folders(FoldersConfig(raw, name="deep"))
    out = raw.parent / "shards"
    manifest = ingest(source, ingest_config(out, shorter_side=32, depth=None))
    shards = tuple(shard_path(out / "deep", shard) for shard in manifest.shards)
    told = scored(request(raw, depth=manifest.depth))
    stored = scored(request(raw, out=raw.parent / "of-shards", archives=shards))
    assert len(told) == len(BITS)
    assert sorted(told.values(), key=str) == sorted(stored.values(), key=str)
    assert all(row[-1] is None for row in told.values())


def test_a_model_without_a_depth_refuses_what_it_would_have_to_guess(raw: Path):
    (raw / "b/4.png").write_bytes(png(picture(15)))
    (raw / "b/5.png").write_bytes(png(picture(12), b"\x0c"))
    found = scored(request(raw))
    errors = {name: row[-1] for name, row in found.items()}
    said = "16-bit image without a declared depth uses {} bits, of how many is not known: give "
    assert errors == {
        "a/0.png": said.format(12) + "--depth 12, 14 or 16",
        "a/1.png": said.format(11) + "--depth 12, 14 or 16",
        "b/2.png": said.format(10) + "--depth 10, 12, 14 or 16",
        "b/3.png": said.format(12) + "--depth 12, 14 or 16",
        "b/4.png": None,
        "b/5.png": None,
    }


def test_a_dry_run_tells_why_images_cannot_be_scored(raw: Path):
    found = score(request(raw, dry_run=True))
    assert isinstance(found, DryRun)
    assert found.lines()[2].startswith("4 of the first 4 images cannot be scored: 16-bit image")
    found = score(request(raw, dry_run=True, depth=12))
    assert isinstance(found, DryRun)
    assert found.refused is None


def test_the_option_goes_before_the_model_and_belongs_to_the_request(raw: Path):
    by_model = scored(request(raw, depth=16, out=raw.parent / "model"))
    asked = request(raw, depth=10)
    by_option = scored(replace(asked, depth=16))
    assert by_option == by_model
    assert scored(replace(asked, depth=16)) == by_model  # finished already
    with pytest.raises(UserError, match="another request: depth was 16, now 10"):
        score(asked)
    told = scored(replace(asked, out=raw.parent / "told"))
    assert told["b/2.png"][-1] is None
    assert (
        "uses 12 bits, over the depth of 10: --depth 12, 14 or 16 holds it" in told["a/0.png"][-1]
    )


def test_a_request_of_before_goes_on(raw: Path):
    for name in BITS:
        (raw / name).write_bytes(png(picture(16)))
    asked = request(raw)
    before = scored(asked)
    path = asked.out / "request.json"
    path.write_text(
        json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "depth"})
    )
    assert scored(asked) == before


def test_ingest_and_scoring_have_the_same_pixels(raw: Path):
    """Whatever the depth, in every reader."""
    for depth in (12, 14, 16, None):
        config = EncodeConfig("png", None, depth=depth)
        for name in BITS:
            data = (raw / name).read_bytes()
            encoded, found = encode_image(data, config), decode_images([data], None, 48, depth)
            if isinstance(encoded, Rejected):
                assert found.errors == [encoded.reason]
            else:
                assert np.array_equal(found.images[0], resize(decode_grey(encoded.image), 48))


def test_explain_takes_it_from_the_option_the_scores_or_the_model(
    raw: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    one = (raw / "a/0.png",)

    def maps(out: str, of_model: int | None = None, **options) -> np.ndarray:
        stand_in(monkeypatch, small_densenet(), size=32, depth=of_model)
        config = ExplainConfig(Path("run"), raw.parent / out, **{"images": one} | options)
        explain(config)
        (path,) = config.out.glob("*.npy")
        return np.load(path)

    with pytest.raises(RunFailed, match="1 of 1 images could not be read"):
        maps("refused")
    assert "give --depth 12, 14 or 16" in " ".join(capsys.readouterr().err.split())
    known = maps("model", 12)
    assert np.array_equal(maps("option", 14, depth=12), known)
    scored(request(raw, depth=12))
    of_scores = {"images": (raw,), "scores": raw.parent / "out", "limit": 1}
    assert np.array_equal(maps("scores", 14, **of_scores), known)
    assert not np.array_equal(maps("other", 14), known)


def test_a_run_has_that_of_its_data_set(tmp_path: Path):
    manifest = Manifest("deep", LABELS, True, "jph", 1, 32, {}, {}, {}, (), depth=12)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/manifest.json").write_bytes(manifest.to_json())
    assert load_manifest(tmp_path / "deep") == manifest
    trainer = SimpleNamespace(
        manifests=[manifest],
        vocabularies=[manifest.vocabulary],
        at=SimpleNamespace(stage=0),
        config=CONFIG,
        shards=tmp_path,
    )
    spec = Trainer._spec(cast(Trainer, trainer), replace(COVID, dataset="deep"))
    save_model(tmp_path / "run", torch.nn.Linear(1, 1), spec)
    assert _read_spec(tmp_path / "run").depth == 12
    path = tmp_path / "run/model.json"
    older = {k: v for k, v in json.loads(path.read_text()).items() if k != "depth"}
    path.write_text(json.dumps(older))
    assert _read_spec(tmp_path / "run").depth is None


def test_a_model_tells_it(tmp_path: Path):
    entries = to_metadata(model_info(depth=12))
    rows = dict(describe(write_model(tmp_path / "m.onnx", metadata=entries)))
    assert rows["16-bit images"].endswith("else 12 bits, as the training data")
    older = {name: value for name, value in entries.items() if not name.endswith(".depth")}
    assert from_metadata(older, "m").depth is None
    rows = dict(describe(write_model(tmp_path / "older.onnx", metadata=older)))
    assert rows["16-bit images"].endswith("else of serve score --depth")
    with pytest.raises(UserError, match=r"depth must be null or one of \(8, 10, .* found 11"):
        from_metadata(entries | {"cxrstack.depth": "11"}, "m")
