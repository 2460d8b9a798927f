"""Ingest under fire: damaged and hostile image files, archives and tables.

200 image files through the workers in `make test`; in `make soak` twice 2,000 through a whole
ingest (drawn ones, and real ones where they are), and archives and tables with random damage.
"""

import gzip
import hashlib
import io
import os
import resource
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from fuzz import DAMAGES, Input, damaged, inputs, sound_files

from ingest.config import IngestConfig
from ingest.encode import EncodeConfig, Encoded, Rejected, encode_image, pixel_hash
from ingest.engines import CRASHED, Job, LocalEngine
from ingest.files import archive_images
from ingest.record import Record
from ingest.run import ingest
from ingest.sources.chestxray14 import ChestXray14, ChestXray14Config
from ingest.sources.folders import Folders, FoldersConfig
from shards import console
from shards.codec import decode_grey
from shards.console import RunFailed, UserError
from shards.manifest import load_manifest
from shards.reader import read_split
from shards.verify import verify_dataset

COUNT, LONG = 200, 2000
MAX_REASON = 300  # characters
_KIB = 1 << 20  # of a GiB, as ru_maxrss counts
_CONFIG = EncodeConfig("htj2k", None)
_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position\n"
)


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


@pytest.mark.soak
def test_archives_with_random_damage(tmp_path: Path):
    """One line for the user, or a data set of sound samples: never a part that looks whole."""
    members = image_members()
    sound = {info.name.rsplit("/", 1)[-1]: data for info, data in members}
    whole, table = packed(members), _HEADER + rows(sound)
    kinds = [kind for kind in DAMAGES if kind != "tail"]
    for number in range(40):
        rng = np.random.default_rng([7, number])
        damage = DAMAGES[kinds[number % len(kinds)]]
        inner = gzip.compress(damage(gzip.decompress(whole), rng), 1)
        src = download(tmp_path / str(number), damage(whole, rng) if number % 2 else inner, table)
        message = ingest_all(src, src.parent / "out")
        assert len(message) < 1000
        if not message:
            folder = src.parent / "out/chestxray14"
            manifest = load_manifest(folder)
            assert sum(c.samples for c in manifest.splits.values()) + len(
                pq.read_table(folder / "quarantine.parquet")
            ) + sum(manifest.excluded.get(reason, 0) for reason in _COPIES) == len(sound)


_COPIES = ("duplicate: same bytes", "duplicate: same pixels", "duplicate with other labels")


@pytest.mark.soak
def test_tables_with_random_damage(tmp_path: Path):
    archive = packed(image_members())
    kinds = list(DAMAGES)
    for number in range(40):
        rng = np.random.default_rng([8, number])
        harmed = DAMAGES[kinds[number % len(kinds)]](_TABLE.encode(), rng)
        src = download(tmp_path / str(number), archive, harmed)
        message = ingest_all(src, src.parent / "out", allow_missing=True)
        assert len(message) < 2000
        assert message or (src.parent / "out/chestxray14/manifest.json").is_file()


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


def member(name: str, data: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def packed(
    members: Iterable[tuple[tarfile.TarInfo, bytes]], layout: int = tarfile.GNU_FORMAT
) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=layout) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return gzip.compress(buffer.getvalue(), 1)


def image_members() -> list[tuple[tarfile.TarInfo, bytes]]:
    files = [case for case in inputs(1, 30) if case.expected == "kept"]
    return [member(f"images/{i:08d}_000.png", case.data) for i, case in enumerate(files[:12])]


def rows(names: Iterable[str]) -> str:
    return "".join(
        f'"{name}",No Finding,0,{patient},50,M,PA\n' for patient, name in enumerate(names)
    )


def download(
    folder: Path, archive: bytes, table: bytes | str, name: str = "Data_Entry_2017.csv"
) -> Path:
    """A folder `inner/src` with one archive and the table."""
    src = folder / "inner" / "src"
    src.mkdir(parents=True)
    (src / "images_001.tar.gz").write_bytes(archive)
    (src / name).write_bytes(table.encode() if isinstance(table, str) else table)
    return src


def ingest_all(src: Path, out: Path, **options: bool) -> str:
    """The user's one line, or "" when the ingest finished. Anything else raises."""
    config = IngestConfig(out, workers=1, progress=False, max_bad=1.0, **options)
    try:
        ingest(ChestXray14(ChestXray14Config(src)), config)
    except (UserError, RunFailed) as error:
        return str(error)
    return ""


def listing(folder: Path, but: Path) -> list[tuple[str, int]]:
    paths = (p for p in folder.rglob("*") if but not in (p, *p.parents))
    return sorted((str(p), p.lstat().st_size) for p in paths)


HOSTILE = [
    "/tmp/absolute.png",
    "../../../up.png",
    "a/../../b.png",
    "..",
    "dots.in.the.name.png",
    " spaces in it .png",
    "Röntgen-胸部.png",
    "long" * 60 + ".png",
    "line\nbreak.png",
    "\x1b[31mred.png",
    "'; DROP TABLE.png",
    "-rf.png",
    "con.png",
]


@pytest.mark.parametrize("layout", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_from_archives_are_never_paths(tmp_path: Path, layout: int):
    data = image_members()[0][1]
    links = [
        member(f"{i}.png", type=kind, linkname="../../../linked.png")
        for i, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, b"3", b"6"))
    ]
    named = [member(name, data) for name in HOSTILE]
    members = [*image_members(), *named, *links, *image_members()]  # every name twice
    base = [info.name.rsplit("/", 1)[-1] for info, _ in members]
    listed = dict.fromkeys(n for n in base if n not in ("..", "line\nbreak.png"))
    src = download(tmp_path, packed(members, layout), _HEADER + rows(listed))
    out = src.parent / "out"
    before = listing(tmp_path, out)
    # allow_missing: links and devices are passed over, and `..` is no listed name.
    assert ingest_all(src, out, allow_missing=True) == ""
    assert listing(tmp_path, out) == before
    written = [p for p in out.rglob("*") if p.is_file()]
    assert all(p.resolve().is_relative_to(out.resolve()) for p in written)
    assert not [p for p in written if p.suffix == ".png"]
    assert not Path("/tmp/absolute.png").exists()


def sparse(_: bytes) -> bytes:
    info, data = member("00000000_000.png", bytes(512), type=tarfile.GNUTYPE_SPARSE)
    return packed([(info, data), *image_members()[1:]])


ARCHIVES: dict[str, Callable[[bytes], bytes]] = {
    "cut in the middle": lambda data: data[: len(data) // 2],
    "cut in the checksum": lambda data: data[:-6],
    "cut before the end of the tar": lambda data: gzip.compress(gzip.decompress(data)[:-11_000]),
    "garbage behind": lambda data: data + b"garbage" * 99,
    "zeros behind": lambda data: data + bytes(5000),
    "text behind": lambda data: data + gzip.compress(b"text" * 999),
    "flipped": lambda data: data[:5000] + bytes([data[5000] ^ 8]) + data[5001:],
    "no gzip": gzip.decompress,
    "no tar": lambda data: gzip.compress(b"no tar" * 5000),
    "empty": lambda _: b"",
    "empty gzip": lambda _: gzip.compress(b""),
    "a page": lambda _: b"<html>Not found</html>",
    "sparse": sparse,
    "gzip twice": gzip.compress,
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_damaged_archives_end_in_one_line(tmp_path: Path, name: str):
    members = image_members()
    table = _HEADER + rows(info.name.rsplit("/", 1)[-1] for info, _ in members)
    src = download(tmp_path, ARCHIVES[name](packed(members)), table)
    out = src.parent / "out"
    before = listing(tmp_path, out)
    message = ingest_all(src, out)
    assert listing(tmp_path, out) == before
    if name not in ("zeros behind", "text behind", "garbage behind", "sparse"):
        assert message
    assert len(message) < 1000


def mended(table: str) -> dict[str, bytes]:
    """Broken tables from a sound one."""
    lines = table.splitlines()
    first, raw = lines[1], table.encode()

    def with_row(row: str) -> bytes:
        return "\n".join([lines[0], row, *lines[2:]]).encode()

    return {
        "sound": raw,
        "extra quotes": with_row(first.replace("No Finding", '"No" Finding"')),
        "quote left open": with_row(first.replace("No Finding", '"No Finding')),
        "NUL": with_row(first.replace("No Finding", "No\0Finding")),
        "NUL in the name": with_row(first.replace("0000_", "\0_")),
        "fields missing": with_row("00000000_000.png,No Finding"),
        "empty fields": with_row(",,,,,,"),
        "1 MB field": with_row(first.replace("No Finding", "x" * 10**6)),
        "1 MB row": with_row("," * 10**6),
        "100 kB name": with_row(first.replace("00000000_000", "n" * 100_000)),
        "1 MB header": ("," * 10**6).encode() + raw,
        "Latin-1": raw.replace(b"00000000_000", "R\u00f6ntgen".encode("latin-1")),
        "UTF-16": table.encode("utf-16"),
        "binary": np.random.default_rng(0).bytes(5000),
        "empty": b"",
        "old Mac line ends": raw.replace(b"\n", b"\r"),
        "escape sequences": with_row(first.replace("No Finding", "\x1b]0;owned\x07")),
        "huge numbers": with_row(first.replace(",50,", f",{'9' * 5000},")),
        "a path": with_row(first.replace("00000000_000", "../../../etc/passwd")),
    }


_TABLE = _HEADER + rows(f"{i:08d}_000.png" for i in range(12))


@pytest.mark.parametrize("name", list(mended(_TABLE)))
def test_broken_tables_end_in_one_line(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
):
    src = download(tmp_path, packed(image_members()), mended(_TABLE)[name])
    out = src.parent / "out"
    before = listing(tmp_path, out)
    message = ingest_all(src, out, allow_missing=True)
    assert listing(tmp_path, out) == before
    with pytest.raises(SystemExit):
        console.fail(message, 2)
    printed = capsys.readouterr().err.removesuffix("\n")
    assert printed.isprintable()
    assert len(printed) < 2000
