"""Characters that matplotlib's own font lacks, Chinese and Devanagari among them: drawn with a font
of the machine that has them, or else as a replacement character, which is said once."""

from functools import cache

from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, findSystemFonts, fontManager
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text

from shards.console import warn

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_families = ["sans-serif"]  # of the pictures; those of the machine join it as they are needed
_told = False  # in this process


def legible(text: str) -> str:
    """The text with a replacement character for each that no font here has."""
    global _told
    found = "".join(c if _drawable(c) else _REPLACEMENT for c in text)
    if found != text and not _told:
        _told = True
        warn(
            f"no font of this machine has all characters of {text!r}; the pictures show "
            f"{_REPLACEMENT} in their place, the tables and the report hold them: install a font "
            "of their script, such as fonts-noto-cjk"
        )
    return found


def set_fonts(figure: Figure) -> None:
    """Let all text of the figure use the fonts that its characters need."""
    for text in figure.findobj(Text):
        text.set_fontfamily(_families)


@cache
def _drawable(character: str) -> bool:
    if _own().get_char_index(ord(character)):
        return True
    path = _fonts_by_character().get(ord(character))
    if path is None:
        return False
    family = FT2Font(path).family_name
    if family not in _families:
        fontManager.addfont(path)
        _families.append(family)
    return True


@cache
def _own() -> FT2Font:
    return FT2Font(findfont(FontProperties(family=_families[:1])))


@cache
def _fonts_by_character() -> dict[int, str]:
    """Code point -> the file of a font of this machine; 3 ms a font, for those who need it."""
    found: dict[int, str] = {}
    for path in sorted(findSystemFonts()):
        try:
            font = FT2Font(path)
        except (OSError, RuntimeError):  # no font, or a damaged one
            continue
        if font.scalable:  # matplotlib draws no bitmaps, as of emoji
            found = dict.fromkeys(font.get_charmap(), path) | found
    return found
