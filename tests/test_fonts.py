"""Names in scripts that matplotlib's own font lacks."""

import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest

STIX = Path(matplotlib.get_data_path(), "fonts/ttf/STIXGeneral.ttf")  # has の, which DejaVu has not
# A process of its own: the fonts that are found, and what is said, last as long as it.
PROGRAM = """
import sys
from pathlib import Path
from serve import fonts
fonts.findSystemFonts = lambda: sys.argv[3:]
from serve.figures import new_figure, plain, write_figure
figure, (ax,) = new_figure(3, 2)
ax.set_xticks([0, 1], [plain(name) for name in sys.argv[2].split(",")])
write_figure(figure, Path(sys.argv[1]))
print([label.get_text() for label in ax.get_xticklabels()])
"""


@pytest.fixture
def draw(tmp_path):
    def run(names, *fonts):
        command = [
            sys.executable,
            "-c",
            PROGRAM,
            str(tmp_path / "picture"),
            names,
            *map(str, fonts),
        ]
        return subprocess.run(command, capture_output=True, text=True, check=True)

    return run


def test_a_name_that_no_font_has_is_said_once_and_has_no_boxes(draw):
    done = draw("肺炎 1,の")
    assert done.stdout == "['�� 1', '�']\n"
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("warning: no font of this machine has all characters of '肺炎 1'")


def test_a_font_of_the_machine_is_used_for_what_the_own_one_lacks(draw, tmp_path):
    damaged = tmp_path / "damaged.ttf"
    damaged.write_bytes(b"no font")
    done = draw("aの,رئوي", damaged, STIX)
    assert done.stdout == "['aの', 'رئوي']\n"
    assert done.stderr == ""
