"""Files and folders that are written whole or not at all."""

import os
from pathlib import Path

import pytest

from meanflow.data.files import whole_file, whole_folder, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_the_old_one_until_all_went_well(tmp_path):
    file = tmp_path / "new" / "report.npz"
    write_text(file, "old")
    with pytest.raises(ZeroDivisionError), whole_file(file) as aside:
        aside.write_text("half")
        assert aside.suffix == ".npz" and file.read_text() == "old"
        raise ZeroDivisionError
    assert file.read_text() == "old" and names(file.parent) == ["report.npz"]
    with whole_file(file) as aside:
        aside.write_text("new")
    assert file.read_text() == "new" and names(file.parent) == ["report.npz"]


def test_a_folder_is_the_old_one_until_all_went_well(tmp_path):
    folder = tmp_path / "page"
    with whole_folder(folder) as aside:
        (aside / "inner").mkdir()
        (aside / "inner" / "a.txt").write_text("old")
    with pytest.raises(ValueError, match="is there already and not empty"), whole_folder(folder):
        pass
    with pytest.raises(ZeroDivisionError), whole_folder(folder, replace=True) as aside:
        (aside / "b.txt").write_text("half")
        raise ZeroDivisionError
    assert (folder / "inner" / "a.txt").read_text() == "old" and names(tmp_path) == ["page"]
    with whole_folder(folder, replace=True) as aside:
        (aside / "b.txt").write_text("new")
    assert names(folder) == ["b.txt"] and names(tmp_path) == ["page"]
    with pytest.raises(ValueError, match="names no folder to write"), whole_folder(Path(".")):
        pass


def test_what_appears_meanwhile_is_not_deleted_and_links_are_followed(tmp_path):
    folder = tmp_path / "data"
    with pytest.raises(OSError, match="not empty"), whole_folder(folder) as aside:
        (aside / "a.txt").write_text("ours")
        folder.mkdir()
        (folder / "b.txt").write_text("another's")
    assert names(tmp_path) == ["data"] and names(folder) == ["b.txt"]
    (tmp_path / "link").symlink_to(folder)
    with whole_folder(tmp_path / "link", replace=True) as aside:
        (aside / "c.txt").write_text("new")
    assert (tmp_path / "link").is_symlink() and names(folder) == ["c.txt"]


def test_what_a_killed_process_left_does_not_enter_the_next_folder(tmp_path):
    left = tmp_path / ".page.tmp"
    left.mkdir()
    (left / "torn.txt").write_text("torn")
    with whole_folder(tmp_path / "page") as aside:
        assert aside == left
        (aside / "whole.txt").write_text("whole")
    assert names(tmp_path) == ["page"] and names(tmp_path / "page") == ["whole.txt"]


def test_processes_that_write_one_file_write_under_names_of_their_own(tmp_path):
    with whole_file(tmp_path / "header.json", shared=True) as aside:
        assert str(os.getpid()) in aside.name
        aside.write_text("{}")
    assert names(tmp_path) == ["header.json"]
