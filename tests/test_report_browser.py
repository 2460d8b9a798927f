"""The report in a real browser: slider, filters, dialog, keyboard, and no request to anywhere."""

import numpy as np
import pytest
from report_runs import (
    LABELS,
    chromium,
    evaluate_run,
    make_dataset,
    make_run,
    scored,
    write_faithfulness,
    write_features,
    write_shortcuts,
)

from serve import report_run
from serve.gallery import Gallery, Picture
from serve.intervals import wilson
from serve.report import ReportConfig, write_report
from serve.report_maps import image_webp, to_layer

pytestmark = pytest.mark.soak

IMAGES = 90
# truth, called, wrong of the gallery's images
TILES = (
    *[((0,), 0, False)] * 3,
    *[((0,), 1, True)] * 2,
    *[((1, 2), 1, False)] * 2,
    ((), 2, True),
    (None, 0, None),
)


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A page of two runs, all parts there, hostile labels."""
    folder = tmp_path_factory.mktemp("report")
    make_dataset(folder / "shards" / "toy")
    runs = tuple(make_run(folder / name, folder / "shards") for name in ("first", "second"))
    for place, run in enumerate(runs):
        evaluate_run(run, scored(IMAGES + place))
    write_features(runs[0])
    write_faithfulness(runs[0])
    write_shortcuts(runs[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report_run, "_gallery", lambda *_: (gallery(), []))
        return write_report(ReportConfig(runs, folder / "report.html"))


def gallery():
    heat = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    pictures = [
        Picture(
            key=f"image-{i}",
            truth=None if truth is None else tuple(LABELS[j] for j in truth),
            called=LABELS[called],
            probability=0.5 + i / 100,
            wrong=wrong,
            image=image_webp(np.full((16, 16), 20 * i, np.uint8)),
            layers=(to_layer("gradcam", LABELS[called], heat), to_layer("lrp", LABELS[0], heat)),
        )
        for i, (truth, called, wrong) in enumerate(TILES)
    ]
    return Gallery(LABELS, pictures, 3)


@pytest.fixture
def page(browser, report):
    """The open page; at the end nothing was asked for, and nothing complained."""
    asked, complaints = [], []
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    context.set_default_timeout(10_000)
    opened = context.new_page()

    def refuse(route):
        if route.request.url == report.as_uri():
            route.continue_()
        else:
            route.abort()

    opened.route("**/*", refuse)
    opened.on("request", lambda request: asked.append(request.url))
    opened.on("console", lambda message: complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.goto(report.as_uri())
    yield opened
    context.close()
    assert [url for url in asked if not url.startswith("data:")] == [report.as_uri()]
    assert complaints == []


def part(page, name, run=0):
    return page.locator(f'[data-threshold="{run}"] [data-part="{name}"]')


def expected(joined, label, threshold):
    called = joined.probabilities[:, label] >= threshold
    truth = joined.targets[:, label] == 1
    return {
        "tp": int((called & truth).sum()),
        "fn": int((~called & truth).sum()),
        "fp": int((called & ~truth).sum()),
        "tn": int((~called & ~truth).sum()),
    }


def assert_reads(page, joined, label, threshold, run=0):
    counts = expected(joined, label, threshold)
    for name, count in counts.items():
        assert part(page, name, run).text_content() == str(count)
    for name, right, total in (
        ("sensitivity", counts["tp"], counts["tp"] + counts["fn"]),
        ("specificity", counts["tn"], counts["tn"] + counts["fp"]),
        ("precision", counts["tp"], counts["tp"] + counts["fp"]),
    ):
        share = wilson(right, total)
        text = part(page, name, run).text_content()
        if share is None:
            assert text == "–"
            continue
        ends = f"95 % interval {100 * share.low:.1f} to {100 * share.high:.1f}"
        assert text == f"{100 * share.value:.1f} %{ends}; {right} of {total}"
    assert part(page, "value", run).text_content() == f"{threshold:.3f}"


def test_the_slider_tells_the_numbers_of_its_threshold(page):
    joined = scored(IMAGES)
    assert_reads(page, joined, 0, 0.5)
    seen = set()
    for label in range(3):
        part(page, "label").select_option(str(label))
        for step in (0, 83, 217, 500, 779, 845, 1000):
            part(page, "range").fill(str(step))
            assert_reads(page, joined, label, step / 1000)
            seen.add(part(page, "sensitivity").text_content())
    assert len(seen) > 3  # the numbers do move
    assert_reads(page, scored(IMAGES + 1), 0, 0.5, run=1)  # the other run's stay


def test_the_slider_obeys_the_keyboard(page):
    part(page, "range").focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert_reads(page, scored(IMAGES), 0, 0.503)
    page.keyboard.press("Home")
    assert_reads(page, scored(IMAGES), 0, 0.0)
    page.keyboard.press("End")
    assert_reads(page, scored(IMAGES), 0, 1.0)
    assert part(page, "range").get_attribute("aria-valuetext") == "probability 1.000"


@pytest.mark.parametrize(
    ("wanted", "shown"),
    [
        ({}, range(9)),
        ({"truth": "0"}, range(5)),
        ({"truth": "2"}, (5, 6)),
        ({"truth": "none"}, (7,)),
        ({"truth": "unknown"}, (8,)),
        ({"called": "1"}, (3, 4, 5, 6)),
        ({"wrong": "1"}, (3, 4, 7)),
        ({"wrong": "0"}, (0, 1, 2, 5, 6)),
        ({"truth": "0", "called": "1", "wrong": "1"}, (3, 4)),
        ({"truth": "0", "called": "2"}, ()),
    ],
)
def test_filters_show_what_they_say(page, wanted, shown):
    bar = page.locator('[data-filters="0"]')
    for name, value in wanted.items():
        bar.locator(f'[data-filter="{name}"]').select_option(value)
    tiles = page.locator('[data-gallery="0"] .tile').all()
    assert [i for i, tile in enumerate(tiles) if tile.is_visible()] == list(shown)
    assert bar.locator("output").text_content() == f"{len(shown)} of 9 images"
    assert page.locator('[data-gallery="1"] .tile:visible').count() == 9


def test_the_heat_map_is_chosen_for_all_images(page):
    for method, count in (("lrp", 9), ("", 0), ("gradcam", 9)):
        page.locator('[data-filters="0"] [data-filter="method"]').select_option(method)
        assert page.locator('[data-gallery="0"] .heat:visible').count() == count
    assert page.locator('[data-gallery="0"] .heat:visible').first.get_attribute("alt") == (
        "gradcam heat map for Normal"
    )


def test_the_dialog_opens_steps_and_closes_by_the_keyboard(page):
    page.locator('[data-filters="0"] [data-filter="wrong"]').select_option("1")
    buttons = page.locator('[data-gallery="0"] .open:visible')
    buttons.first.focus()
    page.keyboard.press("Enter")
    dialog = page.locator("#viewer")
    assert dialog.is_visible()
    assert "image-3" in page.locator("#viewer-text").text_content()
    assert "image-3" in page.locator("#viewer-image").get_attribute("alt")
    for key, name in (("Right", 4), ("Right", 7), ("Right", 7), ("Left", 4)):
        page.keyboard.press(f"Arrow{key}")
        assert f"image-{name}" in page.locator("#viewer-text").text_content()
    page.locator("#viewer-method").select_option("-1")
    assert not page.locator("#viewer-heat").is_visible()
    page.locator("#viewer-method").select_option("1")
    assert page.locator("#viewer-heat").get_attribute("alt") == "lrp heat map for Normal"
    page.locator("#viewer-strength").fill("20")
    assert page.locator("#viewer-heat").evaluate("node => node.style.opacity") == "0.2"
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    focused = "document.activeElement.querySelector('img').alt"
    assert "image-4" in page.evaluate(focused)


def test_precision_is_drawn_in_steps_and_numbers_keep_off_the_axis_name(page):
    """The area below the steps is the average precision; below slanted lines it is not."""
    for path in page.locator('[data-chart="pr"] svg[role=img] path').all():
        assert set(path.get_attribute("d")) <= set("MVH 0123456789.")
    page.set_viewport_size({"width": 390, "height": 844})
    for chart in page.locator('[data-chart="loss"], [data-chart="validation"]').all():
        name = chart.locator("svg text[transform]").bounding_box()
        for number in chart.locator('svg text[text-anchor="end"]').all():
            assert number.bounding_box()["x"] >= name["x"] + name["width"] - 1


def test_charts_are_drawn_and_legends_hide_their_series(page):
    for kind in ("loss", "roc", "pr", "calibration", "tsne", "som", "deletion"):
        host = page.locator(f'[data-chart="{kind}"]').first
        assert host.locator("svg[role=img]").first.is_visible()
        assert host.locator("svg[role=img]").first.get_attribute("aria-label")
    assert page.locator('[data-chart="tsne"] path.dot title').count() == 6
    roc = page.locator('[data-chart="roc"]').first
    assert roc.locator(".legend button").all_text_contents() == list(LABELS)
    button = roc.locator(".legend button").nth(1)
    button.focus()
    page.keyboard.press("Space")
    assert button.get_attribute("aria-pressed") == "false"
    assert roc.locator("svg g:visible").count() == 2


@pytest.mark.parametrize("width", [360, 400, 768, 1600])
def test_no_page_is_wider_than_its_screen(page, width):
    page.set_viewport_size({"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_each_control_has_a_name(page):
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("button, select, input")]
        .filter((node) => !(node.labels && node.labels.length) && !node.textContent.trim()
          && ![...node.querySelectorAll("img")].some((image) => image.alt))
        .map((node) => node.outerHTML)"""
    )
    assert unnamed == []


def test_dark_mode_turns_paper_and_ink(page):
    ink = """() => [...document.querySelectorAll("body, h2, table, .tile figcaption, select")]
        .map((node) => {
        const own = getComputedStyle(node);
        const sum = (colour) => colour.match(/[0-9.]+/g).slice(0, 3).reduce((a, b) => a + +b, 0);
        return [sum(own.color), sum(getComputedStyle(document.body).backgroundColor)];
        })"""
    page.emulate_media(color_scheme="light")
    assert all(text < 250 < 600 < paper for text, paper in page.evaluate(ink))
    page.emulate_media(color_scheme="dark")
    assert all(text > 500 > 200 > paper for text, paper in page.evaluate(ink))


def test_no_script_but_the_pages_own_runs(browser, report):
    """The policy refuses what a hostile text would have to be, had it become markup."""
    page = browser.new_page()
    page.goto(report.as_uri())
    page.evaluate(
        """() => {
        const script = document.createElement("script");
        script.textContent = "window.hostile = true";
        window.refused = 0;
        document.addEventListener("securitypolicyviolation", () => { window.refused += 1; });
        document.body.append(script);
        }"""
    )
    page.wait_for_function("window.refused > 0")
    assert page.evaluate("window.hostile") is None
    page.close()


def test_without_scripts_the_numbers_stand_there(browser, report):
    context = browser.new_context(java_script_enabled=False)
    opened = context.new_page()
    opened.goto(report.as_uri())
    text = opened.locator("main").inner_text()
    assert "Side by side, with 95 % intervals" in text
    assert "98.9 %" in text
    assert opened.locator("noscript").count() == 1
    assert not opened.locator(".filters").first.is_visible()
    context.close()


def test_paper_has_the_tables_that_the_screen_folds_away(page):
    height = (
        """() => document.querySelector("#thresholds details").getBoundingClientRect().height"""
    )
    folded = page.evaluate(height)
    page.emulate_media(media="print")
    assert page.evaluate(height) > 5 * folded
    assert not page.locator("nav").is_visible()
