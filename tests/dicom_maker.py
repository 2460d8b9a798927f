"""DICOM files made in a test: a header, pixels in any transfer syntax."""

import io
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    JPEG2000,
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

ENCODERS = {
    JPEG2000Lossless: lambda a, bits: imagecodecs.jpeg2k_encode(
        a, level=0, codecformat="J2K", reversible=True, bitspersample=bits
    ),
    JPEG2000: lambda a, bits: imagecodecs.jpeg2k_encode(a, level=0, codecformat="J2K"),
    HTJ2KLossless: lambda a, bits: imagecodecs.htj2k_encode(a),
    JPEGLosslessSV1: lambda a, bits: imagecodecs.ljpeg_encode(a, bitspersample=bits),
    JPEGLSLossless: lambda a, bits: imagecodecs.jpegls_encode(a),
    JPEGBaseline8Bit: lambda a, bits: imagecodecs.jpeg8_encode(a, level=95),
    JPEGExtended12Bit: lambda a, bits: imagecodecs.jpeg8_encode(a, level=95, bitspersample=bits),
}
RAW = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)


def make_dicom(
    pixels: np.ndarray,
    *,
    syntax: UID = ExplicitVRLittleEndian,
    bits: int | None = None,
    **elements: Any,
) -> Dataset:
    """pixels: (H, W) or (H, W, 3), uint8, uint16 or int16; elements: keyword -> value, over those
    of a frontal radiograph; None leaves an element out."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.1")
    meta.MediaStorageSOPInstanceUID = UID(elements.get("SOPInstanceUID") or "1.2.3.4.5")
    dataset = Dataset()
    dataset.file_meta = meta
    stored = bits or 8 * pixels.dtype.itemsize
    given = {
        "SOPClassUID": meta.MediaStorageSOPClassUID,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "Modality": "DX",
        "PatientID": "patient",
        "ViewPosition": "PA",
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "SamplesPerPixel": 1 if pixels.ndim == 2 else 3,
        "PhotometricInterpretation": "MONOCHROME2" if pixels.ndim == 2 else "RGB",
        "BitsAllocated": 8 * pixels.dtype.itemsize,
        "BitsStored": stored,
        "HighBit": stored - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
    }
    if pixels.ndim == 3:
        given["PlanarConfiguration"] = 0
    for name, value in {**given, **elements}.items():
        if value is not None:
            setattr(dataset, name, value)
    _put_pixels(dataset, pixels, syntax, stored)
    return dataset


def _put_pixels(dataset: Dataset, pixels: np.ndarray, syntax: UID, bits: int) -> None:
    if syntax in ENCODERS:
        dataset.PixelData = encapsulate([bytes(ENCODERS[syntax](pixels, bits))])
        dataset["PixelData"].is_undefined_length = True
    elif syntax == RLELossless:
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
        instance = dataset.SOPInstanceUID
        dataset.compress(RLELossless, generate_instance_uid=False)
        assert dataset.SOPInstanceUID == instance
    else:
        order = ">" if syntax == ExplicitVRBigEndian else "<"
        data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
        dataset.PixelData = data + b"\0" * (len(data) % 2)
    dataset["PixelData"].VR = "OB" if bits <= 8 or syntax not in RAW else "OW"


def to_bytes(dataset: Dataset) -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def dicom_bytes(pixels: np.ndarray, **options: Any) -> bytes:
    return to_bytes(make_dicom(pixels, **options))


def item(**elements: Any) -> Dataset:
    dataset = Dataset()
    for name, value in elements.items():
        setattr(dataset, name, value)
    return dataset


def write(path: Path, pixels: np.ndarray, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(dicom_bytes(pixels, **options))
    return path


def picture(seed: int) -> np.ndarray:
    """(72, 84) uint16 of 12 bits, another for every seed, none a near duplicate of another."""
    coarse = np.random.default_rng(seed).integers(0, 4096, (6, 7)).astype(np.uint16)
    return np.kron(coarse, np.ones((12, 12), np.uint16))


def table(path: Path, *rows: str, header: str = "id,labels") -> Path:
    """A label table."""
    path.write_text("\n".join([header, *rows]) + "\n")
    return path
