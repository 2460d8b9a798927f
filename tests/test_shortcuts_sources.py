"""serve.shortcuts.sources: the small model that tells an image's source."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from serve.shortcuts.results import in_words
from serve.shortcuts.samples import Listed, pick
from serve.shortcuts.sources import enough, features, predict_sources
from shards.index import Component
from shards.sample import SampleMeta


def listed(source, i, labels=()):
    meta = SampleMeta(source, f"{i}.png", "0" * 64, 8, 8, patient=f"{source}-{i // 2}")
    image = Component("png", 0, 0, "x")
    return Listed(f"{source}-{i}", np.zeros(0, np.int8), labels, meta, Path("x"), image)


def test_the_source_is_told_where_it_can_be_and_only_there():
    rng = np.random.default_rng(0)
    samples = [listed("ab"[i % 2], i, ("COVID-19",) if i % 2 else ("Normal",)) for i in range(80)]
    alike = np.stack([features(rng.integers(0, 255, (32, 32), np.uint8)) for _ in samples])
    chance = predict_sources(samples, alike, 0)
    assert abs(chance.mean_auroc - 0.5) < 0.2
    for i in range(1, 80, 2):
        alike[i, -18:-2] += 1  # the borders
    told = predict_sources(samples, alike, 0)
    assert told.mean_auroc > 0.9
    assert told.confounded == {"COVID-19": "b", "Normal": "a"}
    assert [one.labels for one in told.sources] == [{"Normal": 40}, {"COVID-19": 40}]


def test_no_patient_is_fitted_and_judged():
    """Every patient has a mark of their own and no source has any: only a leak could tell."""
    rng = np.random.default_rng(1)
    samples = [listed("ab"[(i // 2) % 2], i) for i in range(120)]
    marks = rng.normal(size=(60, 30)).repeat(2, axis=0)
    assert abs(predict_sources(samples, marks, 0).mean_auroc - 0.5) < 0.2


def test_unknown_patients_are_not_counted_as_patients():
    samples = [listed("ab"[i % 2], i) for i in range(40)]
    nobody = [replace(s, meta=replace(s.meta, patient=None)) for s in samples if s.key[0] == "b"]
    mixed = [s for s in samples if s.key[0] == "a"] + nobody
    assert enough(mixed) == (mixed, [])
    table = np.random.default_rng(2).normal(size=(40, 6))
    found = predict_sources(mixed, table, 0)
    assert [(one.images, one.patients) for one in found.sources] == [(20, 20), (20, None)]
    assert found.unknown_patients == 20
    assert "The patient of 20 of 40 images is unknown" in in_words(None, None, None, found)[0]
    known = predict_sources(samples, table, 0)
    assert "unknown" not in in_words(None, None, None, known)[0]


def test_the_chosen_images_do_not_depend_on_their_order():
    samples = [listed("a", i) for i in range(50)]
    chosen = {one.key for one in pick(samples, 7)}
    assert len(chosen) == 7
    assert {one.key for one in pick(samples[::-1], 7)} == chosen
    assert pick(samples, None) == samples
