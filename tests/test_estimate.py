"""ingest.estimate: the counts that the ingest then has, and nothing written."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from ingest.config import IngestConfig
from ingest.estimate import estimate, print_estimate
from ingest.files import archive_images
from ingest.run import ingest
from ingest.selection import SelectionConfig, select
from ingest.sources.chestxray14 import ChestXray14, ChestXray14Config
from ingest.sources.covid_radiography import CovidRadiography, CovidRadiographyConfig
from shards.console import RunFailed, UserError
from shards.manifest import load_manifest


def config(out: Path) -> IngestConfig:
    return IngestConfig(out, shorter_side=128, workers=2, progress=False, dry_run=True)


def test_it_foretells_the_run(tiny_raw: Path, tmp_path: Path, tiny_shards: Path, capsys):
    source = ChestXray14(ChestXray14Config(tiny_raw / "chestxray14"))
    found = estimate(source, config(tmp_path))
    assert not list(tmp_path.iterdir())
    manifest = load_manifest(tiny_shards / "chestxray14")
    assert sum(found.images.values()) == 48  # one of them is damaged, which the run finds out
    for label in manifest.labels:
        run = sum(counts.labels[label] for counts in manifest.splits.values())
        assert 0 <= sum(found.labels[label].values()) - run <= 1
    size = sum(shard.bytes for shard in manifest.shards)
    assert 0.8 < found.bytes / size < 1.3
    assert found.measured >= 30
    assert found.seconds > 0
    print_estimate(found)
    assert f"expected: {found.bytes / 1e6:.1f} MB" in capsys.readouterr().out


def test_a_partial_download(tiny_raw: Path, tmp_path: Path, capsys):
    src = Path(shutil.copytree(tiny_raw / "chestxray14", tmp_path / "src"))
    whole = estimate(ChestXray14(ChestXray14Config(src)), config(tmp_path))
    for archive in sorted(src.glob("*.tar.gz")):
        names = [image.location for image in archive_images(archive)][:9]
        (src / "images").mkdir(exist_ok=True)
        for image in archive_images(archive):
            if image.location in names:
                (src / "images" / image.location).write_bytes(image.read())
        archive.unlink()
    found = estimate(ChestXray14(ChestXray14Config(src)), config(tmp_path))
    assert found.missing
    assert found.missing.startswith("30 of the table's 48 images")
    assert found.bytes == pytest.approx(whole.bytes * 18 / 48, rel=0.2)
    print_estimate(found)
    assert "the run needs --allow-missing" in " ".join(capsys.readouterr().out.split())
    allowed = replace(config(tmp_path), allow_missing=True)
    print_estimate(estimate(ChestXray14(ChestXray14Config(src)), allowed))
    said = " ".join(capsys.readouterr().out.split())
    assert "missing, though counted above: 30 of" in said
    assert "--allow-missing" not in said


def test_caps_and_exclusions(tiny_raw: Path, tmp_path: Path):
    raw = tiny_raw / "covid-radiography"
    selection = SelectionConfig(test_per_class=3, cap_per_class=8, exclude=raw / "exclude.txt")
    source = select(CovidRadiography(CovidRadiographyConfig(raw)), selection)
    found = estimate(source, config(tmp_path))
    manifest = ingest(source, config(tmp_path))
    assert {split: counts.samples for split, counts in manifest.splits.items()} == found.images
    assert found.excluded["in the exclusion list"] == 1
    assert found.excluded["over the cap per class"] > 0


def test_what_the_run_would_refuse(tiny_raw: Path, tmp_path: Path):
    raw = tiny_raw / "covid-radiography"
    with pytest.raises(UserError, match="--test-per-class"):
        estimate(CovidRadiography(CovidRadiographyConfig(raw)), config(tmp_path))


def test_images_that_do_not_decode(tmp_path: Path):
    for folder in ("COVID-19", "NORMAL", "Viral Pneumonia"):
        (tmp_path / "raw" / folder).mkdir(parents=True)
        for i in range(3):
            (tmp_path / f"raw/{folder}/{i}.png").write_bytes(b"")
    source = CovidRadiography(CovidRadiographyConfig(tmp_path / "raw"))
    few = select(source, SelectionConfig(test_per_class=1))
    with pytest.raises(RunFailed, match="none of the first images"):
        print_estimate(estimate(few, config(tmp_path / "out")))
