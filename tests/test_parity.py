"""serve.parity: what is measured of an export, and the gate that it has to pass."""

from dataclasses import replace

import numpy as np
import pytest

from serve.export import ExportConfig
from serve.parity import TOLERANCES, Parity, judge, measure
from shards.console import RunFailed


def parity_of(**changes) -> Parity:
    return replace(Parity(100, 1e-6, 1e-7, 0.9, 0.9, 0.0, "cpu"), **changes)


def test_the_gate_is_the_table():
    for precision, tolerance in TOLERANCES.items():
        told = (ExportConfig.__doc__ or "").split(f"in {precision} ")[1].split(";")[0]
        numbers = [n for n in (tolerance.probability, tolerance.auroc_loss) if n is not None]
        assert all(f" {number:g}" in told for number in numbers)
        judge(parity_of(auroc_onnx=0.9 - tolerance.auroc_loss * 0.99), precision)
        judge(parity_of(auroc_onnx=0.95), precision)
        too_low = parity_of(auroc_onnx=0.9 - tolerance.auroc_loss * 1.01)
        with pytest.raises(RunFailed, match=f"{precision} on 100 images: the mean AUROC falls"):
            judge(too_low, precision)
        assert judge(too_low, precision, max_auroc_loss=0.5).allowed_auroc_loss == 0.5
        assert judge(parity_of(), precision).allowed_auroc_loss == tolerance.auroc_loss
        with pytest.raises(RunFailed, match="not a finite number"):
            judge(parity_of(max_probability_difference=np.nan), precision)
    judge(parity_of(max_probability_difference=0.3), "int8")
    with pytest.raises(RunFailed, match=r"differ by 0\.3 in probability"):
        judge(parity_of(max_probability_difference=0.3), "fp16")
    unknown = parity_of(auroc_torch=None, auroc_onnx=None)
    judge(unknown, "fp32")
    with pytest.raises(RunFailed, match="the AUROC cannot be compared"):
        judge(unknown, "int8")


def test_parity_is_measured_on_known_labels():
    labels = np.array([[1, 1], [0, 1], [-1, 1], [0, 1]], np.int8)
    ours = np.array([[0.9, 0.5], [0.1, 0.5], [0.5, 0.5], [0.2, 0.5]])
    theirs = ours + np.array([[-0.75, 0], [0, 0], [0, 0.125], [0, 0]])
    found = measure(ours, theirs, labels, "cpu")
    assert (found.images, found.provider) == (4, "cpu")
    assert (found.auroc_torch, found.auroc_onnx) == (1.0, 0.5)
    assert found.auroc_loss == found.max_auroc_difference == 0.5
    assert found.max_probability_difference == pytest.approx(0.75)
    assert found.mean_probability_difference == pytest.approx(0.875 / 8)
