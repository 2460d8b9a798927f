"""serve.shortcuts.changes: what is covered, blacked out and pasted."""

import numpy as np
import pytest

from serve.shortcuts.changes import black_where, centre_box, cover, paste, word_pixels
from serve.shortcuts.inputs import parse_box, parse_point
from shards.console import UserError
from shards.rectangles import Rectangle


def test_rectangles_are_covered_in_the_pixels_of_the_original():
    grey = np.full((20, 30), 200, np.uint8)  # stored at half the size of the original
    black = cover(grey, [Rectangle(10, 4, 21, 6), Rectangle(58, 38, 50, 50)], 60, 40)
    slow = np.array(grey)
    for y in range(40):
        for x in range(60):
            inside = (10 <= x < 31 and 4 <= y < 10) or (x >= 58 and y >= 38)
            if inside:
                slow[y // 2, x // 2] = 0
    np.testing.assert_array_equal(black, slow)
    assert (grey == 200).all()


def test_words_are_white_where_they_are_asked_for():
    strokes = word_pixels("SEDUTO", (5, 9), 12, 96)
    rows, columns = np.nonzero(strokes)
    assert rows.min() >= 9
    assert columns.min() >= 5
    assert rows.max() < 9 + 2 * 12
    image = np.full((96, 96), 50, np.uint8)
    pasted = paste(image, strokes)
    np.testing.assert_array_equal(pasted[strokes == 0], 50)
    assert (pasted >= image).all()
    assert pasted.max() > 240
    with pytest.raises(UserError, match="does not fit at 90,9 into 96 x 96"):
        word_pixels("SEDUTO", (90, 9), 12, 96)
    with pytest.raises(UserError, match="leaves no stroke"):
        word_pixels(" ", (5, 9), 12, 96)


def test_the_box_and_its_converse_share_the_image():
    image = np.random.default_rng(0).integers(1, 255, (20, 20), np.uint8)
    box = centre_box((0.1, 0.2, 0.9, 1), 20)
    assert box.sum() == 16 * 16
    np.testing.assert_array_equal(black_where(image, box) + black_where(image, ~box), image)


@pytest.mark.parametrize("text", ["", "1", "a,b", "1,2,3"])
def test_points_and_boxes_are_checked(text):
    with pytest.raises(UserError, match="give x,y in pixels"):
        parse_point(text, "--at")
    with pytest.raises(UserError, match="as shares"):
        parse_box(text)
    with pytest.raises(UserError, match="as shares"):
        parse_box("0.9,0.1,0.1,0.9")
