"""DICOM bytes -> grey 8-bit pixels, as a viewer would first show them. Only in a worker process.

One rule, PS3.3 C.11 in its order: stored value -> modality LUT or rescale -> the first VOI LUT,
else the first window (LINEAR, LINEAR_EXACT, SIGMOID) -> 0..255 -> inverted for MONOCHROME1. What
0..255 spans: the window; with a VOI LUT, its lowest to its highest entry (many declare more bits
than they use); with neither, all values that BitsStored allows for 8 bits and less (so 8-bit
pixels stay as they are), and for more bits the 0.1st to the 99.9th percentile, because 12 bits in
16 are the rule, and one dead pixel or one lead letter would decide minimum or maximum. Padding
counts for no percentile and becomes black. Since MONOCHROME1 decides the inversion,
PresentationLUTShape, which repeats it, does not. Overlays are not drawn.

Every pixel goes through a table of at most 65,536 entries, so no rule costs more than a look-up.
pydicom reads the header, `shards.dicom_pixels` the pixels.
"""

from io import BytesIO

import numpy as np
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from shards.bad_image import BadImage
from shards.codec import MAX_PIXELS
from shards.dicom_header import contained, has_pixels, inflated, read_header
from shards.dicom_pixels import BIG_ENDIAN, RAW, RLE, Layout, StoredPixels, read_pixels

LOW, HIGH = 0.001, 0.999  # of the pixels, where nothing says what range to show
_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")
_TAGS = """Rows Columns SamplesPerPixel PhotometricInterpretation PlanarConfiguration NumberOfFrames
BitsAllocated BitsStored HighBit PixelRepresentation PixelPaddingValue PixelPaddingRangeLimit
RescaleSlope RescaleIntercept ModalityLUTSequence VOILUTSequence VOILUTFunction WindowCenter
WindowWidth PixelData"""


def decode_dicom(data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """A DICOM file -> (H, W) uint8 grey. BadImage, without any content of the file, when it does
    not hold exactly one image that decodes as a whole."""
    read_header(BytesIO(data))  # the same refusals as before the pixels were read
    with contained():
        data = inflated(data)
        dataset = dcmread(BytesIO(data), specific_tags=list(_TAGS.split()))
        if "PixelData" not in dataset:
            cut = "the file is cut short in its pixels"
            raise BadImage(cut if has_pixels(data) else "a DICOM file without pixels")
        layout = _layout(dataset, max_pixels)
        pixels = read_pixels(dataset, layout)
        if layout.samples == 3:
            return _luma(pixels)
        return _show(pixels.values, dataset, layout)


def _layout(dataset: Dataset, max_pixels: int) -> Layout:
    """Everything that is refused before a decoder runs."""
    rows, columns = _integer(dataset, "Rows"), _integer(dataset, "Columns")
    if not 0 < rows * columns <= max_pixels:
        raise BadImage(f"{columns} x {rows} pixels, over the limit of {max_pixels}")
    frames = _integer(dataset, "NumberOfFrames", 1) or 1  # 0 is written, and means one image
    if frames != 1:
        raise BadImage(f"{frames} frames in one DICOM file, expected one image")
    samples = _integer(dataset, "SamplesPerPixel", 1)
    photometric = str(dataset.get("PhotometricInterpretation", "")).strip().upper()
    if photometric not in {1: _GREY, 3: _COLOUR}.get(samples, ()):
        known = ", ".join(_GREY + _COLOUR)
        raise BadImage(f"photometric interpretation not read; there are: {known}")
    allocated = _integer(dataset, "BitsAllocated")
    stored = _integer(dataset, "BitsStored", allocated)
    if allocated not in (8, 16) or not 1 <= stored <= allocated or (samples, allocated) == (3, 16):
        raise BadImage(f"{stored} of {allocated} bits, {samples} samples: not read")
    if _integer(dataset, "HighBit", stored - 1) != stored - 1:
        raise BadImage("the highest bit is not BitsStored - 1: not read")
    syntax = str(dataset.file_meta.get("TransferSyntaxUID", RAW[0]))
    return Layout(
        syntax=syntax,
        photometric=photometric,
        rows=rows,
        columns=columns,
        samples=samples,
        allocated=allocated,
        stored=stored,
        signed=_integer(dataset, "PixelRepresentation", 0) == 1,
        planar=syntax == RLE or _integer(dataset, "PlanarConfiguration", 0) == 1,
        words=dataset["PixelData"].VR == "OW",
    )


def _integer(dataset: Dataset, name: str, default: int | None = None) -> int:
    value = dataset.get(name)
    if value is None or value == "":
        if default is None:
            raise BadImage(f"a DICOM file without {name}")
        return default
    return int(value)


def _luma(pixels: StoredPixels) -> np.ndarray:
    """(H, W, 3) uint8 -> ITU-R 601 luma."""
    if pixels.values.dtype != np.uint8:
        raise BadImage("colours of more than 8 bits: not read")
    if pixels.luma:
        return np.ascontiguousarray(pixels.values[..., 0])
    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels.values)).convert("L"))


def _codes(pixels: np.ndarray, layout: Layout) -> np.ndarray:
    """(H, W) uint16: stored value - lowest, the bits above BitsStored (old overlays) dropped.
    Codecs give signed values as such or as the same bits unsigned."""
    codes = pixels.astype(np.uint16) & np.uint16((1 << layout.stored) - 1)
    return codes ^ np.uint16(1 << layout.stored - 1) if layout.signed else codes


def _show(pixels: np.ndarray, dataset: Dataset, layout: Layout) -> np.ndarray:
    """(H, W) stored values -> (H, W) uint8."""
    codes = _codes(pixels, layout)
    inputs = np.arange(layout.lowest, layout.lowest + (1 << layout.stored))
    padding, outside = _padding(inputs, pixels, dataset, layout)
    values = _modality(inputs.astype(np.float64), dataset)
    shown = _voi(values, dataset)
    if shown is None:
        low, high = float(values.min()), float(values.max())
        if layout.stored > 8:
            counted = codes if outside is None else codes[~outside]
            low, high = _range(values, np.where(padding, 0, _histogram(counted, len(inputs))))
        shown = (values - low) / max(high - low, np.finfo(float).tiny)
    if not np.isfinite(shown).all():
        raise BadImage("its rescale or window values are not numbers")
    table = np.rint(255 * np.clip(shown, 0, 1)).astype(np.uint8)
    if layout.photometric == "MONOCHROME1":
        table = 255 - table
    table[padding] = 0
    grey = np.take(table, codes)
    if outside is not None:
        grey[outside] = 0
    return grey


def _histogram(codes: np.ndarray, size: int) -> np.ndarray:
    # In parts: bincount makes 8 bytes of every pixel.
    parts = np.array_split(codes, 16)
    return np.sum([np.bincount(part.ravel(), minlength=size) for part in parts], axis=0)


def _padding(
    inputs: np.ndarray, pixels: np.ndarray, dataset: Dataset, layout: Layout
) -> tuple[np.ndarray, np.ndarray | None]:
    """What stands for no tissue (PS3.3 C.7.5.1.1.2): (len(inputs),) bool, these stored values; and
    (H, W) bool, these pixels, where padding uses bits above BitsStored, which it must not. It may
    be written as the same bits with the other sign."""
    none = np.zeros(len(inputs), bool)
    first = dataset.get("PixelPaddingValue")
    if first is None or first == "":
        return none, None
    last = _integer(dataset, "PixelPaddingRangeLimit", int(first))
    low, high = sorted(_signed_alike(int(value), layout) for value in (first, last))
    if inputs[0] <= low and high <= inputs[-1]:
        return (inputs >= low) & (inputs <= high), None
    whole = pixels.astype(f"{'i' if layout.signed else 'u'}{layout.allocated // 8}")
    return none, (whole >= low) & (whole <= high)


def _signed_alike(value: int, layout: Layout) -> int:
    """The value whose bits these are in pixels of this sign."""
    bits = value & ((1 << layout.allocated) - 1)
    return bits - (1 << layout.allocated) * (layout.signed and bits >> layout.allocated - 1)


def _modality(values: np.ndarray, dataset: Dataset) -> np.ndarray:
    """PS3.3 C.11.1."""
    tables = dataset.get("ModalityLUTSequence")
    if tables:
        return _look_up(values, tables[0], dataset)
    slope, intercept = _number(dataset, "RescaleSlope"), _number(dataset, "RescaleIntercept")
    if slope == 0:  # would make every pixel the same: no rescale, as dcmtk has it
        return values
    return values * (1 if slope is None else slope) + (intercept or 0)


def _voi(values: np.ndarray, dataset: Dataset) -> np.ndarray | None:
    """PS3.3 C.11.2: what to show, 0 to 1 (beyond: clipped). None when the file does not say."""
    tables = [one for one in dataset.get("VOILUTSequence") or () if "LUTData" in one]
    if tables:
        found = _look_up(values, tables[0], dataset)
        entries = _entries(tables[0], dataset)
        return (found - entries.min()) / max(np.ptp(entries), 1)
    center, width = _number(dataset, "WindowCenter"), _number(dataset, "WindowWidth")
    if center is None or width is None:
        return None
    function = str(dataset.get("VOILUTFunction") or "LINEAR").strip()
    if function not in _FUNCTIONS:
        raise BadImage(f"VOI LUT function not read; there are: {', '.join(_FUNCTIONS)}")
    if not width > 0 or (function == "LINEAR" and width < 1):
        raise BadImage("a window without width")
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -50, 50)))
    if function == "LINEAR_EXACT":
        return (values - center) / width + 0.5
    if width == 1:
        return (values > center - 0.5).astype(np.float64)
    return (values - (center - 0.5)) / (width - 1) + 0.5


def _range(values: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """The percentiles LOW and HIGH (nearest rank) of values that occur `counts` times."""
    order = np.argsort(values, kind="stable")
    ranks = np.cumsum(counts[order])
    if ranks[-1] == 0:
        return 0.0, 0.0
    low, high = np.searchsorted(ranks, np.ceil(np.array([LOW, HIGH]) * ranks[-1]))
    return float(values[order[low]]), float(values[order[high]])


def _number(dataset: Dataset, name: str) -> float | None:
    """The first value of an element."""
    value = dataset.get(name)
    if isinstance(value, MultiValue):
        value = value[0] if value else None
    return None if value is None or value == "" else float(value)


def _look_up(values: np.ndarray, table: Dataset, dataset: Dataset) -> np.ndarray:
    """PS3.3 C.11.1.1: values before the first entry get the first, those behind it the last."""
    entries = _entries(table, dataset)
    first = int(table.LUTDescriptor[1])
    if first > 32767 and values.min() < 0:
        first -= 1 << 16  # written unsigned, meant signed
    places = np.clip(np.rint(values) - first, 0, len(entries) - 1).astype(np.intp)
    return entries[places].astype(np.float64)


def _entries(table: Dataset, dataset: Dataset) -> np.ndarray:
    count = int(table.LUTDescriptor[0]) or 1 << 16
    data = table.LUTData
    if isinstance(data, bytes):
        order = ">" if dataset.file_meta.get("TransferSyntaxUID") == BIG_ENDIAN else "<"
        data = np.frombuffer(data, f"{order}u{2 if len(data) >= 2 * count else 1}")
    entries = np.atleast_1d(np.asarray(data, np.int64))[:count]
    if len(entries) < count:
        raise BadImage("a look-up table is cut short")
    return entries
