"""The report in a real browser where labels are hostile or long, and images few."""

import numpy as np
import pytest
from report_runs import LABELS, chromium, evaluate_run, make_dataset, make_run

from serve import report_run
from serve.gallery import Gallery, Picture
from serve.predictions import Joined
from serve.report import ReportConfig, write_report
from serve.report_maps import image_webp, to_layer

pytestmark = pytest.mark.soak

HOSTILE = (
    *(
        "Normal",
        "</script><img src=x onerror=alert(1)>",
        "\u202egnp.exe\u200f \u0627\u0644",
        "x" * 300,
    ),
    *("\" onload='alert(1)' `", "__proto__", "constructor"),
)


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.mark.parametrize(
    ("labels", "images", "exclusive"),
    [
        (HOSTILE, 30, True),
        (tuple(f"A rather long name of a label, number {i}" for i in range(60)), 60, True),
        (("COVID-19",), 12, False),
        (LABELS, 2, True),
        (LABELS, 1, True),
    ],
)
def test_odd_labels_and_few_images_stay_in_their_place(
    browser, tmp_path, monkeypatch, labels, images, exclusive
):
    make_dataset(tmp_path / "shards" / "toy")
    run = make_run(tmp_path / "run", tmp_path / "shards")
    truth = np.eye(len(labels), dtype=np.int8)[np.arange(images) % len(labels)]
    scores = np.random.default_rng(0).random(truth.shape)
    keys = tuple(f"{labels[i % len(labels)]} {i}" for i in range(images))
    meta = {"view": keys}
    evaluate_run(
        run, Joined(keys, labels, exclusive, truth, scores, None, meta, True, (None,) * len(keys))
    )
    image = image_webp(np.zeros((16, 16), np.uint8))
    layer = to_layer("gradcam", labels[0], np.ones((16, 16), np.float32))
    tiles = [
        Picture(key, (name,), name, 0.5, True, image, (layer,)) for key in keys for name in labels
    ]
    monkeypatch.setattr(
        report_run, "_gallery", lambda *_: (Gallery(labels, tiles[:9], 9), [*labels])
    )
    path = write_report(ReportConfig((run,), tmp_path / "report.html"))
    complaints, asked = [], []
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for name in page.locator(".matrix thead th").all():
        assert name.evaluate("node => node.scrollWidth <= node.clientWidth + 1")
    page.locator(".open").nth(min(2, len(labels) - 1)).click()
    if labels == HOSTILE:
        assert page.locator("#viewer-title").inner_text() == (
            "\\u202egnp.exe\u200f \u0627\u0644 50.0 % (wrong)"
        )
        assert "\u202e" not in page.locator("body").inner_text()
    if exclusive:
        assert_paper_has_the_whole_matrix(page, len(labels))
    page.close()
    assert complaints == []
    assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]


def assert_paper_has_the_whole_matrix(page, labels):
    page.locator("#viewer-close").click()
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 688, "height": 900})  # A4 without its margins
    shown = page.locator("#evaluation .matrix:visible")
    assert shown.locator("thead th[scope=col]").count() == labels
    assert shown.locator("td").count() == labels**2
    for one in shown.all():
        assert one.evaluate("node => node.getBoundingClientRect().right") <= 688
