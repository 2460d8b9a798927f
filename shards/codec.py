"""Image bytes <-> grey 8-bit pixels. Decode a stranger's bytes only in a worker process.

Encodings: `htj2k` (lossless, in the boxes of a JPH file: bare codestreams make DALI and OpenCV
print a warning for every image), `jpeg`, `png`. `keep` (the source's own bytes) needs no encoder.
Rates on one core, 512 x 512: HTJ2K 1,208 decodes/s, PNG by kornia-rs 1,024, by OpenCV 451.
"""

import io
import struct
from dataclasses import dataclass
from typing import Literal

import cv2
import imagecodecs
import kornia_rs.io
import numpy as np
from PIL import Image, UnidentifiedImageError

from shards.bad_image import BadImage as BadImage
from shards.depth import Values
from shards.jpeg import decode_jpeg, jpeg_exif
from shards.jpeg_2000 import jpeg_2000_bits
from shards.kinds import kind_of, unread_kind
from shards.netpbm import decode_deep_netpbm
from shards.orientation import exif_orientation, turned
from shards.png import MAX_PIXELS as MAX_PIXELS
from shards.png import (
    MAX_SIDE,
    PNG_SIGNATURE,
    check_palette,
    decode_plain_png,
    png_chunks,
    sound_png,
    with_right_adler,
)
from shards.png_16 import decode_png_16
from shards.tiff import decode_tiff, is_tiff, tiff_size

Encoding = Literal["htj2k", "jpeg", "png", "keep"]
EXTENSIONS = {"htj2k": "jph", "jpeg": "jpg", "png": "png"}
JPEG_QUALITY = 95
_STORED_DEPTH = 16  # of images that `keep` put into shards before it refused those of 16 bits

_JP2_SIGNATURE = b"\x00\x00\x00\x0cjP  \r\n\x87\n"
_HTJ2K_BRAND = b"jph "
_BEFORE_FRAME = {0xE0, 0xDB, 0xC4, 0xFE}  # JPEG's JFIF, quantisation, Huffman tables and comments
_FRAME = struct.Struct(">HHBHHB")  # marker SOF, length, bits, height, width, channels
_KORNIA_MODES = {"L": "mono", "RGB": "rgb", "RGBA": "rgba"}  # Pillow's name -> kornia-rs's
_COLOURS_2000 = {("JPEG2000", mode) for mode in ("LA", "RGB", "RGBA")}
_READABLE = ("PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP", "JPEG2000", "PPM")

Image.init()  # `formats=` knows only the formats that are loaded
Image.MAX_IMAGE_PIXELS = None  # `read_header` holds the limit, with our own message


@dataclass(frozen=True)
class ImageHeader:
    """What the first bytes declare: Pillow's format and mode names (of a TIFF no mode), size in
    pixels as stored."""

    format: str
    mode: str
    width: int
    height: int


def read_header(data: bytes, max_pixels: int = MAX_PIXELS) -> ImageHeader:
    """Declared format and size, without decoding. BadImage when unreadable or too large."""
    if not data:
        raise BadImage("empty file")
    if kind := unread_kind(data):
        raise BadImage(f"{kind}: this kind is not read")
    try:
        header = _header(data)
    except BadImage:
        raise
    except UnidentifiedImageError:
        known = kind_of(data)
        what = f"{known} whose header is damaged or of a rare variant" if known else "not an image"
        raise BadImage(what) from None
    except Exception as error:  # Pillow's parsers raise many kinds on damaged bytes
        raise BadImage(f"unreadable header: {error}") from error
    if max(header.width, header.height) > MAX_SIDE:
        raise BadImage(f"{header.width} x {header.height} pixels, a side over {MAX_SIDE}")
    if header.width * header.height > max_pixels:
        raise BadImage(f"{header.width} x {header.height} pixels, over the limit of {max_pixels}")
    return header


def _header(data: bytes) -> ImageHeader:
    if is_tiff(data):
        return ImageHeader("TIFF", "", *tiff_size(data))
    if data.startswith(PNG_SIGNATURE):
        data = sound_png(data)
    with Image.open(io.BytesIO(data), formats=_READABLE) as image:
        return ImageHeader(image.format or "", image.mode, *image.size)


def decode_grey(data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """An image of ours -> (H, W) uint8 grey (ITU-R 601 luma), alpha dropped, EXIF turn applied.

    BadImage when the bytes do not decode as a whole.
    """
    if is_htj2k(data):
        return _decode_htj2k(data, max_pixels)
    if _is_plain_jpeg(data, max_pixels):
        return _decode_plain_jpeg(data)
    return decode_doubtful(data, max_pixels)


def decode_source(
    data: bytes, max_pixels: int = MAX_PIXELS, depth: int | None = None
) -> np.ndarray:
    """A stranger's image or DICOM file -> (H, W) uint8 grey. depth: see `shards.depth`. BadImage.
    Only in a worker."""
    return decode_values(data, max_pixels).grey(depth)


def decode_values(data: bytes, max_pixels: int = MAX_PIXELS) -> Values:
    """The same, before values of more than 8 bits become grey levels. A DICOM file has rules of its
    own for that."""
    if is_dicom(data):
        from shards.dicom import decode_dicom  # 0.2 s, for those who have such files

        return Values(decode_dicom(data, max_pixels))
    return _decode_doubtful(data, max_pixels)


def decode_doubtful(data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """As `decode_grey`, for bytes that may be damaged: HTJ2K by OpenJPEG, at half the rate, because
    OpenJPH dies of some damaged streams, and leaves pixels unset in others without a word."""
    return _decode_doubtful(data, max_pixels).grey(_STORED_DEPTH)


def _decode_doubtful(data: bytes, max_pixels: int) -> Values:
    plain = decode_plain_png(data, max_pixels)
    if plain is not None:
        return Values(plain)
    header = read_header(data, max_pixels)
    try:
        return _decode(data, header)
    except BadImage:
        raise
    except Exception as error:  # kornia-rs raises Exception itself
        raise BadImage(f"does not decode: {error}") from error


def _decode(data: bytes, header: ImageHeader) -> Values:
    if header.format == "PNG":
        return _decode_png(sound_png(data), header)
    if header.format in ("JPEG", "MPO"):
        grey = decode_jpeg(data, header.width * header.height, grey=True)
        return Values(turned(grey, exif_orientation(jpeg_exif(data))))
    if (header.format, header.mode) in _COLOURS_2000 and jpeg_2000_bits(data) == 16:
        raise BadImage("a JPEG 2000 image of 16-bit colours: this kind is not read")
    if header.format == "TIFF":
        return decode_tiff(data) or _decode_pillow(data)
    deep = decode_deep_netpbm(data) if header.format == "PPM" else None
    return deep or _decode_pillow(data)


def _decode_png(data: bytes, header: ImageHeader) -> Values:
    # kornia-rs reads 302 PNG 1024 per second and core, Pillow 117, OpenCV 134. The bit depth stands
    # in IHDR: 1, 2 and 4 bit greys go Pillow's way; and so do an EXIF turn and an animation, which
    # kornia-rs passes over. 16 bits go a way of their own.
    special = {b"eXIf", b"acTL"} & {kind for kind, _, _ in png_chunks(data)}
    if header.mode in _KORNIA_MODES and data[24] == 8 and not special:
        size = (header.height, header.width)
        image = np.asarray(kornia_rs.io.decode_image_png_u8(data, size, _KORNIA_MODES[header.mode]))
        return Values(image.reshape(size) if header.mode == "L" else _grey(image))
    if data[24] != 16 or b"acTL" in special:
        return _decode_pillow(with_right_adler(data))
    try:
        return decode_png_16(data)
    except (ValueError, RuntimeError):
        return decode_png_16(with_right_adler(data))


def _grey(image: np.ndarray) -> np.ndarray:
    """(H, W, 3 or 4) uint8 -> its luma as Pillow has it, alpha dropped. Grey images saved as RGBA,
    as some of ChestX-ray14 are, have three equal channels: 7 ms, not 15, for 1024 x 1024."""
    red = cv2.extractChannel(image, 0)
    if all(np.array_equal(red, cv2.extractChannel(image, channel)) for channel in (1, 2)):
        return red
    return np.array(Image.fromarray(np.ascontiguousarray(image[..., :3])).convert("L"))


def _decode_pillow(data: bytes) -> Values:
    with Image.open(io.BytesIO(data), formats=_READABLE) as image:
        if getattr(image, "n_frames", 1) > 1:
            raise ValueError("an animation or a stack of several images")
        image.info.pop("xmp", None)  # Pillow turns a TIFF itself, by its XMP too
        image.load()
        if (image.format, image.mode) == ("PNG", "P"):
            check_palette(data, int(np.asarray(image).max()))
        orientation = exif_orientation(image.info.get("exif", b""))
        if image.mode.startswith(("I", "F")):
            # Of JPEG 2000 Pillow moves values of another number of bits to fill 16.
            filled = image.format == "JPEG2000" and jpeg_2000_bits(data) != 16
            return Values(turned(_unsigned(image), orientation), 16 if filled else None)
        grey = image if image.mode == "L" else image.convert("RGB").convert("L")
        return Values(turned(np.asarray(grey), orientation))


def _unsigned(image: Image.Image) -> np.ndarray:
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 0xFFFF:
        raise ValueError(f"pixel values of mode {image.mode} do not fit into 16 bits")
    return values.astype(np.uint16)


def _is_plain_jpeg(data: bytes, max_pixels: int) -> bool:
    """Whether they are a whole grey 8-bit baseline JPEG without EXIF, as ingest writes them."""
    if not (data.startswith(b"\xff\xd8\xff") and data.endswith(b"\xff\xd9")):
        return False
    at = 2
    while at + 10 <= len(data) and data[at] == 0xFF and data[at + 1] in _BEFORE_FRAME:
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    marker, _, bits, height, width, channels = _FRAME.unpack_from(data.ljust(at + 10), at)
    return (marker, bits, channels) == (0xFFC0, 8, 1) and 0 < height * width <= max_pixels


def _decode_plain_jpeg(data: bytes) -> np.ndarray:
    # Pillow's pixels (both have libjpeg-turbo) in three quarters of its time.
    try:
        return np.asarray(imagecodecs.jpeg8_decode(data))
    except (ValueError, RuntimeError) as error:
        raise BadImage(f"does not decode: {error}") from error


def is_dicom(data: bytes) -> bool:
    """Whether bytes begin as a DICOM file (PS3.10) does."""
    return data[128:132] == b"DICM"


def is_htj2k(data: bytes) -> bool:
    """Whether these bytes are a JPH file (HTJ2K in its boxes)."""
    return data.startswith(_JP2_SIGNATURE) and data[20:24] == _HTJ2K_BRAND


def _decode_htj2k(data: bytes, max_pixels: int) -> np.ndarray:
    if len(data) < 56 or len(data) != _declared_length(data):
        raise BadImage("does not decode: the file is cut short")
    height, width = struct.unpack(">II", data[48:56])
    if not 0 < height * width <= max_pixels:
        raise BadImage(f"{width} x {height} pixels, over the limit of {max_pixels}")
    try:
        image = imagecodecs.htj2k_decode(data)
    except (ValueError, RuntimeError) as error:
        raise BadImage(f"does not decode: {error}") from error
    if image.dtype != np.uint8 or image.shape != (height, width):
        raise BadImage(f"expected grey 8 bit {width} x {height}, found {image.dtype} {image.shape}")
    return image


def _declared_length(data: bytes) -> int:
    """The length of a JPH file as its boxes state it (OpenJPH decodes one cut short silently)."""
    position = 0
    while position + 8 <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        if length < 8:
            break
        position += length
    return position


def _box(kind: bytes, payload: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(payload), kind) + payload


def _encode_htj2k(image: np.ndarray) -> bytes:
    height, width = image.shape
    ihdr = _box(b"ihdr", struct.pack(">IIHBBBB", height, width, 1, 7, 7, 0, 0))
    colr = _box(b"colr", struct.pack(">BBBI", 1, 0, 0, 17))  # 17: grey
    ftyp = _box(b"ftyp", _HTJ2K_BRAND + b"\0\0\0\0" + _HTJ2K_BRAND)
    codestream = imagecodecs.htj2k_encode(image)
    return _JP2_SIGNATURE + ftyp + _box(b"jp2h", ihdr + colr) + _box(b"jp2c", bytes(codestream))


def encode(image: np.ndarray, encoding: Encoding) -> bytes:
    """(H, W) uint8 grey -> bytes of one of the three encodings."""
    if encoding == "htj2k":
        return _encode_htj2k(image)
    if encoding == "jpeg":
        return bytes(imagecodecs.jpeg8_encode(image, level=JPEG_QUALITY))
    if encoding == "png":
        done, buffer = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 1])
        if not done:
            raise BadImage("could not be encoded as PNG")
        return buffer.tobytes()
    raise ValueError(f"no encoder for {encoding!r}; there are: htj2k, jpeg, png")
