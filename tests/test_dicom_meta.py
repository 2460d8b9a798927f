"""ingest.dicom_meta: views, ages, and headers that are cut short."""

import pytest

from ingest.dicom_meta import age_of, is_cut_short, view_of
from shards.dicom_header import DicomHeader


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
    [
        ("058Y", 58),
        ("62", 62),
        ("009M", 0),
        ("107Y", 90),
        ("999Y", None),
        ("121", None),
        ("", None),
        ("old", None),
    ],
)
def test_ages(text, years):
    assert age_of(text) == years


def test_what_has_no_pixels_is_not_cut_short():
    directory = "1.2.840.10008.1.3.10"
    assert is_cut_short(DicomHeader(cut=True))
    assert is_cut_short(DicomHeader(cut=True, modality="dx"))
    assert not is_cut_short(DicomHeader(modality="DX"))
    assert not is_cut_short(DicomHeader(cut=True, modality="SR"))
    assert not is_cut_short(DicomHeader(cut=True, sop_class=directory))
