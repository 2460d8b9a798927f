"""ingest.sources.dicom: which files become records, their labels, and what is left out."""

import hashlib
import shutil
import tarfile
import zipfile
from pathlib import Path

import fsspec
import pyarrow.parquet as pq
import pytest
from dicom_maker import make_dicom, picture, table, to_bytes, write
from ingest_runs import tree

from ingest.config import IngestConfig
from ingest.dicom_files import found_files
from ingest.dicom_meta import BURNT_IN
from ingest.estimate import estimate
from ingest.pseudonym import Pseudonyms, load_key
from ingest.retry import retry
from ingest.run import ingest
from ingest.selection import SelectionConfig, select
from ingest.sources.dicom import Dicom, DicomConfig
from shards.console import UserError
from shards.manifest import Manifest
from shards.reader import read_split
from shards.urls import path_of
from shards.verify import verify_dataset


def source(src: Path, table_: Path, key: Path, **options) -> Dicom:
    return Dicom(DicomConfig(src, table_, key, **options))


def config(out: Path, **options) -> IngestConfig:
    given = {"shorter_side": 64, "workers": 1, "progress": False, "allow_missing": True}
    return IngestConfig(out, **(given | options))


def small_set(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Six images of four patients in folders, a table, and where the key will be."""
    src = tmp_path / "src"
    for n in range(6):
        write(
            src / f"study{n // 2}" / f"image{n}.dcm",
            picture(n),
            bits=12,
            SOPInstanceUID=f"1.2.{n}",
            PatientID=f"patient{min(n, 3)}",
            PatientSex="F",
            PatientAge="058Y",
        )
    rows = [f"study{n // 2}/image{n}.dcm,{'Edema|Mass' if n % 2 else ''}" for n in range(3)]
    rows += [f"1.2.{n},Mass" for n in range(3, 6)]
    return src, table(tmp_path / "labels.csv", *rows), tmp_path / "key"


def samples(out: Path, name: str = "dicom") -> dict[str, dict]:
    rows = pq.read_table(out / name / "samples.parquet").to_pylist()
    return {row["key"]: row for row in rows}


def test_folder_tar_and_zip_give_the_same_pixels(tmp_path: Path):
    src, labels, key = small_set(tmp_path)
    (src / "notes.txt").write_text("not DICOM")
    packed = {"tar": "w", "tar.gz": "w:gz"}
    for suffix, mode in packed.items():
        with tarfile.open(tmp_path / f"all.{suffix}", mode) as tar:
            tar.add(src, arcname=".")
    shutil.make_archive(str(tmp_path / "all"), "zip", src)
    outs = []
    for place in [src, *(tmp_path / f"all.{suffix}" for suffix in [*packed, "zip"])]:
        out = tmp_path / f"out-{place.name}"
        # GNU tar writes ./study0/image0.dcm: the rows go by path without the dot
        manifest = ingest(source(place, labels, key), config(out))
        assert verify_dataset(out / "dicom", lambda n: None) == []
        outs.append((manifest, samples(out)))
    assert all(len(found) == 6 for _, found in outs)
    for manifest, found in outs:
        assert manifest.excluded == {}
        assert manifest.labels == ("Edema", "Mass")
        assert not manifest.exclusive
        for name, row in found.items():
            assert row["pixel_sha256"] == outs[0][1][name]["pixel_sha256"]
            assert row["labels"] == outs[0][1][name]["labels"]
            assert row["patient"] == outs[0][1][name]["patient"]
    one = next(iter(outs[0][1].values()))
    assert (one["view"], one["age"], one["sex"]) == ("PA", 58, "F")


def test_the_same_patient_has_one_pseudonym_and_another_under_another_key(tmp_path: Path):
    src, labels, key = small_set(tmp_path)
    first = source(src, labels, key).records()
    again = source(src, labels, key).records()
    other = source(src, labels, tmp_path / "other").records()
    assert first == again
    patients = [r.patient for r in first]
    assert len(set(patients)) == 4
    assert len(set(patients[3:])) == 1
    assert not set(patients) & {r.patient for r in other}
    assert not {r.key for r in first} & {r.key for r in other}
    assert not {r.location for r in first} & {r.location for r in other}


def test_the_issuer_is_part_of_the_patient(tmp_path: Path):
    for n, issuer in enumerate(["A", "B", "A"]):
        options = {"SOPInstanceUID": f"1.2.{n}", "IssuerOfPatientID": issuer}
        write(tmp_path / f"src/{n}.dcm", picture(n), bits=12, **options)
    labels = table(tmp_path / "l.csv", "0.dcm,a", "1.dcm,b", "2.dcm,a")
    a, b, c = source(tmp_path / "src", labels, tmp_path / "key").records()
    assert a.patient == c.patient != b.patient


def test_what_is_left_out_and_why(tmp_path: Path):
    kinds = {
        "kept": {},
        "lateral": {"ViewPosition": "LL"},
        "oblique": {"ViewPosition": "RAO"},
        "ct": {"Modality": "CT"},
        "named": {"Modality": "MUELLER"},
        "none": {"Modality": None, "SOPClassUID": None},
        "burnt": {"BurnedInAnnotation": "YES"},
        "raw": {"PresentationIntentType": "FOR PROCESSING"},
        "twice": {"SOPInstanceUID": "1.2.0"},
        "unlabelled": {},
        "frames": {"NumberOfFrames": 2},
        "old": {"PatientAge": "099Y", "ViewPosition": ""},
    }
    for n, (name, elements) in enumerate(kinds.items()):
        options = {"SOPInstanceUID": f"1.2.{n}", "PatientID": f"p{n}"} | elements
        dataset = make_dicom(picture(n), bits=12, **options)
        if name == "none":
            dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
        (tmp_path / "src").mkdir(exist_ok=True)
        (tmp_path / "src" / f"{name}.dcm").write_bytes(to_bytes(dataset))
    (tmp_path / "src/broken.dcm").write_bytes(b"no DICOM at all")
    rows = [f"{name}.dcm,a" for name in [*kinds, "broken", "absent"] if name != "unlabelled"]
    labels = table(tmp_path / "l.csv", *rows)
    with pytest.raises(UserError, match="1 of the label table's 13 rows"):
        ingest(
            source(tmp_path / "src", labels, tmp_path / "key"),
            config(tmp_path / "o", allow_missing=False),
        )
    manifest = ingest(source(tmp_path / "src", labels, tmp_path / "key"), config(tmp_path / "o"))
    assert manifest.excluded == {
        "SOPInstanceUID of another file": 1,
        "image missing": 1,
        "lateral view": 1,
        "modality CT": 1,
        "modality not given": 1,
        "modality other": 1,
        "no row in the label table": 1,
        "oblique view": 1,
        "quarantined": 3,
        "raw image, for processing": 1,
    }
    bad = pq.read_table(tmp_path / "o/dicom/quarantine.parquet").to_pylist()
    digests = {
        hashlib.sha256((tmp_path / f"src/{n}.dcm").read_bytes()).hexdigest(): n for n in kinds
    }
    broken = hashlib.sha256(b"no DICOM at all").hexdigest()
    assert {digests.get(row["sha256"], row["sha256"]) for row in bad} == {"frames", "burnt", broken}
    assert {row["reason"] for row in bad} >= {BURNT_IN}
    assert sorted(row["age"] or 0 for row in samples(tmp_path / "o").values()) == [0, 90]
    permissive = source(
        tmp_path / "src", labels, tmp_path / "key", keep_lateral=True, allow_burnt_in=True
    )
    more = ingest(permissive, config(tmp_path / "more"))
    assert _counts(more) == _counts(manifest) + 3


def _counts(manifest: Manifest) -> int:
    return sum(split.samples for split in manifest.splits.values())


def test_the_key_file(tmp_path: Path):
    key = load_key(tmp_path / "key")
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert (len(key), load_key(tmp_path / "key")) == (32, key)
    assert [p.name for p in tmp_path.iterdir()] == ["key"]
    for mode in (0o644, 0o640, 0o604, 0o620):
        (tmp_path / "key").chmod(mode)
        with pytest.raises(UserError, match=f"mode {mode:o}"):
            load_key(tmp_path / "key")
    (tmp_path / "short").write_bytes(b"1234")
    (tmp_path / "short").chmod(0o600)
    with pytest.raises(UserError, match="is no key"):
        load_key(tmp_path / "short")
    with pytest.raises(UserError, match="cannot make the key"):
        load_key(tmp_path / "no folder/key")
    assert Pseudonyms(key).of("a", "b") != Pseudonyms(key).of("a", "b", "")


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "zip"])
def test_damaged_archives(tmp_path: Path, suffix):
    src, labels, key = small_set(tmp_path)
    whole = tmp_path / f"x.{suffix}"
    if suffix == "zip":
        shutil.make_archive(str(tmp_path / "x"), "zip", src)
    else:
        with tarfile.open(whole, "w:gz" if suffix == "tar.gz" else "w") as tar:
            tar.add(src, arcname="patients")
    data = whole.read_bytes()
    whole.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="damaged or cut short") as caught:
        source(whole, labels, key).records()
    assert "image" not in str(caught.value)


def test_names_of_members_are_no_paths(tmp_path: Path):
    src, _, key = small_set(tmp_path)
    data = (src / "study0/image0.dcm").read_bytes()
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("../../outside.dcm", data)
    labels = table(tmp_path / "l.csv", "../../outside.dcm,a")
    before = sorted(tmp_path.rglob("*"))
    (record,) = source(tmp_path / "x.zip", labels, key).records()
    assert record.labels == ("a",)
    assert len(record.location) == 36
    assert set(tmp_path.rglob("*")) - set(before) == {key, tmp_path / "key.dicom.csv"}
    assert [len(f.read()) for f in found_files(tmp_path / "x.zip")] == [len(data)]


def test_keep_would_keep_the_header(tmp_path: Path):
    src, labels, key = small_set(tmp_path)
    options = config(tmp_path / "out", shorter_side=None, format="keep")
    with pytest.raises(UserError, match="--format keep would keep the DICOM headers") as caught:
        ingest(source(src, labels, key), options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert not key.exists()


@pytest.mark.parametrize("name", ["out/key", "out/dicom/deep/key", "out/../out/key"])
def test_a_key_that_would_be_published(tmp_path: Path, name: str):
    src, labels, _ = small_set(tmp_path)
    key = tmp_path / name
    key.parent.mkdir(parents=True, exist_ok=True)
    for act in (ingest, estimate, retry):
        with pytest.raises(UserError, match="lies in --out"):
            act(source(src, labels, key), config(tmp_path / "out"))
    assert not key.exists()
    (tmp_path / "linked").symlink_to(tmp_path / "out")
    with pytest.raises(UserError, match="lies in --out"):
        ingest(source(src, labels, tmp_path / "linked/key"), config(tmp_path / "out"))


def test_the_modality_can_be_chosen(tmp_path: Path):
    for n, modality in enumerate(("CR", "DX", "DX", "CT")):
        options = {"Modality": modality, "SOPInstanceUID": f"1.2.{n}", "PatientID": f"p{n}"}
        write(tmp_path / f"src/{n}.dcm", picture(n), bits=12, **options)
    labels = table(tmp_path / "l.csv", *(f"{n}.dcm,a" for n in range(4)))
    built = source(tmp_path / "src", labels, tmp_path / "key")
    records = select(built, SelectionConfig(exclude_modality=("cr",))).records()
    assert [r.excluded for r in records] == [
        "modality CR, as asked for",
        None,
        None,
        "modality CT",
    ]
    with pytest.raises(UserError, match=r"no image has it; there are: DX \(2\), CR \(1\), CT"):
        select(built, SelectionConfig(exclude_modality=("MR",))).records()


def test_real_files(shared_data: Path, tmp_path: Path):
    labels = table(
        tmp_path / "l.csv", "1.2.276.0.7230010.3.1.4.8323329.6904.1517875201.850819,Normal"
    )
    built = source(shared_data / "dicom", labels, tmp_path / "key")
    manifest = ingest(built, config(tmp_path / "out", shorter_side=256))
    assert manifest.excluded == {"SOPInstanceUID of another file": 1}  # one is made of the other
    (sample,) = read_split(tmp_path / "out/dicom", manifest, "train")
    assert (sample.meta.width, sample.meta.height, sample.meta.view) == (1024, 1024, "PA")
    assert (sample.meta.age, sample.meta.sex) == (62, "M")


@pytest.mark.parametrize("kind", ["folder", "tar", "zip"])
def test_links_and_devices_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str):
    src, labels, key = small_set(tmp_path)
    place = tmp_path / f"x.{kind}"
    if kind == "folder":
        place = src
        (src / "Doe John").symlink_to(src / "study0")
    elif kind == "tar":
        with tarfile.open(place, "w") as tar:
            tar.add(src, arcname=".")
            link = tarfile.TarInfo("Doe John")
            link.type, link.linkname = tarfile.LNKTYPE, "/etc/passwd"
            tar.addfile(link)
    else:
        shutil.make_archive(str(tmp_path / "x"), "zip", src)
        link = zipfile.ZipInfo("Doe John")
        link.external_attr = 0o120777 << 16
        with zipfile.ZipFile(place, "a") as archive:
            archive.writestr(link, "/etc/passwd")
    built = source(place, labels, key)
    records = built.records()
    assert len(records) == 6
    assert str(built.unlisted(records)).startswith("1 files or links are not DICOM")
    assert "Doe" not in capsys.readouterr().err


def test_an_output_inside_the_source_is_refused(tmp_path: Path):
    src, labels, key = small_set(tmp_path)
    with pytest.raises(UserError, match=r"--out .* lies in .*src, which it reads"):
        ingest(source(src, labels, key), config(src / "shards"))


def test_from_a_url_the_bytes_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    src, labels, key = small_set(tmp_path)
    memory = fsspec.filesystem("memory")
    monkeypatch.setattr(type(memory), "store", {})
    for path in src.rglob("*.dcm"):
        memory.pipe_file(f"/raw/{path.relative_to(src)}", path.read_bytes())
    shutil.make_archive(str(tmp_path / "all"), "zip", src)
    memory.pipe_file("/all.zip", (tmp_path / "all.zip").read_bytes())
    expected = None
    for number, place in enumerate((src, path_of("memory://raw"), path_of("memory://all.zip"))):
        out = tmp_path / str(number)
        ingest(source(place, labels, key), config(out))
        found = tree(out / "dicom")
        del found["manifest.json"]  # an archive is another inventory than its files
        expected = expected or found
        assert found == expected
    assert len(expected or {}) > 6
