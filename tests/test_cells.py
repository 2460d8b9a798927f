"""ingest.cells: labels, patients and ages of tables, in the sources that read them."""

from pathlib import Path

import pytest
from test_table import make as own_table

from ingest.cells import labels_of, patients_of, refuse_repeats, vocabulary_names, years
from ingest.dicom_labels import make_vocabulary, read_labels
from ingest.sources.actualmed import Actualmed, ActualmedConfig
from shards.console import UserError
from shards.labels import warn_of_variants

TWO = "path,labels,pid\n1.png,{},{}\ndeep/2.png,{},{}\n"


@pytest.mark.parametrize("word", ["nan", "NA", "NULL", "None", "#N/A", "n/a", ""])
def test_missing_is_no_label_and_no_patient(tmp_path: Path, word: str, capsys):
    text = "path,labels,pid\n1.png,{0},{0}\ndeep/2.png,a|{0}|b,7\n"
    source = own_table(tmp_path, text.format(word), patient_column="pid")
    assert source.vocabulary.names == ("a", "b")
    assert [record.labels for record in source.records()] == [(), ("a", "b")]
    assert [record.patient for record in source.records()] == [None, "csv:7"]
    (tmp_path / "ids.csv").write_text(f"id,labels,split\n1.2,{word},{word}\n1.3,b,{word}\n")
    assert [(row.labels, row.split) for row in read_labels(tmp_path / "ids.csv")] == [
        ((), None),
        (("b",), None),
    ]
    capsys.readouterr()
    (tmp_path / "ids.csv").write_text(f"id,labels\n1.2,{word}\n1.3,b\n1.4,a\n")
    assert not make_vocabulary(read_labels(tmp_path / "ids.csv"), (), tmp_path).exclusive
    assert "1 rows of" in capsys.readouterr().err
    (tmp_path / "ids.csv").write_text(f"id,labels,split\n1.2,a,test\n1.3,b,{word}\n")
    with pytest.raises(UserError, match="line 3 has no split; allowed: train"):
        read_labels(tmp_path / "ids.csv")


def test_a_word_for_missing_is_a_label_where_it_is_given(tmp_path: Path):
    text = TWO.format("None", 1, "Mass|nan", 2)
    given = own_table(tmp_path, text, labels=("Mass", "None"))
    assert [record.labels for record in given.records()] == [("None",), ("Mass",)]
    assert labels_of("None|NA||Mass", ["NA"]) == ("Mass", "NA")


@pytest.mark.parametrize("values", [("1.0", "0.0"), ("-1.0", "1.0"), ("0", "1"), ("-1", "")])
def test_the_values_of_one_finding_are_no_labels(tmp_path: Path, values: tuple[str, str]):
    text = TWO.format(values[0], 1, values[1], 2)
    allowed = (
        r"column 'labels' of .*own.csv holds .* no names of labels; allowed: the names of each"
    )
    with pytest.raises(UserError, match=allowed):
        own_table(tmp_path, text)
    with pytest.raises(UserError, match="a table with one column per finding is not read"):
        vocabulary_names([(value,) for value in values if value], (), tmp_path, "labels")
    if all(values):
        assert own_table(tmp_path, text, labels=values).vocabulary.names == values


def test_numbers_of_classes_are_labels(tmp_path: Path):
    assert own_table(tmp_path, TWO.format(2, 1, 0, 2)).vocabulary.names == ("0", "2")


def test_labels_alike_but_for_case_and_spaces_are_told(tmp_path: Path, capsys):
    text = TWO.format("COVID", 1, "Covid|Normal\u200b|co\u00a0vid\u00a0", 2)
    source = own_table(tmp_path, text)
    assert source.vocabulary.names == ("COVID", "Covid", "Normal", "co\u00a0vid")
    said = capsys.readouterr().err
    assert r"only by case, spaces or hyphens: 'COVID', 'Covid', 'co\xa0vid'. Each is a" in said
    warn_of_variants(["T1", "T2", "-1", "1", "<5", ">5", "Viral Pneumonia"], "x")
    assert capsys.readouterr().err == ""
    warn_of_variants(["COVID-19", "covid 19", "Cafe\u0301", "Caf\u00e9"], "x")
    assert capsys.readouterr().err.count("; ") == 1


def test_too_many_labels_are_another_column(tmp_path: Path):
    with pytest.raises(UserError, match="has 501 different labels; allowed: up to 500"):
        vocabulary_names([(f"label {n}",) for n in range(501)], (), tmp_path, "labels")


def test_a_patient_is_one_as_a_number_with_and_without_a_point(tmp_path: Path, capsys):
    assert patients_of(["1.0", "1", "", "2"], tmp_path) == ["1", "1", None, "2"]
    assert capsys.readouterr().err == ""
    assert patients_of(["1", "01", "p7", "P7 ", "p7"], tmp_path)[0] == "1"
    assert capsys.readouterr().err.startswith("warning: 2 patients of ")
    (tmp_path / "images").mkdir()
    (tmp_path / "images/1.png").write_bytes(b"image")
    rows = ["patientid,finding,view,imagename", "1.0,COVID-19,PA,1.png", "1,COVID-19,PA,2.png"]
    (tmp_path / "metadata.csv").write_text("\n".join([*rows, "nan,NaN,NaN,3.png"]))
    records = Actualmed(ActualmedConfig(tmp_path)).records()
    assert [record.patient for record in records] == ["actualmed:1", "actualmed:1", None]
    assert (records[2].view, records[2].excluded) == (None, "finding is blank")


def test_no_message_names_a_patient(tmp_path: Path, capsys):
    patients_of(["Doe^John", "DOE^JOHN"], tmp_path)
    said = capsys.readouterr().err
    assert "1 patients of" in said
    assert "doe" not in said.lower()


def test_repeats(tmp_path: Path):
    refuse_repeats(["a", "b"], tmp_path)
    with pytest.raises(UserError, match="names 1 images more than once, such as b"):
        refuse_repeats(["b", "a", "b"], tmp_path)
    with pytest.raises(UserError, match="names no image"):
        refuse_repeats([], tmp_path)


@pytest.mark.parametrize(
    ("text", "age"),
    [("58", 58), ("58.5", 58), ("0", 0), ("50+", None), ("early 40s", None), ("414", None)],
)
def test_years(text: str, age: int | None):
    assert years(text) == age
