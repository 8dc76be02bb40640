"""Files that change all at once: what a reader finds before, after and in between."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kone.runtime.atomic_writer import File, write


def contents(target: Path) -> dict[str, str]:
    return {name: (target / name).read_text() for name in sorted(os.listdir(target)) if not name.startswith("..")}


def test_names_lead_through_the_data_link(tmp_path: Path) -> None:
    assert write(tmp_path, {"a": File(b"1", 0o644), "d/b": File(b"2", 0o400)}, "2026_11_25_00_00_00")
    assert (tmp_path / "a").readlink() == Path("..data/a")
    assert (tmp_path / "..data").readlink().name.startswith("..2026_11_25_00_00_00.")
    assert (tmp_path / "d" / "b").read_text() == "2"
    assert (tmp_path / "d" / "b").stat().st_mode & 0o777 == 0o400


def test_the_same_files_are_not_written_again(tmp_path: Path) -> None:
    files = {"a": File(b"1", 0o640)}
    write(tmp_path, files, "one")
    before = (tmp_path / "..data").readlink()
    assert not write(tmp_path, files, "two")
    assert (tmp_path / "..data").readlink() == before


def test_an_update_swaps_everything_and_removes_what_went(tmp_path: Path) -> None:
    write(tmp_path, {"a": File(b"1", 0o644), "b": File(b"1", 0o644)}, "one")
    reader = open(tmp_path / "a")  # noqa: SIM115 - held open over the update
    assert write(tmp_path, {"a": File(b"2", 0o644), "c": File(b"2", 0o644)}, "two")
    assert contents(tmp_path) == {"a": "2", "c": "2"}
    assert reader.read() == "1"
    reader.close()
    assert len([n for n in os.listdir(tmp_path) if n.startswith("..two")]) == 1
    assert not [n for n in os.listdir(tmp_path) if n.startswith("..one")]


def test_a_change_of_mode_alone_is_a_change(tmp_path: Path) -> None:
    write(tmp_path, {"a": File(b"1", 0o644)}, "one")
    assert write(tmp_path, {"a": File(b"1", 0o600)}, "two")


def test_a_groups_bits_do_not_look_like_a_change(tmp_path: Path) -> None:
    files = {"a": File(b"1", 0o600)}
    group = os.getgid()
    assert write(tmp_path, files, "one", group)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640
    assert not write(tmp_path, files, "two", group)


def test_a_group_owns_the_volume_from_the_top(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    write(tmp_path, {"d/a": File(b"1", 0o400)}, "one", os.getgid())
    assert tmp_path.stat().st_mode & 0o7777 == 0o2777
    assert (tmp_path / "d").stat().st_mode & 0o7777 == 0o2755
    assert (tmp_path / "d" / "a").stat().st_mode & 0o7777 == 0o440


def test_mount_points_of_other_volumes_stay(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write(tmp_path, {"a": File(b"1", 0o644)}, "one")
    write(tmp_path, {"b": File(b"1", 0o644)}, "two")
    assert (tmp_path / "in").is_dir()
    assert not (tmp_path / "a").exists()


def test_a_name_that_was_taken_away_comes_back(tmp_path: Path) -> None:
    files = {"a": File(b"1", 0o644)}
    write(tmp_path, files, "one")
    (tmp_path / "a").unlink()
    assert not write(tmp_path, files, "two")
    assert (tmp_path / "a").read_text() == "1"


def test_the_umask_has_no_say(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        write(tmp_path, {"d/a": File(b"1", 0o666)}, "one")
    finally:
        os.umask(before)
    assert (tmp_path / "d").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "d" / "a").stat().st_mode & 0o777 == 0o666


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("", 'invalid path: must not be empty: ""'),
        ("/a", "invalid path: must be relative path: /a"),
        ("a/../b", "invalid path: must not contain '..': a/../b"),
        ("..a", "invalid path: must not start with '..': ..a"),
        ("x" * 256, "invalid path: filenames must be less than or equal to 255 characters"),
        ("x/" * 2100, "invalid path: must be less than or equal to 4096 characters"),
    ],
)
def test_paths_that_no_volume_may_have(tmp_path: Path, path: str, text: str) -> None:
    with pytest.raises(ValueError) as caught:
        write(tmp_path, {path: File(b"", 0o644)}, "one")
    assert str(caught.value) == text
    assert os.listdir(tmp_path) == []
