"""ingest.sources.dicom: which files become records, their labels, and what is left out."""

import hashlib
import os
import shutil
import tarfile
import zipfile
from pathlib import Path

import cv2
import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from dicom_maker import make_dicom, picture, table, to_bytes, write
from ingest_runs import tree

from ingest.config import IngestConfig
from ingest.dicom_files import found_files
from ingest.dicom_meta import BURNT_IN, age_of, is_cut_short, view_of
from ingest.estimate import estimate
from ingest.pseudonym import Pseudonyms, load_key
from ingest.record import Source
from ingest.retry import retry
from ingest.run import ingest
from ingest.selection import SelectionConfig, select
from ingest.sources.dicom import Dicom, DicomConfig
from shards.codec import BadImage
from shards.console import RunFailed, UserError
from shards.dicom_header import DicomHeader, read_header
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


@pytest.mark.parametrize(
    ("elements", "view"),
    [
        ({"view": "PA"}, "PA"),
        ({"view": "AP SUPINE"}, "AP"),
        ({"view": "LATERAL"}, "L"),
        ({"view": "LLD"}, "decubitus"),
        ({"view": "", "view_meaning": "postero-anterior"}, "PA"),
        ({"view_meaning": "antero-posterior oblique"}, "oblique"),
        ({"view_meaning": "left lateral"}, "L"),
        ({"orientation": "A\\F"}, "L"),
        ({"orientation": "L\\F"}, None),
        ({"image_laterality": "R"}, "L"),
        ({"view": "PA", "image_laterality": "L"}, "PA"),
        ({"series_laterality": "U", "view": "?"}, None),
        ({}, None),
    ],
)
def test_views(elements, view):
    assert view_of(DicomHeader(**elements)) == view


@pytest.mark.parametrize(
    ("text", "years"),
    [("058Y", 58), ("62", 62), ("009M", 0), ("107Y", 90), ("", None), ("old", None)],
)
def test_ages(text, years):
    assert age_of(text) == years


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


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_tables_are_utf_8_or_latin_1(tmp_path: Path, encoding: str):
    src = tmp_path / "src"
    write(src / "Müller.dcm", picture(0), bits=12, SOPInstanceUID="1.2.0")
    old = Path(os.fsdecode(os.fsencode(src / "B") + b"\xf6hm.dcm"))  # of a file system in Latin-1
    write(old, picture(1), bits=12, SOPInstanceUID="1.2.1")
    write(src / "c.dcm", picture(2), bits=12, SOPInstanceUID="1.2.2")
    text = "id,labels\nMüller.dcm,Ödem\nBöhm.dcm,Ödem|Maß\n1.2.2,Maß\n"
    labels = tmp_path / "labels.csv"
    labels.write_bytes(text.encode(encoding))
    if encoding == "utf-8":
        labels.write_text(text.replace("Böhm.dcm", "1.2.1"))
    manifest = ingest(source(src, labels, tmp_path / "key"), config(tmp_path / "out"))
    assert manifest.labels == ("Maß", "Ödem")
    assert len(samples(tmp_path / "out")) == 3
    assert manifest.excluded == {}
    assert verify_dataset(tmp_path / "out/dicom", lambda _: None) == []
    labels.write_bytes(text.encode("utf-16"))
    with pytest.raises(UserError, match="is UTF-16; save it as CSV in UTF-8"):
        source(src, labels, tmp_path / "key")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["name,labels", "x,a"], "no column 'id'"),
        (["id,labels", "x"], "line 2 has 1 fields"),
        (["id,labels", ",a"], "line 2 has no id"),
        (["id,labels", "x,a", "x,b"], "lines 2 and 3 are for the same id"),
        (["id,labels,split", "x,a,secret"], "line 2 has another split"),
        (["id,labels"], "no rows"),
        (["id,labels", "study0/image0.dcm,a", "1.2.0,b"], "lines 2 and 3 are for one file"),
    ],
)
def test_wrong_tables(tmp_path: Path, lines, message):
    src, _, key = small_set(tmp_path)
    labels = tmp_path / "wrong.csv"
    labels.write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=message) as caught:
        source(src, labels, key).records()
    assert "secret" not in str(caught.value)


def test_a_vocabulary_and_given_splits(tmp_path: Path):
    src, _, key = small_set(tmp_path)
    splits = ["test", "train", "train", "train", "test", "train"]
    rows = [f"1.2.{n},{'ab'[n % 2]},{split}" for n, split in enumerate(splits)]
    labels = table(tmp_path / "l.csv", *rows, header="id,labels,split")
    manifest = ingest(source(src, labels, key, labels=("b", "a")), config(tmp_path / "out"))
    assert (manifest.labels, manifest.exclusive) == (("b", "a"), True)
    assert manifest.excluded == {"patient also in test": 2}
    assert manifest.splits["test"].samples == 2
    with pytest.raises(UserError, match="line 2 has a label that --labels lacks"):
        source(src, labels, key, labels=("b", "c"))


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
    assert set(tmp_path.rglob("*")) - set(before) == {key}
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


def test_lists_by_path_by_uid_and_as_saved(tmp_path: Path):
    src, labels, key = small_set(tmp_path)
    (tmp_path / "no.txt").write_text("./study0/image0.dcm\n1.2.1\nplanted^name.dcm\n")
    half = SelectionConfig(exclude=tmp_path / "no.txt", fractions=(0.5, 0.0, 0.5))
    chosen = select(source(src, labels, key), half)
    manifest = ingest(chosen, config(tmp_path / "out"))
    assert manifest.excluded == {"in the exclusion list": 2}
    lists = tmp_path / "out/dicom/lists"
    given = {f"{p.stem}_list": p for p in lists.iterdir()}
    again = ingest(
        select(source(src, labels, key), SelectionConfig(**given)), config(tmp_path / "again")
    )
    assert again.splits == manifest.splits
    for path in lists.iterdir():
        assert (tmp_path / "again/dicom/lists" / path.name).read_bytes() == path.read_bytes()


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
    assert len(source(place, labels, key).records()) == 6
    assert "1 files or links are not DICOM" in capsys.readouterr().err


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


@pytest.mark.parametrize("row", [True, False])
def test_an_image_that_is_called_dicom_goes_to_quarantine(tmp_path: Path, row: bool):
    src, labels, key = small_set(tmp_path)
    png = cv2.imencode(".png", np.arange(4096, dtype=np.uint8).reshape(64, 64))[1].tobytes()
    for name in ("screen.dcm", "photo.DICOM"):
        (src / name).write_bytes(png)
    (src / "plain.png").write_bytes(png)
    if row:
        with labels.open("a") as file:
            file.write("screen.dcm,Mass\nphoto.DICOM,Mass\n")
    manifest = ingest(source(src, labels, key), config(tmp_path / "out"))
    assert _counts(manifest) == 6
    assert manifest.excluded == {"quarantined": 2}
    bad = pq.read_table(tmp_path / "out/dicom/quarantine.parquet").to_pylist()
    assert {(r["reason"], r["sha256"]) for r in bad} == {
        ("not a DICOM file", hashlib.sha256(png).hexdigest())
    }


def test_a_header_that_is_unread_keeps_the_image_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Its pixels decode; the disk failed when the header was read, in a run that goes on."""
    src, labels, key = small_set(tmp_path)

    def fail(*_, **__):
        raise RunFailed("the server is gone")

    monkeypatch.setattr("ingest.run.assemble", fail)
    with pytest.raises(RunFailed):
        ingest(source(src, labels, key), config(tmp_path / "out"))  # all are in the spool
    monkeypatch.undo()
    calls = []

    def failing(stream):
        calls.append(stream)
        if len(calls) == 2:
            raise BadImage("cannot be read: Input/output error")
        return read_header(stream)

    monkeypatch.setattr("ingest.sources.dicom.read_header", failing)
    manifest = ingest(source(src, labels, key), config(tmp_path / "out"))
    assert (_counts(manifest), manifest.excluded) == (5, {"quarantined": 1})
    (bad,) = pq.read_table(tmp_path / "out/dicom/quarantine.parquet").to_pylist()
    assert bad["reason"] == "unread header: cannot be read: Input/output error"
    plain = config(tmp_path / "out")
    assert _counts(retry(source(src, labels, key), plain)) == 6
    assert verify_dataset(tmp_path / "out/dicom", lambda n: None) == []
    rest = samples(tmp_path / "out")
    assert {r["patient"] is None for r in rest.values()} == {False}
    assert len(rest) == 6


@pytest.mark.parametrize("selected", [False, True])
def test_a_file_that_is_mended_is_found_by_retry(tmp_path: Path, selected: bool):
    """Cut in its header, no DICOM at all, burnt-in words: each has other metadata once mended."""
    src, labels, key = small_set(tmp_path)
    whole = tmp_path / "whole"
    shutil.copytree(src, whole)
    (src / "study0/image1.dcm").write_bytes(b"<html>not found</html>")
    for n in (3, 4):  # whose rows are by UID, so that theirs are without a file
        path = src / f"study{n // 2}/image{n}.dcm"
        path.write_bytes(path.read_bytes()[:150])
    write(
        src / "study2/image5.dcm",
        picture(5),
        bits=12,
        SOPInstanceUID="1.2.5",
        PatientID="patient3",
        PatientSex="F",
        PatientAge="058Y",
        BurnedInAnnotation="YES",
    )

    def dicom() -> Source:
        given = SelectionConfig(fractions=(0.5, 0.2, 0.3)) if selected else SelectionConfig()
        return select(source(src, labels, key), given)

    out = tmp_path / "out"
    manifest = ingest(dicom(), config(out, max_bad=1.0))
    assert (_counts(manifest), manifest.excluded) == (2, {"quarantined": 4, "image missing": 2})
    for path in ("study0/image1.dcm", "study2/image5.dcm", "study1/image3.dcm"):
        shutil.copy(whole / path, src / path)
    manifest = retry(dicom(), config(out))
    assert (_counts(manifest), manifest.excluded) == (5, {"quarantined": 1, "image missing": 1})
    assert manifest.notes[0].startswith("missing: 1 of the label table's 6 rows")
    shutil.copy(whole / "study2/image4.dcm", src / "study2/image4.dcm")
    manifest = retry(dicom(), config(out))
    assert (_counts(manifest), manifest.excluded) == (6, {})
    assert not any("missing" in note for note in manifest.notes)
    assert verify_dataset(out / "dicom", lambda n: None) == []
    assert ingest(dicom(), config(out)) == manifest
    fresh = tmp_path / "fresh"
    ingest(source(whole, labels, key), config(fresh))
    assert samples(out).keys() == samples(fresh).keys()


def test_what_has_no_pixels_is_not_cut_short():
    directory = "1.2.840.10008.1.3.10"
    assert is_cut_short(DicomHeader(cut=True))
    assert is_cut_short(DicomHeader(cut=True, modality="dx"))
    assert not is_cut_short(DicomHeader(modality="DX"))
    assert not is_cut_short(DicomHeader(cut=True, modality="SR"))
    assert not is_cut_short(DicomHeader(cut=True, sop_class=directory))


def test_what_else_changed_is_refused_by_retry(tmp_path: Path):
    src, labels, key = small_set(tmp_path)
    path = src / "study0/image1.dcm"
    data = path.read_bytes()
    path.write_bytes(data[:150])
    ingest(source(src, labels, key), config(tmp_path / "out"))
    path.write_bytes(data)
    text = labels.read_text()
    labels.write_text(text.replace("1.2.3,Mass", "1.2.3,Edema"))
    with pytest.raises(UserError, match="metadata_sha256"):
        retry(source(src, labels, key), config(tmp_path / "out"))
