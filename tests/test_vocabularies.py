"""serve.vocabularies: the truth of each image for each label, whatever labels its data set has."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_evaluate import joined
from test_predictions import scores, truth

from serve.compare import compare
from serve.evaluate import EvaluateConfig, evaluate
from serve.evaluation_figures import evaluation_figures
from serve.evaluation_tables import evaluation_tables
from serve.explain.subjects import Subject, choose_keys, parse_where
from serve.judged import judge
from serve.metrics import MeasureConfig, measure
from serve.predictions import join
from serve.truth import read_label_table
from serve.vocabularies import classes_outside, truth_of, why_no_class
from shards.console import UserError
from shards.labels import NO, UNKNOWN, YES, Vocabulary

NAMES = "abcdef"
QUICK = MeasureConfig(replicates=0)


def plain_truth(network: Vocabulary, given: Vocabulary, said: dict[str, int], label: str) -> int:
    """The rule, said slowly, for one image and one label of the network."""
    has = [name for name in given.names if said[name] == YES]
    if label in given.names:
        if given.exclusive and has:
            return YES if label in has else NO
        return said[label]
    if network.exclusive and any(name in network.names for name in has):
        return NO
    return UNKNOWN


@st.composite
def sets(draw: st.DrawFn) -> tuple[Vocabulary, np.ndarray]:
    """A data set's labels, and what it says of up to 6 images."""
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=5, unique=True))
    exclusive = draw(st.booleans())
    values = st.integers(-1, 0) if exclusive else st.integers(-1, 1)
    row = st.lists(values, min_size=len(names), max_size=len(names))
    rows = draw(st.lists(row, min_size=1, max_size=6))
    if exclusive:  # one class each, or none that is known
        for one in rows:
            place = draw(st.integers(-1, len(names) - 1))
            if place >= 0:
                one[place] = YES
    return Vocabulary(tuple(names), exclusive), np.array(rows, np.int8)


networks = st.builds(
    lambda names, exclusive: Vocabulary(tuple(names), exclusive and len(names) > 1),
    st.lists(st.sampled_from(NAMES), min_size=1, max_size=5, unique=True),
    st.booleans(),
)


@given(networks, sets())
def test_the_truth_is_that_of_the_plain_rule(network, labelled):
    given_, values = labelled
    found = truth_of(network, given_, values)
    assert found.dtype == np.int8
    for row, of_image in zip(values.tolist(), found.tolist()):
        said = dict(zip(given_.names, row))
        assert of_image == [plain_truth(network, given_, said, name) for name in network.names]
    outside = classes_outside(network, given_, values)
    for row, other in zip(values.tolist(), outside):
        has = {name for name, value in zip(given_.names, row) if value == YES}
        assert (other in has) if has and not has & set(network.names) else other is None


@given(networks, sets())
def test_no_image_of_known_truth_is_lost_and_accuracy_is_of_all_or_none(network, labelled):
    given_, values = labelled
    keys = [f"image-{i}" for i in range(len(values))]
    labels = replace(truth(keys, given_.names, values), exclusive=given_.exclusive)
    chances = np.random.default_rng(0).uniform(size=(len(keys), len(network)))
    predicted = scores(keys, network.names, chances, exclusive=network.exclusive)
    if not set(network.names) & set(given_.names):
        return  # refused: tests/test_predictions.py
    whole = join(predicted, labels)
    known = (whole.targets != UNKNOWN).any(axis=1)
    if not known.any():
        return
    found = measure(whole, config=QUICK)
    assert (found.evaluated, found.unlabelled) == (known.sum(), (~known).sum())
    for one in found.classes:
        assert one.positives + one.negatives + one.unknown == found.evaluated
    has_one = [[*row].count(YES) == 1 and UNKNOWN not in row for row in whole.targets[known]]
    assert (found.accuracy is not None) == (network.exclusive and all(has_one))
    assert (found.confusion is None) == (found.accuracy is None)
    assert (found.calibration.top is None) == (found.accuracy is None)
    said = [line for line in found.omitted if line.startswith("no accuracy: ")]
    assert len(said) == (network.exclusive and found.accuracy is None)
    if found.accuracy is not None:
        right = whole.targets.argmax(1) == whole.probabilities.argmax(1)
        assert found.accuracy.value == pytest.approx(right[known].mean())


CASE_LABELS = ("Normal", "Viral Pneumonia", "COVID-19")


@pytest.fixture
def case(tmp_path):
    """9 images of COVID-19 and 16 that are not: all but one are called COVID-19."""
    called = np.full((25, 3), 0.1)
    called[:, 2] = 0.8
    called[24] = (0.7, 0.1, 0.2)
    called[:, 2] += np.linspace(0.0, 0.09, 25)
    rows = [f"k{i},{','.join(map(str, row))},true" for i, row in enumerate(called)]
    header = ",".join(["key", *(f"prob_{name}" for name in CASE_LABELS), "exclusive"])
    (tmp_path / "scores.csv").write_text("\n".join([header, *rows]))
    named = ["COVID-19"] * 9 + ["Not COVID-19"] * 16
    (tmp_path / "labels.csv").write_text(
        "key,label,source\n" + "".join(f"k{i},{n},{'AB'[i > 8]}\n" for i, n in enumerate(named))
    )
    return tmp_path


@pytest.fixture
def no_pictures(monkeypatch):
    """Drawing takes longer than all the rest."""
    monkeypatch.setattr("serve.evaluate.write_pictures", lambda *_: None)


def config(folder, **more) -> EvaluateConfig:
    paths = (folder / "scores.csv", folder / "labels.csv", folder / "out")
    return EvaluateConfig(*paths, **{"bootstrap": 0, **more})


@pytest.mark.usefixtures("no_pictures")
def test_the_negatives_of_an_external_set_count_and_no_accuracy_is_made_of_the_positives(
    case, capsys
):
    found = evaluate(config(case, against=case / "scores.csv"))
    assert (found.evaluated, found.unlabelled) == (25, 0)
    assert (found.accuracy, found.confusion, found.calibration.top) == (None, None, None)
    why = "16 of 25 images have a class that the network lacks (Not COVID-19)"
    assert f"no accuracy: {why}" in found.omitted
    assert f"left out: no accuracy: {why}\n" in capsys.readouterr().out
    covid = found.classes[2]
    assert (covid.positives, covid.negatives, covid.unknown) == (9, 16, 0)
    assert (covid.recall.value, covid.specificity.value) == (1.0, 1 / 16)
    normal = found.classes[0]  # "Not COVID-19" may be Normal
    assert (normal.positives, normal.negatives, normal.unknown) == (0, 9, 16)
    # Source A has the positives alone: there is no accuracy of it either.
    assert [group.accuracy for part in found.subgroups for group in part.groups] == [None, None]
    assert found.against.accuracy is None
    assert [test.label for test in found.against.mcnemar] == list(CASE_LABELS)
    assert f"against scores.csv: no McNemar test of the called class: {why}" in found.omitted
    content = json.loads((case / "out" / "metrics.json").read_text())
    assert (content["accuracy"], content["confusion"], content["exclusive"]) == (None, None, True)
    assert not (case / "out" / "confusion.csv").exists()


@pytest.mark.usefixtures("no_pictures")
def test_each_label_on_its_own_counts_the_same_images(case):
    alone = evaluate(config(case, exclusive=False))
    assert [one.label for one in alone.classes] == ["COVID-19"]
    assert (alone.classes[0].positives, alone.classes[0].negatives) == (9, 16)
    assert alone.classes[0].specificity.value == 1 / 16
    assert not [line for line in alone.omitted if line.startswith("no accuracy")]


def test_a_temperature_of_a_softmax_needs_each_images_class():
    rows = [[1, 0, 0], [0, 1, 0], [0, -1, -1], [0, 1, 0]]
    chances = [[0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.2, 0.2, 0.6], [0.1, 0.8, 0.1]]
    outside = (None, None, "Other", None)
    part = joined(rows, chances, outside=outside)
    validation = replace(part, keys=tuple(f"val-{i}" for i in range(4)))
    found = measure(part, config=QUICK, validation=validation)
    assert found.calibration.temperature is None
    why = "1 of 4 images have a class that the network lacks (Other)"
    assert f"no temperature: of the validation images {why}" in found.omitted
    # Sigmoids are scaled label by label, and need no class.
    part, validation = (
        replace(one, probabilities=one.probabilities * 0.9) for one in (part, validation)
    )
    assert measure(part, config=QUICK, validation=validation).calibration.temperature is not None


def test_networks_with_other_classes_are_compared_where_both_know_the_truth():
    """An image of class b: the first network has b, so it is not a; of the second it may be."""
    labels = replace(
        truth("wxyz", ("b", "c"), np.array([[1, 0], [0, 1]] * 2, np.int8)), exclusive=True
    )
    chances = np.array([[0.6, 0.4], [0.3, 0.7], [0.2, 0.8], [0.9, 0.1]])
    one, two = (
        judge(join(scores("wxyz", names, chances, exclusive=True), labels))
        for names in (("a", "b"), ("a", "c"))
    )
    assert one.truth[:, 0].tolist() == [NO, UNKNOWN, NO, UNKNOWN]
    assert two.truth[:, 0].tolist() == [UNKNOWN, NO, UNKNOWN, NO]
    found = compare(one, two, "other")
    assert (found.labels, found.areas, found.mcnemar) == (("a",), (), ())


def test_the_reasons_are_told_in_one_line():
    rows = [[1, 0], [1, 1], [0, 0], [0, -1], [0, -1], [1, -1]]
    outside = (None, None, None, "Effusion", None, None)
    assert why_no_class(np.array(rows, np.int8), outside) == (
        "1 of 6 images have a class that the network lacks (Effusion), "
        "1 of 6 images have several of its classes, "
        "2 of 6 images have a class that is not fully known, 1 of 6 images have none of its classes"
    )
    assert why_no_class(np.array(rows[:1], np.int8), outside[:1]) is None


def test_tables_and_pictures_are_made_without_a_matrix():
    more = {"outside": (None, "Other"), "meta": {"view": ("PA", "AP")}}
    part = joined([[1, 0, 0], [0, -1, 0]], [[0.6, 0.3, 0.1]] * 2, **more)
    found = measure(part, config=QUICK)
    tables = evaluation_tables(found, part)
    assert "confusion" not in tables
    assert b"\n,accuracy" not in tables["metrics"]
    figures = evaluation_figures(found, judge(part))
    assert "confusion" not in figures
    assert figures["subgroups"].axes[0].get_xlabel().startswith("mean AUROC")


def subject(labels: list[int], vocabulary: Vocabulary) -> Subject:
    return Subject("x", "x", b"", vocabulary, np.array(labels, np.int8))


def test_a_call_of_an_explained_image_is_wrong_where_that_is_known():
    network = Vocabulary(CASE_LABELS, exclusive=True)
    covid_or_not = Vocabulary(("COVID-19", "Not COVID-19"), exclusive=True)
    negative, positive = subject([0, 1], covid_or_not), subject([1, 0], covid_or_not)
    assert negative.truth == ("Not COVID-19",)
    assert [negative.wrong(network, name) for name in CASE_LABELS] == [None, None, True]
    assert [positive.wrong(network, name) for name in CASE_LABELS] == [True, True, False]
    findings = subject([0, -1], Vocabulary(("COVID-19", "Mass"), exclusive=False))
    assert [findings.wrong(network, name) for name in CASE_LABELS] == [None, None, True]
    assert Subject("x", "x", b"").wrong(network, "Normal") is None


def test_images_of_a_class_that_the_network_lacks_are_chosen_by_it(tiny_shards, tmp_path):
    """--where takes the data set's labels for the truth, the network's for the call."""
    folder = tiny_shards / "covid-radiography"
    known = read_label_table(folder, "test")
    rows = [f"{key},0.1,0.9" for key in known.keys]
    path = tmp_path / "scores.csv"
    path.write_text("\n".join(["key,Other,COVID-19", *rows]))
    normal = [key for key, row in zip(known.keys, known.labels) if row[0] == YES]
    for where in ("true=Normal,predicted=COVID-19", "true=Normal,error", "true=Normal"):
        assert choose_keys(folder, "test", path, parse_where(where), None) == normal
    with pytest.raises(UserError, match="no image of split"):
        choose_keys(folder, "test", path, parse_where("true=COVID-19,error"), None)
    with pytest.raises(UserError, match="true=Other: no such label; there are: Normal"):
        choose_keys(folder, "test", path, parse_where("true=Other"), None)
