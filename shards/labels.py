"""Label vocabularies: a fixed order of names, and one int8 per label and sample."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np

from shards.console import UserError, first_few, warn

YES, NO, UNKNOWN = 1, 0, -1
# Spaces, characters without width, and a hyphen between letters: no two findings differ by these.
_NO_LETTER = re.compile(r"[\s_\u00ad\u200b-\u200f\u2060\ufeff]|(?<=\w)[-\u2010-\u2015](?=\w)")


@dataclass(frozen=True)
class Vocabulary:
    """names: the labels in the order of the network's outputs.
    exclusive: each sample has exactly one of them (so accuracy is that of the argmax)."""

    names: tuple[str, ...]
    exclusive: bool

    def __len__(self) -> int:
        return len(self.names)

    def index(self, name: str) -> int:
        """The position of a label. UserError when the vocabulary lacks it."""
        try:
            return self.names.index(name)
        except ValueError:
            known = ", ".join(self.names)
            raise UserError(f"no label {name!r} in the vocabulary; it has: {known}") from None

    def encode(self, present: Collection[str], unknown: Collection[str] = ()) -> np.ndarray:
        """(len(self),) int8: YES for labels present, UNKNOWN where nobody looked, NO elsewhere."""
        encoded = [NO] * len(self)  # a list: a tenth of the time
        for name in unknown:
            encoded[self.index(name)] = UNKNOWN
        for name in present:
            encoded[self.index(name)] = YES
        if self.exclusive and not unknown and encoded.count(YES) != 1:
            raise UserError(f"expected exactly one label, found {sorted(present)}")
        return np.array(encoded, np.int8)

    def decode(self, encoded: np.ndarray) -> tuple[str, ...]:
        """The names of the labels that are YES."""
        return tuple(name for name, value in zip(self.names, encoded) if value == YES)


def warn_of_variants(names: Iterable[str], where: object) -> None:
    """Warn where names differ only by case, spaces, hyphens or how their accents are encoded: each
    is a label of its own. where: begins the warning."""
    spellings: dict[str, list[str]] = defaultdict(list)
    for name in dict.fromkeys(names):
        plain = _NO_LETTER.sub("", unicodedata.normalize("NFKC", name).casefold())
        spellings[plain].append(name)
    alike = [", ".join(map(repr, several)) for several in spellings.values() if len(several) > 1]
    if alike:
        warn(
            f"{where} has labels that differ only by case, spaces or hyphens: "
            f"{first_few(alike, separator='; ')}. Each is a label of its own. Give them one name."
        )


# The order of CheXNet's outputs (both public checkpoints), then the healthy class.
CHESTXRAY14 = Vocabulary(
    (
        "Atelectasis",
        "Cardiomegaly",
        "Effusion",
        "Infiltration",
        "Mass",
        "Nodule",
        "Pneumonia",
        "Pneumothorax",
        "Consolidation",
        "Edema",
        "Emphysema",
        "Fibrosis",
        "Pleural_Thickening",
        "Hernia",
        "No Finding",
    ),
    exclusive=False,
)

# Bassi & Attux (arXiv 2005.01578) name the classes in this order; read as the order of the outputs.
COVID = Vocabulary(("Normal", "Viral Pneumonia", "COVID-19"), exclusive=True)
