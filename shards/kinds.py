"""Names a file's kind by its first bytes, for the words about a file that is not read.

Nothing is decoded and no name is looked at: a file called .jpg may hold anything.
"""

from shards.jpeg import jpeg_frame

_NO_PREAMBLE = "a DICOM file without its preamble"
_MAGIC: list[tuple[int, bytes, str]] = [  # at this place these bytes: this kind
    (0, b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (0, b"II*\0", "a TIFF image"),
    (0, b"MM\0*", "a TIFF image"),
    (0, b"II+\0", "a BigTIFF image"),
    (0, b"MM\0+", "a BigTIFF image"),
    (0, b"GIF8", "a GIF image"),
    (8, b"WEBP", "a WebP image"),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 image"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (0, b"\xff\x0a", "a JPEG XL image"),
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL image"),
    (0, b"II\xbc", "a JPEG XR image"),
    (0, b"8BPS", "a Photoshop image"),
    (0, b"v/1\x01", "an OpenEXR image"),
    (0, b"SIMPLE  =", "a FITS image"),
    (128, b"DICM", "a DICOM file"),
    (0, b"\x02\0\0\0UL", _NO_PREAMBLE),
    (0, b"\x08\0\x05\0CS", _NO_PREAMBLE),
    (0, b"\x08\0\x16\0UI", _NO_PREAMBLE),
    (0, b"\x08\0\0\0\4\0\0\0", _NO_PREAMBLE),  # implicit, as ACR-NEMA has it
    (344, b"n+1\0", "a NIfTI volume"),
    (344, b"ni1\0", "a NIfTI volume"),
    (4, b"n+2\0\r\n\x1a\n", "a NIfTI volume"),
    (0, b"NRRD000", "an NRRD volume"),
    (0, b"ObjectType = Image", "a MetaImage volume"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (0, b"MATLAB 5.0", "a MATLAB file"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"PAR1", "a Parquet table"),
    (0, b"%PDF-", "a PDF document"),
    (0, b"{\\rtf", "an RTF document"),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office document (.xls, .doc or .ppt)"),
    (0, b"\x1f\x8b", "a gzip file"),
    (0, b"BZh", "a bzip2 file"),
    (0, b"\xfd7zXZ\0", "an xz file"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd file"),
    (0, b"\x04\x22\x4d\x18", "an lz4 file"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (0, b"Rar!\x1a\x07", "a rar archive"),
    (257, b"ustar", "a tar archive"),
    (8, b"AVI ", "a video"),
    (0, b"\x1a\x45\xdf\xa3", "a video"),
    (0, b"version https://git-lfs", "a Git LFS pointer, not the file itself"),
]
_BRANDS = {  # of ISO's base media file, behind `ftyp`; of several kinds the first one here
    "an AVIF image": {b"avif", b"avis"},
    "a HEIC image": {b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1"},
}
_OFFICE = {
    b"xl/": "an Excel workbook",
    b"word/": "a Word document",
    b"ppt/": "a PowerPoint document",
}
_JPEG = "a JPEG image"
_READ = {
    *("a PNG image", _JPEG, "a TIFF image", "a BigTIFF image", "a GIF image", "a WebP image"),
    "a JPEG 2000 image",
}
_CODED = {  # JPEG's frame markers other than baseline, extended and progressive Huffman
    **dict.fromkeys((0xC3, 0xCB), "a lossless JPEG"),
    **dict.fromkeys((0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF), "a hierarchical JPEG"),
    **dict.fromkeys((0xC9, 0xCA), "an arithmetic-coded JPEG"),
    0xF7: "a JPEG-LS image",
}


def kind_of(data: bytes) -> str | None:
    """The kind of these bytes with its article: "an AVIF image". None where it is not known."""
    if data.startswith(b"\xff\xd8\xff"):
        return _jpeg(data)
    if data[4:8] == b"ftyp":
        return _base_media(data)
    if data.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return next((kind for part, kind in _OFFICE.items() if part in data), "a zip archive")
    for at, magic, kind in _MAGIC:
        if data.startswith(magic, at):
            return kind
    if data[:3] == b"\x5d\0\0" and data[3:5] in (b"\x80\0", b"\0\1", b"\0\2", b"\0\4", b"\0\x10"):
        return "an lzma file"
    if data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"<svg", b"<?xml")) and b"<svg" in data:
        return "an SVG image"
    return None


def unread_kind(data: bytes) -> str | None:
    """`kind_of` of bytes that are not read. None of images that may be, and of unknown ones."""
    kind = kind_of(data)
    return None if kind in _READ else kind


def _jpeg(data: bytes) -> str:
    frame = jpeg_frame(data)
    if frame is None:
        return _JPEG
    marker, bits = frame
    if marker in _CODED:
        return _CODED[marker]
    return _JPEG if bits == 8 else f"a {bits}-bit JPEG"


def _base_media(data: bytes) -> str:
    """By the major and the compatible brands: what is no image of these is a film."""
    listed = data[8 : min(int.from_bytes(data[:4], "big"), 256)]
    found = {listed[at : at + 4] for at in range(0, len(listed), 4)}
    return next((kind for kind, brands in _BRANDS.items() if brands & found), "a video")
