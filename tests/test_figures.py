"""What the pictures show: nothing outside of its axes, numbers on every axis."""

import numpy as np

from serve.curves import Histograms, LabelHistogram
from serve.evaluation_figures import histogram_figure
from serve.intervals import Estimate
from serve.shortcuts.pictures import source_figure
from serve.shortcuts.sources import SourceResult, SourceScore


def test_histograms_share_one_kind_of_scale_with_plain_numbers():
    edges = np.linspace(0, 1, 4).tolist()
    classes = (
        LabelHistogram("few", [1, 2, 3], [3, 0, 0]),
        LabelHistogram("many", [0, 9, 400], [90, 0, 0]),
    )
    figure = histogram_figure(Histograms(edges, classes))
    few, many = figure.axes[:2]
    figure.draw_without_rendering()
    assert few.get_yscale() == many.get_yscale() == "symlog"
    assert [one.get_text() for one in many.get_yticklabels()][:5] == ["0", "10", "30", "100", "300"]
    few_only = histogram_figure(Histograms(edges, classes[:1]))
    assert few_only.axes[0].get_yscale() == "linear"


def test_a_source_below_chance_is_inside_its_picture():
    def figure(*areas):
        scores = tuple(SourceScore(f"s{i}", 9, 9, area, {"a": 3}) for i, area in enumerate(areas))
        told = SourceResult(18, 0, 4, 3, areas[0], 0.5, 0.5, scores, {}, ())
        return source_figure(told).axes[0].get_xlim()

    assert figure(Estimate(0.2, 0.0, 0.4), Estimate(0.9, 0.8, 1.0))[0] < 0
    assert figure(Estimate(0.2, None, None))[0] < 0.2
    assert figure(Estimate(0.9, 0.8, 1.0)) == (0.4, 1.02)
