"""Patients as wholes with exactly so many images of each class: the choice behind --test-per-class.

A patient may have images of several classes, so the classes cannot be filled one by one. Patients
are taken in the order given wherever they overfill no class; where that ends short of the number, a
solver looks for any exact choice. Both depend on their arguments alone.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

Counts = Mapping[str, int]  # class -> images, of one patient
_MAX_NODES = 1000  # of the solver's search, so that the longest search ends, and at the same place


def first_fit(patients: Sequence[Counts], classes: Sequence[str], count: int) -> list[int]:
    """Places of the patients that overfill no class, in order; not more than `count` of each."""
    reached: Counter[str] = Counter()
    taken = []
    for place, counts in enumerate(patients):
        if all(reached[name] + counts.get(name, 0) <= count for name in classes):
            reached.update(counts)
            taken.append(place)
    return taken


def exact(patients: Sequence[Counts], classes: Sequence[str], count: int) -> list[int] | None:
    """Places of patients with exactly `count` images of each class; None: none was found."""
    from scipy.optimize import Bounds, LinearConstraint, milp  # 0.2 s, for those who need it

    alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for place, counts in enumerate(patients):
        row = tuple(counts.get(name, 0) for name in classes)
        if any(row) and max(row) <= count:
            alike[row].append(place)
    if not alike:
        return None
    rows = np.array([*alike], float).T
    most = [min(len(places), count) for places in alike.values()]
    found = milp(
        np.zeros(len(most)),  # any exact choice will do
        constraints=LinearConstraint(rows, count, count),
        bounds=Bounds(0, most),
        integrality=np.ones(len(most)),
        options={"node_limit": _MAX_NODES},
    )
    if found.x is None:
        return None
    times = np.rint(found.x).astype(int)
    if (rows @ times != count).any():  # within the solver's tolerance, not exact
        return None
    return [place for n, places in zip(times, alike.values()) for place in places[:n]]


def reach(patients: Sequence[Counts], taken: Sequence[int]) -> Counter[str]:
    """Images of each class of the patients taken."""
    reached: Counter[str] = Counter()
    for place in taken:
        reached.update(patients[place])
    return reached
