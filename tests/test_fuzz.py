"""Ingest under fire: damaged and hostile image files.

200 image files through the workers in `make test`; in `make soak` twice 2,000 through a whole
ingest (drawn ones, and real ones where they are).
"""

import hashlib
import os
import resource
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from fuzz import Input, damaged, inputs, sound_files

from ingest.config import IngestConfig
from ingest.encode import EncodeConfig, Encoded, Rejected, encode_image, pixel_hash
from ingest.engines import CRASHED, Job, LocalEngine
from ingest.files import archive_images
from ingest.record import Record
from ingest.run import ingest
from ingest.sources.folders import Folders, FoldersConfig
from shards.codec import decode_grey
from shards.reader import read_split
from shards.verify import verify_dataset

COUNT, LONG = 200, 2000
MAX_REASON = 300  # characters
_KIB = 1 << 20  # of a GiB, as ru_maxrss counts
_CONFIG = EncodeConfig("htj2k", None)


def encode_within_memory(data: bytes) -> Encoded | Rejected:
    """encode_image, in a worker that never held more than 1 GiB."""
    outcome = encode_image(data, _CONFIG)
    if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > _KIB:
        raise MemoryError("a worker held more than 1 GiB")
    return outcome


def run(cases: list[Input]) -> list[Encoded | Rejected]:
    """The outcomes, and that there is one for each, in order."""
    with LocalEngine(2, encode_within_memory) as engine:
        jobs = (Job(case.name, "", case.data) for case in cases)
        results = list(engine.map(jobs))
    assert [job.location for job, _ in results] == [case.name for case in cases]
    return [outcome for _, outcome in results]


def check(case: Input, outcome: Encoded | Rejected) -> None:
    """What is kept holds the very pixels; what is not has a reason that fits a table's cell."""
    expected = {"kept": Encoded, "quarantined": Rejected}.get(case.expected, object)
    assert isinstance(outcome, expected), (case.name, outcome)
    if isinstance(outcome, Rejected):
        assert outcome.reason, case.name
        assert outcome.reason.isprintable(), case.name
        assert len(outcome.reason) < MAX_REASON, case.name
        return
    pixels = decode_grey(outcome.image)
    assert pixel_hash(pixels) == outcome.pixel_sha256, case.name
    assert pixels.shape == (outcome.height, outcome.width), case.name
    if case.grey is not None:
        assert np.array_equal(pixels, case.grey), case.name


def test_image_files():
    cases = list(inputs(0, COUNT))
    assert len(cases) == COUNT
    for case, outcome in zip(cases, run(cases)):
        check(case, outcome)


def test_real_image_files(shared_data: Path):
    sound: dict[str, tuple[bytes, np.ndarray | None]] = {}
    for image in archive_images(shared_data / "chestxray14" / "images_001.tar.gz"):
        sound[f"png {image.location}"] = image.read(), None
        if len(sound) == 3:
            break
    photos = sorted((shared_data / "covid-chestxray-dataset" / "images").iterdir())
    sound |= {path.name: (path.read_bytes(), None) for path in photos[:4]}
    cases = list(damaged(with_pixels(sound), 0, COUNT // 8))
    for case, outcome in zip(cases, run(cases)):
        check(case, outcome)


def with_pixels(
    sound: dict[str, tuple[bytes, np.ndarray | None]],
) -> dict[str, tuple[bytes, np.ndarray | None]]:
    """The sound files with the pixels that they give."""
    whole = [Input(name, data, "kept") for name, (data, _) in sound.items()]
    found = {}
    for case, outcome in zip(whole, run(whole)):
        check(case, outcome)
        assert isinstance(outcome, Encoded)
        found[case.name] = case.data, decode_grey(outcome.image)
    return found


NAMES = [
    "{}",
    " {} ",
    "dots.in.{}",
    "R\u00f6ntgen-\u80f8\u90e8 {}",
    "-rf {}",
    "{}.tar.gz",
    "{}\udcff",
    "a\nb {}",
]
SUFFIXES = [".png", ".jpg", ".jpeg", ".tif", ".bmp", ".gif", ".webp", ".jp2", ".pgm", ".PNG"]


def lay_out(root: Path, cases: list[Input]) -> dict[str, Input]:
    """Files in two class folders, under odd names and wrong extensions; the name in the tables ->
    the case. Beside them what is no file: dangling links, a loop, folders called like images."""
    found = {}
    rng = np.random.default_rng(0)
    for number, case in enumerate(cases):
        stem = NAMES[rng.integers(len(NAMES))].format(number)
        location = f"{'ab'[number % 2]}/{stem}{SUFFIXES[rng.integers(len(SUFFIXES))]}"
        path = root / location
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(case.data)
        found[Record(location, "k", ()).file] = case
    (root / "a/gone.png").symlink_to(root / "nowhere.png")
    (root / "a/loop.png").symlink_to(root / "a/loop.png")
    (root / "a/around").symlink_to(root)
    (root / "b/folder.png").mkdir()
    (root / "b/passwd.png").symlink_to("/etc/passwd")
    found["b/passwd.png"] = Input("link", b"", "quarantined")
    return found


def ingest_and_check(root: Path, cases: list[Input], out: Path) -> None:
    """Every input ends in a shard, with its own pixels and label, or in quarantine, once."""
    expected = lay_out(root, cases)
    config = IngestConfig(
        out,
        shorter_side=0,
        workers=2,
        progress=False,
        max_bad=1.0,
        on_duplicate="keep",
        near_duplicate="keep",
    )
    manifest = ingest(Folders(FoldersConfig(root)), config)
    folder = out / "folders"
    assert verify_dataset(folder, lambda _: None) == []
    samples = {
        s.meta.file: s for name in manifest.splits for s in read_split(folder, manifest, name)
    }
    rows = pq.read_table(folder / "quarantine.parquet").to_pylist()
    bad = {row["member"]: row["reason"] for row in rows}
    assert not samples.keys() & bad.keys()
    assert samples.keys() | bad.keys() == expected.keys()
    assert len(samples) == sum(counts.samples for counts in manifest.splits.values())
    for name, case in expected.items():
        if name in bad:
            check(case, Rejected(bad[name], ""))
            continue
        sample = samples[name]
        assert sample.meta.sha256 == hashlib.sha256(case.data).hexdigest()
        assert manifest.vocabulary.decode(sample.labels) == (name[0],)
        assert case.expected != "quarantined", case.name
        if case.grey is not None:
            assert np.array_equal(decode_grey(sample.image), case.grey), case.name


@pytest.mark.soak
def test_two_thousand_files_through_an_ingest(tmp_path: Path):
    ingest_and_check(tmp_path / "src", list(inputs(5, LONG)), tmp_path / "out")


@pytest.mark.soak
def test_two_thousand_damaged_real_files_through_an_ingest(shared_data: Path, tmp_path: Path):
    """Made from the smallest real files of each kind, and one of 1024 x 1024."""
    photos = [p for p in (shared_data / "covid-radiography").rglob("*") if p.suffix != ".xlsx"]
    photos = sorted((p for p in photos if p.is_file()), key=lambda p: p.stat().st_size)
    kinds = [[p for p in photos if (p.suffix == ".png") == png][:8] for png in (True, False)]
    sound = {
        f"{'png' if path.suffix == '.png' else 'photo'} {path.name}": (path.read_bytes(), None)
        for path in [*kinds[0], *kinds[1]]
    }
    for image in archive_images(shared_data / "chestxray14" / "images_001.tar.gz"):
        sound[f"png {image.location}"] = image.read(), None
        break
    cases = list(damaged(with_pixels(sound), 1, LONG))
    assert len(cases) == LONG
    ingest_and_check(tmp_path / "src", cases, tmp_path / "out")


def test_inputs_are_the_same_for_the_same_seed():
    first, second = ([(i.name, i.data) for i in inputs(3, 200)] for _ in range(2))
    assert first == second


def test_a_crash_and_a_hang_reject_one_image_each():
    names = ["sound", "crash", "sound", "hang", "sound"]
    with LocalEngine(2, misbehave, seconds=8) as engine:  # of which the imports take some
        results = list(engine.map(Job(name, "", name.encode()) for name in names))
    reasons = [out.reason if isinstance(out, Rejected) else "" for _, out in results]
    assert reasons == ["", CRASHED, "", CRASHED, ""]


def misbehave(data: bytes) -> Encoded | Rejected:
    if data == b"crash":
        os.abort()
    while data == b"hang":
        pass
    return encode_image(sound_files(0)["png grey"][0], _CONFIG)
