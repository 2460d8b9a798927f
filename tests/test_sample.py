"""shards.sample and shards.labels: keys, metadata and label bytes."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.console import UserError
from shards.labels import CHESTXRAY14, COVID, NO, UNKNOWN, YES
from shards.sample import KEY_PATTERN, Box, SampleMeta, make_key

META = SampleMeta(
    "set", "a/b.png", "0" * 64, 10, 20, "set:7", "PA", 58, "F", (Box("Mass", 1, 2.5, 3, 4),)
)
NAMES = st.text(st.characters(codec="utf-8"), max_size=120)


def test_meta_round_trip():
    assert SampleMeta.from_json(META.to_json()) == META
    bare = SampleMeta("set", "ünï.png", "0" * 64, 1, 1)
    assert SampleMeta.from_json(bare.to_json()) == bare


@given(NAMES, st.one_of(st.none(), NAMES), st.one_of(st.none(), st.integers(0, 120)))
def test_any_meta_round_trip(file, patient, age):
    meta = dataclasses.replace(META, file=file, patient=patient, age=age)
    assert SampleMeta.from_json(meta.to_json()) == meta


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"source": "x"}', b"\xff"])
def test_other_json_is_refused(data):
    with pytest.raises(ValueError):
        SampleMeta.from_json(data)


@given(NAMES)
def test_every_name_gets_a_valid_key(name):
    key = make_key(name)
    assert KEY_PATTERN.fullmatch(key)
    assert make_key(key) == key


def test_keys_and_bytes_are_those_of_the_versions_before():
    """By its key a later ingest or merge knows a sample again."""
    assert make_key("a b.c") == "a_b_c-7509d20a"
    assert make_key("ü") == "607474ca"
    assert make_key("x" * 80) == "x" * 80
    assert make_key("x" * 81) == "x" * 64 + "-4d1f7bb8"
    assert META.to_json() == (
        b'{"age":58,"boxes":[{"h":4,"label":"Mass","w":3,"x":1,"y":2.5}],"file":"a/b.png",'
        b'"height":20,"patient":"set:7","sex":"F","sha256":"' + b"0" * 64 + b'",'
        b'"source":"set","view":"PA","width":10}'
    )


@given(st.sets(NAMES, min_size=2, max_size=20))
def test_different_names_get_different_keys(names):
    assert len({make_key(name) for name in names}) == len(names)


def test_encode_and_decode_labels():
    encoded = CHESTXRAY14.encode(("Mass", "Hernia"), unknown=("Edema",))
    assert encoded.dtype == np.int8
    assert CHESTXRAY14.decode(encoded) == ("Mass", "Hernia")
    assert encoded[CHESTXRAY14.index("Edema")] == UNKNOWN
    assert (encoded == YES).sum() == 2
    assert (encoded == NO).sum() == 12


def test_label_errors_name_the_vocabulary():
    with pytest.raises(UserError, match="Normal, Viral Pneumonia, COVID-19"):
        COVID.index("Covid")
    with pytest.raises(UserError, match="exactly one"):
        COVID.encode(("Normal", "COVID-19"))
    with pytest.raises(UserError, match="exactly one"):
        COVID.encode(())
