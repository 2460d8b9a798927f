"""ingest.sources.dicom, run as people run it: no identifier of the headers, the file names or the
label table comes out, not in the shards, the tables, the log, the list of bad files, and not in
hexadecimal, in base64 or hashed without the key."""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from dicom_maker import item, make_dicom, picture, table, to_bytes
from pydicom.datadict import DicomDictionary

from ingest.dicom_meta import BURNT_IN

ROOT = Path(__file__).resolve().parents[1]
# What must not leave: planted in every text element that nothing else depends on.
_USED = ("Modality", "ViewPosition", "PatientSex", "PatientAge", "SpecificCharacterSet")
_VALUES = {
    "PN": lambda n: f"Plantname{n:04d}^Given{n:04d}xyz",
    "LO": lambda n: f"plantedLO{n:04d}",
    "SH": lambda n: f"plantedSH{n:04d}",
    "LT": lambda n: f"planted LT text {n:04d}",
    "ST": lambda n: f"planted ST text {n:04d}",
    "UT": lambda n: f"planted UT text {n:04d}",
    "UI": lambda n: f"1.2.826.0.77777.{90000000 + n}",
    "DA": lambda n: f"18{n % 90 + 10:02d}{n // 90 % 12 + 1:02d}{n // 1080 + 11:02d}",
    "DT": lambda n: f"1777{n % 90 + 10:02d}{n // 90:02d}010203",
    "AE": lambda n: f"PLANTEDAE{n:04d}",
    "CS": lambda n: f"PLANTEDCS{n:04d}",
    "UC": lambda n: f"planted UC text {n:04d}",
    "UR": lambda n: f"https://planted.example/{n:04d}",
    "TM": lambda n: f"2{n % 4}{n // 4 % 60:02d}{n // 240 % 60:02d}.7{n:05d}",
    "DS": lambda n: f"7531.{86420000 + n}",
    "IS": lambda n: f"{1357900000 + n}",
}
_NUMBER = "12345678.1234"  # as long as a planted LO
_SYNTAX, _OTHER_SYNTAX = b"1.2.840.10008.1.2.1\0", b"1.2.826.0.77777.123\0"


class Planted:
    """Values that occur nowhere else, and where they were put."""

    def __init__(self) -> None:
        self.values: list[str] = []

    def text(self, vr: str = "LO") -> str:
        self.values.append(_VALUES[vr](len(self.values)))
        return self.values[-1]

    def dataset(self, seed: int, **elements):
        """An image with about 130 planted elements: top level, nested and private."""
        dataset = make_dicom(picture(seed), bits=12, **elements)
        used = {*_USED, *elements, "SOPClassUID", "SOPInstanceUID"}
        by_vr: dict[str, list[str]] = {vr: [] for vr in _VALUES}
        for tag, (vr, vm, _, retired, keyword) in sorted(DicomDictionary.items()):
            plain = vr in by_vr and vm == "1" and not retired and keyword not in used
            if plain and tag >> 16 not in (0x0000, 0x0002, 0x0004, 0x0028, 0xFFFE):
                by_vr[vr].append(keyword)
        always = [
            "PatientName",
            "PatientID",
            "PatientBirthDate",
            "InstitutionName",
            "StudyInstanceUID",
        ]
        for vr, keywords in by_vr.items():
            first = [k for k in always if k in keywords]
            for keyword in dict.fromkeys([*first, *keywords[:12]]):
                setattr(dataset, keyword, self.text(vr))
        dataset.SOPInstanceUID = self.text("UI")
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.file_meta.ImplementationVersionName = self.text("SH")
        inner = item(PatientID=self.text(), ReferringPhysicianName=self.text("PN"))
        inner.OtherPatientIDsSequence = [item(PatientID=self.text(), TextValue=self.text("UT"))]
        dataset.RequestAttributesSequence = [inner]
        dataset.ViewCodeSequence = [item(CodeValue=self.text("SH"), CodeMeaning=self.text())]
        for group in (0x0009, 0x0011, 0x0019):
            block = dataset.private_block(group, self.text(), create=True)
            block.add_new(1, "PN", self.text("PN"))
            block.add_new(2, "SQ", [item(PatientName=self.text("PN"))])
        return dataset


def plant(root: Path, planted: Planted) -> Path:
    """A tree of good, left-out and bad files under planted names; returns its label table."""
    kinds = [
        *({"ViewPosition": "PA"} for _ in range(4)),
        {"ViewPosition": "LL"},
        {"BurnedInAnnotation": "YES"},
        {"Modality": planted.text()},
        {"ViewPosition": planted.text()},
        {"PhotometricInterpretation": planted.text()},
        {"WindowCenter": 1, "WindowWidth": 0},
        {"WindowCenter": _NUMBER, "WindowWidth": 9},  # becomes text, which a parser would quote
    ]
    rows = []
    for n, elements in enumerate(kinds):
        dataset = planted.dataset(n, **elements)
        path = root / "src" / planted.text() / f"{planted.text('PN')}.dcm"
        path.parent.mkdir(parents=True)
        data = to_bytes(dataset)
        if _NUMBER.encode() in data:
            data = data.replace(_NUMBER.encode(), planted.text().encode())
        path.write_bytes(data)
        by_path = path.relative_to(root / "src").as_posix()
        rows.append(f"{dataset.SOPInstanceUID if n % 2 else by_path},{'ab'[n % 2]}")
    for n, cut in enumerate((500, 3000, -3000)):  # in the header, and in the pixels
        path = root / "src" / f"{planted.text('PN')}.dcm"
        path.write_bytes(to_bytes(planted.dataset(60 + n))[:cut])
        rows.append(f"{path.name},a")
    unknown = planted.dataset(50)
    planted.values.append("1.2.826.0.77777.123")
    name = f"{planted.text('PN')}.dcm"
    (root / "src" / name).write_bytes(to_bytes(unknown).replace(_SYNTAX, _OTHER_SYNTAX))
    (root / "src" / planted.text()).write_text(planted.text("UT"))  # not DICOM
    rows += [f"{name},a", f"{planted.text()}/gone.dcm,b"]
    return table(root / "labels.csv", *rows)


def forms(value: str) -> Iterator[bytes]:
    """The value, and what it looks like in hexadecimal, in base64, and hashed without a key."""
    data = value.encode()
    yield data
    yield data.upper()
    yield data.lower()
    yield value.encode("utf-16-le")
    for name in ("sha256", "sha1", "md5"):
        digest = hashlib.new(name, data)
        yield from (digest.digest(), digest.hexdigest()[:16].encode())
    yield data.hex().encode()
    yield data.hex().upper().encode()
    for shift in range(3):
        encoded = base64.b64encode(b"\0" * shift + data)
        yield encoded[4 if shift else 0 : -4]


def leaks(planted: Planted, outputs: dict[str, bytes]) -> list[str]:
    parts = set(planted.values)
    parts |= {p for v in planted.values if "^" in v for p in v.split("^")}
    patterns = {value: set(forms(value)) for value in parts}
    return [
        f"{value} in {name}"
        for name, data in outputs.items()
        for value, looks in patterns.items()
        if any(look in data for look in looks)
    ]


def test_what_is_planted_is_found_where_it_was_put(tmp_path: Path):
    planted = Planted()
    labels = plant(tmp_path, planted)
    inputs = {str(p): p.read_bytes() + str(p).encode() for p in (tmp_path / "src").rglob("*.dcm")}
    found = {leak.split(" in ")[0] for leak in leaks(planted, inputs | {"l": labels.read_bytes()})}
    assert len(found) > 0.9 * len(planted.values) > 900  # three files are cut
    for look in forms("plantedLO0001"):
        assert leaks(planted, {"any": b"  " + look + b"  "}) or not look


def outputs_of(folder: Path, done: "subprocess.CompletedProcess[bytes]") -> dict[str, bytes]:
    found = {"stdout": done.stdout, "stderr": done.stderr}
    for path in folder.rglob("*"):
        found[f"name {path}"] = path.relative_to(folder).as_posix().encode()
        if path.is_file():
            found[str(path)] = path.read_bytes()
        if path.suffix == ".parquet":
            rows = pq.read_table(path)
            found[f"{path} decoded"] = repr(rows.to_pylist()).encode()
            found[f"{path} schema"] = repr(rows.schema.metadata).encode()
    return found


def run(root: Path, src: Path, out: str, *options: str) -> "subprocess.CompletedProcess[bytes]":
    command = [sys.executable, "-X", "dev", "-m", "ingest", "dicom", "--src", str(src)]
    command += ["--table", str(root / "labels.csv"), "--key-file", str(root / "key")]
    command += ["--out", str(root / out), "--shorter-side", "64", "--workers", "1", *options]
    environment = {**os.environ, "PYTHONWARNINGS": "default", "COLUMNS": "200"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=120)


def test_nothing_planted_comes_out(tmp_path: Path):
    planted = Planted()
    plant(tmp_path, planted)
    assert len(planted.values) > 1000
    shutil.make_archive(str(tmp_path / "all"), "zip", tmp_path / "src")
    for src, out in ((tmp_path / "src", "from-folder"), (tmp_path / "all.zip", "from-zip")):
        done = run(tmp_path, src, out, "--allow-missing", "--max-bad", "1")
        assert done.returncode == 0, done.stderr.decode()
        folder = tmp_path / out
        assert leaks(planted, outputs_of(folder, done)) == []
        kept = pq.read_table(folder / "dicom/samples.parquet").to_pylist()
        assert len(kept) == 5
        assert {row["view"] for row in kept} == {"PA", None}
        bad = pq.read_table(folder / "dicom/quarantine.parquet").to_pylist()
        assert len(bad) == 8
        assert all(row["reason"] for row in bad)
        assert sum(row["reason"] == BURNT_IN for row in bad) == 1
        assert (folder / "dicom/manifest.json").is_file()


@pytest.mark.soak
def test_lists_and_other_options_tell_nothing_either(tmp_path: Path):
    """Lists name images as people know them, and hold names that are none of the data set's."""
    planted = Planted()
    labels = plant(tmp_path, planted)
    lines = labels.read_text().splitlines()[1:]
    names = [line.rsplit(",", 1)[0] for line in lines]
    planted.values += [f"{planted.text('PN')}.dcm" for _ in range(3)]
    (tmp_path / "no.txt").write_text("\n".join([*names[:2], *planted.values[-3:]]))
    (tmp_path / "words.csv").write_text(f"file,x,y,w,h\n{names[2]},1,1,5,5\n")
    (tmp_path / "bad.csv").write_text(f"file,x,y,w,h\n{planted.values[-1]},1,1,5,5\n")
    given = ("--allow-missing", "--max-bad", "1", "--exclude", str(tmp_path / "no.txt"))
    words = ("--redact", str(tmp_path / "words.csv"), "--redact-split", "all")
    runs = {
        "dry": (0, (*given, "--dry-run")),
        "done": (0, (*given, *words)),
        "bad": (2, (*given, "--redact", str(tmp_path / "bad.csv"))),
    }
    for out, (status, options) in runs.items():
        done = run(tmp_path, tmp_path / "src", out, *options)
        assert done.returncode == status, (out, done.stderr.decode())
        assert b"Traceback" not in done.stderr
        assert leaks(planted, outputs_of(tmp_path / out, done)) == []
    rows = pq.read_table(tmp_path / "done/dicom/excluded.parquet").to_pylist()
    assert sum(row["reason"] == "in the exclusion list" for row in rows) == 2
    notes = json.loads((tmp_path / "done/dicom/manifest.json").read_bytes())["notes"]
    assert "parts of 1 images (all) are blacked out" in notes


def test_runs_that_fail_tell_nothing_either(tmp_path: Path):
    planted = Planted()
    plant(tmp_path, planted)
    missing = run(tmp_path, tmp_path / "src", "missing")
    too_bad = run(tmp_path, tmp_path / "src", "bad", "--allow-missing", "--max-bad", "0")
    (tmp_path / "key").chmod(0o644)
    open_key = run(tmp_path, tmp_path / "src", "open")
    assert [d.returncode for d in (missing, too_bad, open_key)] == [2, 1, 2]
    assert b"mode 644" in open_key.stderr
    for out, done in (("missing", missing), ("bad", too_bad), ("open", open_key)):
        assert b"Traceback" not in done.stderr
        assert leaks(planted, outputs_of(tmp_path / out, done)) == []
    assert list((tmp_path / "bad/dicom/.spool").iterdir())
