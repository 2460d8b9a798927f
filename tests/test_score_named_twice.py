"""What counts as an input: no image twice, no scores of an earlier run, no hidden archive."""

from pathlib import Path

import fsspec
import pytest
from test_archives import contents, write_folder, write_tar
from test_score import config, pictures, rows

from serve.score import score
from serve.score_folder import ScoreFolder
from serve.score_inputs import find_archives
from serve.summary import SummaryConfig, summary
from shards.console import UserError
from shards.urls import path_of


@pytest.fixture
def inputs(tmp_path, monkeypatch) -> Path:
    """data/x.png, data/sub/y.png, data/sub/t.tar; a.tar, which link.tar and list.txt name."""
    monkeypatch.chdir(tmp_path)
    write_folder(Path("data"), {"x.png": b"x", "sub/y.png": b"y"})
    write_tar(Path("data/sub/t.tar"), {"z.png": b"z"})
    write_tar(Path("a.tar"), {"z.png": b"z"})
    Path("link.tar").symlink_to("a.tar")
    Path("linked").symlink_to("data")
    Path("list.txt").write_text("./a.tar\r\n")
    return tmp_path


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("data data/sub", "data/sub lies in data, which is named too"),
        ("data/sub data", "data/sub lies in data, which is named too"),
        ("data/**", "data/sub/t.tar lies in data/sub, which is named too"),
        ("data data/x.png", "data/x.png lies in data, which is named too"),
        ("data data/sub/t.tar", "data/sub/t.tar lies in data, which is named too"),
        ("linked data/sub/*.png", "data/sub/y.png lies in linked, which is named too"),
        ("a.tar link.tar", "link.tar is named twice, by a.tar and link.tar"),
        ("a.tar ./a.tar", "a.tar is named twice, by a.tar and a.tar"),
        ("a.tar @list.txt", "a.tar is named twice, by a.tar and @list.txt"),
        ("data/*.png data/x.png", r"data/x.png is named twice, by data/\*.png and data/x.png"),
        ("linked data", "data is named twice, by linked and data"),
    ],
)
@pytest.mark.usefixtures("inputs")
def test_what_would_give_an_image_two_rows_is_refused(named, message):
    with pytest.raises(UserError, match=message) as caught:
        find_archives([Path(text) for text in named.split()])
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("inputs")
def test_what_lies_side_by_side_is_not_named_twice():
    write_folder(Path("data2"), {"x.png": b"x"})
    found = find_archives([Path("data/sub"), Path("data2"), Path("data/*.png"), Path("a.tar")])
    assert [len(contents(archive)) for archive in found] == [1, 1, 1, 1, 1]


def test_a_folder_behind_a_url_and_what_lies_in_it_are_told():
    fs = fsspec.filesystem("memory")
    for name in ("data/x.png", "data/sub/y.png", "data2/z.png"):
        fs.pipe_file(f"/{name}", b"x")
    folder, inner, other = (path_of(f"memory://{n}") for n in ("data", "data/sub", "data2"))
    assert len(find_archives([folder, other])) == 2
    with pytest.raises(UserError, match="memory://data/sub lies in memory://data, which is named"):
        find_archives([folder, inner])
    fs.store.clear()


@pytest.mark.parametrize("pattern", ["*", "**", "*.*", "**/*.png"])
def test_the_same_glob_again_names_the_same(tmp_path, monkeypatch, pattern):
    """The scores lie beside the images, with pictures of their own and the CSV."""
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path, {f"{i}.png": data for i, data in enumerate(pictures(4).values())})
    asked = config(tmp_path, Path(pattern), csv=Path("rows.csv"))
    assert score(asked).rows == 4  # and not the model
    summary(SummaryConfig(asked.out, top=1))
    (tmp_path / "notes.txt").write_text("of no concern")
    assert score(asked).already_done
    assert summary(SummaryConfig(asked.out, top=1))
    with pytest.raises(UserError, match="no image and no archive matches"):
        find_archives([Path("out/*")])


def test_a_folder_without_images_is_passed_over_where_a_glob_names_it(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    write_folder(Path("data"), {"a/x.png": b"x", "notes/read.txt": b"no image"})
    Path("list.txt").write_text("data/*\n")
    for named in (Path("data/*"), Path("@list.txt")):
        (found,) = find_archives([named])
        assert [name for name, _, _ in contents(found)] == ["x.png"]
        said = "warning: no image and no archive in the folder data/notes (1 files); passed over\n"
        assert capsys.readouterr().err == said
    with pytest.raises(UserError, match=r"no image and no archive matches data/n\*"):
        find_archives([Path("data/n*"), Path("data/a")])
    with pytest.raises(UserError, match="no image and no archive in the folder data/notes"):
        find_archives([Path("data/notes"), Path("data/a")])


@pytest.mark.parametrize("pattern", ["*", "**"])
def test_a_kill_before_anything_is_asked_for_is_in_no_globs_way(tmp_path, monkeypatch, pattern):
    """A folder that is no folder of scores yet lies among the glob's matches."""
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path, pictures(2))
    asked = config(tmp_path, Path(pattern))
    with ScoreFolder(asked.out).locked():
        pass
    assert score(asked).rows == 2
    assert score(asked).already_done


@pytest.mark.usefixtures("inputs")
def test_two_stars_are_what_lies_in_a_folder_wherever_it_is_named_from(monkeypatch):
    write_folder(Path("flat"), {"x.png": b"x", "y.png": b"y"})
    found = [contents(archive) for archive in find_archives([Path("flat/**")])]
    monkeypatch.chdir("flat")
    for pattern in (Path("**"), Path.cwd() / "**"):
        assert [contents(archive) for archive in find_archives([pattern])] == found


def test_scores_in_a_folder_of_archives_are_no_input(tmp_path):
    write_tar(tmp_path / "data.tar", pictures(2))
    folder = write_folder(tmp_path / "data", {"a.tar": (tmp_path / "data.tar").read_bytes()})
    asked = config(tmp_path, folder, out="data/scores", csv=folder / "rows.csv")
    score(asked)
    summary(SummaryConfig(asked.out, top=1))
    assert score(asked).already_done
    assert summary(SummaryConfig(asked.out, top=1))


def test_hidden_archives_of_a_folder_are_left_out_and_counted(tmp_path):
    """As other hidden files are: macOS leaves a ._a.tar beside each a.tar on other disks."""
    tar = write_tar(tmp_path / "a.tar", pictures(2)).read_bytes()
    names = {"._a.tar": b"Mac OS X", ".old/b.tar": tar, "__MACOSX/a.zip": b"junk", "a.tar": tar}
    score(config(tmp_path, write_folder(tmp_path / "data", names | pictures(1))))
    assert [row["archive"] for row in rows(tmp_path / "out")] == ["data/archive-1"] * 2 + ["data"]
    assert '"other files": 3' in (tmp_path / "out/scores.json").read_text()
