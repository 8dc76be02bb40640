"""The link under which plugins find the kubelet's directory: made where nothing is in the way, and only then."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from kone.runtime import mounts
from kone.runtime.kubelet_home import offer, share, withdraw


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data" / "kubelet"


def test_a_link_is_made_found_again_and_taken_away(root: Path, tmp_path: Path) -> None:
    public = tmp_path / "var" / "kubelet"
    for _ in range(2):
        assert offer(root, public) == public
        assert public.resolve() == root
    assert withdraw(root, public)
    assert not public.is_symlink()
    assert not withdraw(root, public)


def test_an_empty_directory_gives_way(root: Path, tmp_path: Path) -> None:
    (tmp_path / "kubelet").mkdir()
    assert offer(root, tmp_path / "kubelet") == tmp_path / "kubelet"
    assert (tmp_path / "kubelet").resolve() == root


def test_a_link_of_a_node_whose_data_is_gone_gives_way(root: Path, tmp_path: Path) -> None:
    (tmp_path / "kubelet").symlink_to(tmp_path / "gone")
    assert offer(root, tmp_path / "kubelet") == tmp_path / "kubelet"


def test_what_is_somebody_elses_stays(root: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "seccomp").mkdir(parents=True)
    assert offer(root, other) == root
    (tmp_path / "link").symlink_to(other)
    assert offer(root, tmp_path / "link") == root
    assert not withdraw(root, tmp_path / "link")
    assert (other / "seccomp").is_dir()
    assert (tmp_path / "link").is_symlink()


def test_a_node_without_a_public_name_uses_its_own(root: Path) -> None:
    assert offer(root, None) == root


@pytest.mark.ring3
def test_what_is_mounted_below_is_seen_in_mounts_of_it(root: Path, tmp_path: Path) -> None:
    (private := tmp_path / "private").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "--make-private", "kone-test", private], check=True)
    root, elsewhere = private / "kubelet", tmp_path / "elsewhere"
    try:
        for _ in range(2):
            share(root)
            assert mounts.mounts_below(str(root)) == [str(root)]
        elsewhere.mkdir()
        mounts.bind(str(root), str(elsewhere))
        for place, other in ((root, elsewhere), (elsewhere, root)):
            (place / "v").mkdir(exist_ok=True)
            mounts.mount_tmpfs(str(place / "v"))
            (place / "v" / "file").touch()
            assert (other / "v" / "file").exists()
            mounts.unmount(str(place / "v"))
        share(root / "below")
        assert mounts.mounts_below(str(root)) == [str(root)], "what it lies on is shared"
    finally:
        for point in mounts.mounts_below(str(tmp_path)):
            mounts.unmount(point)
