"""What the tables of COVID-19 radiographs say, as labels: finding -> COVID-19 or not; which rows
are no frontal radiographs.

The covid-chestxray-dataset, Actualmed and Figure 1 write the same columns.
"""

import re
from pathlib import PurePosixPath

from shards.console import UserError
from shards.labels import Vocabulary

# As the DD2424 project reads them: everything that was diagnosed as something else, healthy
# included, and `Pneumonia` without a cause, is "Not COVID-19".
NOT_COVID, COVID = "Not COVID-19", "COVID-19"
COVID_OR_NOT = Vocabulary((NOT_COVID, COVID), exclusive=True)
_OPEN = {"", "todo", "unknown"}
# All that any published version names. First `COVID-19, ARDS`, then `Pneumonia/Viral/COVID-19`.
_FINDINGS = {
    *("covid-19", "no finding", "ards", "viral", "bacterial", "fungal", "lipoid", "aspiration"),
    *("sars", "mers", "mers-cov", "influenza", "h1n1", "herpes", "varicella", "e.coli"),
    *("streptococcus", "staphylococcus", "mrsa", "klebsiella", "legionella", "mycoplasma"),
    *("chlamydophila", "nocardia", "pneumocystis"),
}
_FAMILIES = ("pneumonia", "tuberculosis", "aspergillosis")  # `Lobar Pneumonia`, `Invasive ...`
_FRONTAL = {"pa", "ap", "ap supine", "aps", "ap semi erect", "ap erect"}
_LATERAL = {"l", "lateral"}
_SLICES = {"axial", "coronal", "ct"}  # the first version had no column for the modality


def covid_label(finding: str) -> str | None:
    """A label of COVID_OR_NOT; None where the finding is left open (blank, `todo`, `Unknown`).

    UserError for a finding that no published version has: `Covid19` must not pass for healthy.
    """
    if finding.casefold() in _OPEN:
        return None
    terms = {term.strip().casefold() for term in re.split(r"[/,]| and ", finding)} - {""}
    if not terms or not all(_is_known(term) for term in terms):
        raise UserError(
            f"finding {finding!r} is not known; known are COVID-19, No Finding, todo, Unknown and "
            "the published names of pneumonias, flat or as Pneumonia/Viral/COVID-19; mend the table"
        )
    return COVID if "covid-19" in terms else NOT_COVID


def _is_known(term: str) -> bool:
    if "covid" in term or "corona" in term:
        return term == "covid-19"
    return term in _FINDINGS or term.endswith(_FAMILIES)


def exclusion(view: str, modality: str, file: str) -> str | None:
    """Why an image does not count; None for a frontal radiograph. A blank view passes: Figure 1
    leaves most blank, and all its images are frontal."""
    if PurePosixPath(file).name.endswith((".nii", ".nii.gz")):
        return "CT volume"
    if modality.casefold() == "ct" or view.casefold() in _SLICES:
        return "CT slice"
    if modality.casefold() not in ("", "x-ray"):
        return f"modality {modality!r} is no radiograph"
    if view.casefold() in _LATERAL:
        return "lateral view"
    if view and view.casefold() not in _FRONTAL:
        return f"view {view!r} is not known as frontal"
    return None
