"""500 random DICOM files through dcmtk's and GDCM's own encoders and decoders: our grey levels are
theirs within one, and every refusal is one that the table here explains."""

import shutil
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_maker import item, make_dicom, to_bytes
from PIL import Image
from pydicom.dataset import Dataset

from shards.codec import BadImage
from shards.dicom import decode_dicom

pytestmark = pytest.mark.soak

FILES = 500
TOOLS = ("dcmj2pnm", "dcmcjpeg", "dcmcjpls", "dcmcrle", "dcmconv", "gdcmconv")
# Name -> the command that makes such a file of a plain one.
ENCODERS = {
    "lossless JPEG": ("dcmcjpeg", "+e1"),
    "lossless JPEG, any predictor": ("dcmcjpeg", "+el", "+sv", "4"),
    "JPEG-LS": ("dcmcjpls", "+el"),
    "RLE": ("dcmcrle",),
    "big endian": ("dcmconv", "+tb"),
    "deflated": ("dcmconv", "+td"),
    "implicit": ("dcmconv", "+ti"),
    "GDCM JPEG 2000": ("gdcmconv", "--j2k"),
    "GDCM JPEG-LS": ("gdcmconv", "--jpegls"),
    "GDCM lossless JPEG": ("gdcmconv", "--jpeg"),
    "GDCM RLE": ("gdcmconv", "--rle"),
    "baseline JPEG": ("dcmcjpeg", "+eb", "+q", "95"),
    "extended JPEG": ("dcmcjpeg", "+ee", "+q", "95"),
}
LOSSY = {"baseline JPEG", "extended JPEG"}
REFUSED: dict[str, str] = {}  # reason -> why it is right


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)


def random_file(rng: np.random.Generator) -> tuple[Dataset, np.ndarray]:
    """A plain file, and its stored values."""
    bits = int(rng.choice([8, 8, 10, 12, 12, 14, 16]))
    signed = bool(rng.random() < 0.3)
    height, width = (int(n) for n in rng.integers(9, 70, 2))
    coarse = rng.integers(0, 1 << bits, (height // 6 + 1, width // 6 + 1))
    pixels = np.kron(coarse, np.ones((6, 6), int))[:height, :width]
    pixels = (pixels + rng.integers(0, 3, pixels.shape)).clip(0, (1 << bits) - 1)
    kind = "i" if signed else "u"
    values = (pixels - (signed << bits - 1)).astype(f"{kind}{1 if bits <= 8 else 2}")
    elements: dict[str, object] = {
        "PhotometricInterpretation": str(rng.choice(["MONOCHROME1", "MONOCHROME2"]))
    }
    way = rng.choice(["window", "sigmoid", "lut", "none"], p=[0.5, 0.1, 0.2, 0.2])
    # Half values, which the standard's formulas take as they are, dcmtk turns into whole ones.
    slope = float(rng.choice([1, 1, 2, 0.5 if way == "none" else 1, 0]))
    if rng.random() < 0.5:
        elements |= {"RescaleSlope": slope, "RescaleIntercept": int(rng.integers(-1024, 100))}
    shown = float(rng.choice([0.2, 0.6, 1.0])) * (1 << bits) * (slope or 1)
    shift = int(str(elements.get("RescaleIntercept", 0))) if slope else 0
    center = round(float(values.mean()) * (slope or 1)) + shift
    if way in ("window", "sigmoid"):
        elements |= {"WindowCenter": center, "WindowWidth": max(2, round(shown))}
        if way == "sigmoid":
            elements["VOILUTFunction"] = "SIGMOID"
    elif way == "lut":
        count = int(rng.integers(16, 400))
        data = np.sort(rng.integers(0, 4096, count)).astype(np.uint16)
        data[[0, -1]] = 0, 4095  # as declared: ours spans the entries, dcmtk's the declared bits
        first = int(np.clip(center - count // 2, 0, 60_000))
        elements["VOILUTSequence"] = [
            item(LUTDescriptor=[count, first, 12], LUTData=data.tobytes())
        ]
    dataset = make_dicom(values, bits=bits, **elements)
    if rng.random() < 0.2:
        dataset.add_new("PixelPaddingValue", "SS" if signed else "US", int(values[0, 0]))
    return dataset, values


def of_dcmtk(path: Path, folder: Path, dataset: Dataset) -> np.ndarray | None:
    """dcmtk's own picture of a file with a window or a VOI LUT, None where its rule is another."""
    if "VOILUTSequence" in dataset:
        way = "+Wl"
    elif "WindowCenter" in dataset:
        way = "+Wi"
    else:
        return None
    picture = folder / "shown.pgm"
    done = run("dcmj2pnm", "+op", way, "1", path, picture)
    if done.returncode:
        return None
    with Image.open(picture) as image:
        return np.asarray(image)


def reference(dataset: Dataset, values: np.ndarray) -> np.ndarray:
    """(H, W) grey levels of a file without a window, in plain numpy (README, DICOM)."""
    bits = dataset.BitsStored
    slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept", 0)
    real = values.astype(float)
    if slope:
        real = real * float(slope) + float(intercept)
    lowest = -(1 << bits - 1) if dataset.PixelRepresentation else 0
    ends = np.array([lowest, lowest + (1 << bits) - 1], float)
    low, high = ends * float(slope) + float(intercept) if slope else ends
    padding = np.zeros(values.shape, bool)
    if "PixelPaddingValue" in dataset:
        padding = values == dataset.PixelPaddingValue
    if bits > 8:
        kept = np.sort(real[~padding])
        low, high = (kept[int(np.ceil(q * len(kept))) - 1] for q in (0.001, 0.999))
    level = np.rint(255 * np.clip((real - low) / max(high - low, 1e-300), 0, 1))
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        level = 255 - level
    return np.where(padding, 0, level).astype(np.uint8)


@pytest.fixture(scope="module", autouse=True)
def _tools() -> None:
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (make decoders)")


def test_our_pixels_are_those_of_dcmtk_and_gdcm(tmp_path: Path):
    seen: Counter[str] = Counter()
    unknown: list[str] = []
    wrong: list[str] = []
    for number in range(FILES):
        rng = np.random.default_rng(number)
        dataset, values = random_file(rng)
        plain, coded = tmp_path / "plain.dcm", tmp_path / "coded.dcm"
        plain.write_bytes(to_bytes(dataset))
        syntax = str(rng.choice([*ENCODERS, "plain"]))
        if syntax == "plain":
            coded.write_bytes(plain.read_bytes())
        else:
            done = run(*ENCODERS[syntax], plain, coded)
            if done.returncode:  # GDCM and dcmtk encode not every depth and sign
                seen[f"{syntax}: not encoded"] += 1
                continue
        try:
            ours = decode_dicom(coded.read_bytes())
        except BadImage as error:
            seen[f"refused: {error}"] += 1
            if str(error) not in REFUSED:
                unknown.append(f"{number} {syntax}: {error}")
            continue
        if syntax in LOSSY:  # what dcmtk decodes is the plain file then
            assert run("dcmdjpeg", coded, plain).returncode == 0
            dataset = pydicom.dcmread(plain)
            values = dataset.pixel_array
        theirs = of_dcmtk(plain, tmp_path, dataset)
        expected = reference(dataset, values) if theirs is None else theirs
        if theirs is not None and "PixelPaddingValue" in dataset:
            ours = np.where(values == dataset.PixelPaddingValue, expected, ours)  # dcmtk shows it
        difference = np.abs(ours.astype(int) - expected)
        seen[f"{syntax}: {'reference' if theirs is None else 'dcmtk'}"] += 1
        if difference.max() > (4 if syntax in LOSSY else 1):
            wrong.append(f"{number} {syntax} differs by {difference.max()}: {expected.shape}")
        if coded.exists():
            coded.unlink()
    print("\n".join(f"{name} {count}" for name, count in sorted(seen.items())))
    assert unknown == []
    assert wrong == []
    assert sum(n for name, n in seen.items() if name.endswith(("dcmtk", "reference"))) >= 400
