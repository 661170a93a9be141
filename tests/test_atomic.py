"""A reader sees the old file or the new one, whole, whatever happens between."""

from pathlib import Path

import pytest

from simsiam.atomic import replacing, write_atomically


def test_content_takes_the_place_of_what_was_there(tmp_path: Path) -> None:
    for content, held in (("first", b"first"), (b"\xff second", b"\xff second")):
        write_atomically(tmp_path / "file", content)
        assert (tmp_path / "file").read_bytes() == held
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_error_while_writing_leaves_the_old_file_and_no_draft(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file", "old")
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "file") as draft:
        draft.write_text("ne")
        raise KeyboardInterrupt
    assert (tmp_path / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_place_that_cannot_be_written_is_an_oserror(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        write_atomically(tmp_path / "folder", "text")
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "none/file", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_link_gives_way_and_what_it_names_stays(tmp_path: Path) -> None:
    (tmp_path / "named").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "named")
    write_atomically(tmp_path / "link", "new")
    assert (tmp_path / "named").read_text() == "kept"
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "link").read_text() == "new"
