"""Ingest under fire: damaged and hostile archives and tables; random damage in `make soak`."""

import gzip
import io
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from fuzz import DAMAGES, inputs

from ingest.config import IngestConfig
from ingest.run import ingest
from ingest.sources.chestxray14 import ChestXray14, ChestXray14Config
from shards import console
from shards.console import RunFailed, UserError
from shards.manifest import load_manifest

_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position\n"
)


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
    counted = capsys.readouterr().err  # lines about depth and about images without a row
    assert all(line.isprintable() for line in counted.splitlines())
    with pytest.raises(SystemExit):
        console.fail(message, 2)
    *notices, printed = capsys.readouterr().err.removesuffix("\n").split("\n")
    assert all(line.isprintable() for line in [*notices, printed])
    assert len(printed) < 2000
