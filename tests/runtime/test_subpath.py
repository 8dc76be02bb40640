"""subPath: a part of a volume and nothing beyond it. Binding is a mount, so most of this needs root."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kone.runtime import mounts, subpath
from kone.runtime.parts import SubPathFailed, VolumeError


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/etc", "error SubPath `/etc` must not be an absolute path"),
        ("a/../../b", "unable to provision SubPath `a/../../b`: must not contain '..'"),
    ],
)
def test_paths_that_are_refused_by_their_looks(path: str, text: str) -> None:
    with pytest.raises(VolumeError) as caught:
        subpath.check(path)
    assert str(caught.value) == text


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Path]:
    """A pod's folder beside a volume."""
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume").chmod(0o2777)
    folder = tmp_path / "pod"
    folder.mkdir()
    yield folder
    for point in mounts.mounts_below(str(tmp_path)):
        mounts.unmount(point)
    subpath.remove(folder)
    assert os.listdir(folder) == []


@pytest.fixture
def volume(pod: Path) -> Path:
    return pod.parent / "volume"


def bind(pod: Path, volume: Path, sub_path: str) -> Path:
    return Path(subpath.bind(pod, str(volume), sub_path))


@pytest.mark.ring3
def test_what_is_missing_is_made_with_the_mode_of_the_volume(pod: Path, volume: Path) -> None:
    before = os.umask(0o077)
    try:
        bound = bind(pod, volume, "sub/dir")
    finally:
        os.umask(before)
    (bound / "x").write_text("seen")
    assert (volume / "sub" / "dir" / "x").read_text() == "seen"
    assert {(volume / p).stat().st_mode & 0o7777 for p in ("sub", "sub/dir")} == {0o2777}


@pytest.mark.ring3
def test_the_same_part_is_bound_once(pod: Path, volume: Path) -> None:
    (volume / "f").write_text("1")
    assert bind(pod, volume, "f") == bind(pod, volume, "f")
    assert len(mounts.mounts_below(str(pod))) == 1


@pytest.mark.ring3
def test_a_renewed_file_is_bound_anew_and_the_old_one_is_still_read(pod: Path, volume: Path) -> None:
    def renew(text: str) -> None:
        (volume / "new").write_text(text)
        (volume / "new").rename(volume / "f")

    renew("1")
    first = bind(pod, volume, "f")
    renew("2")
    second = bind(pod, volume, "f")
    assert (first.read_text(), second.read_text()) == ("1", "2")
    renew("3")
    third = bind(pod, volume, "f")
    assert third.read_text() == "3"
    assert not first.exists()  # only the newest two are kept
    assert len(mounts.mounts_below(str(pod))) == 2


@pytest.mark.ring3
def test_links_inside_are_followed_and_links_outside_are_not(pod: Path, volume: Path) -> None:
    (volume / "real").mkdir()
    (volume / "inside").symlink_to("real")
    (volume / "outside").symlink_to("/etc")
    (volume / "dangling").symlink_to(pod.parent / "elsewhere")
    (bind(pod, volume, "inside") / "x").write_text("")
    assert (volume / "real" / "x").exists()
    for name in ("outside", "outside/passwd", "dangling", "dangling/x"):
        with pytest.raises(SubPathFailed, match="not within volume path") as caught:
            bind(pod, volume, name)
        exists = name.startswith("outside")
        assert caught.value.step == ("prepare subPath" if exists else "create subPath directory")
    assert not (pod.parent / "elsewhere").exists()


@pytest.mark.ring3
def test_a_link_that_appears_after_the_check_is_not_followed(
    pod: Path, volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (volume / "d").mkdir()
    check = os.path.realpath

    def swap(path: str) -> str:
        found = check(path)
        if found.endswith("/d"):
            (volume / "d").rmdir()
            (volume / "d").symlink_to("/etc")
        return found

    monkeypatch.setattr(os.path, "realpath", swap)
    with pytest.raises(SubPathFailed, match="has become a link"):
        bind(pod, volume, "d")
    assert mounts.mounts_below(str(pod)) == []


def test_a_file_is_read_only_within_its_volume(tmp_path: Path) -> None:
    volume = tmp_path / "v"
    (volume / "d").mkdir(parents=True)
    (volume / "d/env").write_text("A='1'")
    (volume / "link").symlink_to("d/env")
    (tmp_path / "secret").write_text("B='2'")
    (volume / "out").symlink_to("../secret")
    assert subpath.read_inside(str(volume), "d/env", 100) == b"A='1'"
    assert subpath.read_inside(str(volume), "/link", 100) == b"A='1'"
    for path, most in (("out", 100), ("../secret", 100), ("d", 100), ("missing", 100), ("d/env", 3)):
        with pytest.raises(OSError):
            subpath.read_inside(str(volume), path, most)
