"""emptyDir volumes: how much memory one may hold, which huge pages, and how one appears."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from kone.runtime import mounts
from kone.runtime.empty_dir import make, make_directory, memory_bytes, page_size_option
from kone.runtime.parts import VolumeError


def pod(*, limits: dict[str, str] | None = None, requests: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    resources = {"limits": limits or {}, "requests": requests or {}}
    return {"metadata": {"uid": "u"}, "spec": {"containers": [{"name": "c", "resources": resources}], **spec}}


MEBI = 1 << 20


@pytest.mark.parametrize(
    ("volume", "container", "node", "expected"),
    [
        (0, "", 0, 0),
        (0, "", 100 * MEBI, 100 * MEBI),
        (2 * MEBI, "", 100 * MEBI, 2 * MEBI),
        (200 * MEBI, "", 100 * MEBI, 100 * MEBI),
        (0, "10Mi", 100 * MEBI, 10 * MEBI),
        (20 * MEBI, "10Mi", 100 * MEBI, 10 * MEBI),
        (5 * MEBI, "10Mi", 100 * MEBI, 5 * MEBI),
    ],
    ids=[
        "no bound at all",
        "all pods together",
        "the volume's own",
        "a volume cannot have more than all pods",
        "the pod's",
        "the pod's, where it is less",
        "the volume's, where it is less",
    ],
)
def test_memory(volume: int, container: str, node: int, expected: int) -> None:
    limits = {"memory": container} if container else {}
    assert memory_bytes(volume, pod(limits=limits), node) == expected


@pytest.mark.parametrize(
    ("medium", "requests", "option"),
    [
        ("HugePages", {"hugepages-2Mi": "4Mi"}, "pagesize=2Mi"),
        ("HugePages-1Gi", {"hugepages-2Mi": "4Mi", "hugepages-1Gi": "1Gi"}, "pagesize=1Gi"),
        ("HugePages-2048Ki", {"hugepages-2Mi": "4Mi"}, "pagesize=2Mi"),
    ],
)
def test_huge_pages(medium: str, requests: dict[str, str], option: str) -> None:
    assert page_size_option(medium, pod(requests=requests)) == option


@pytest.mark.parametrize(
    ("medium", "requests", "text"),
    [
        (
            "HugePages",
            {"hugepages-2Mi": "4Mi", "hugepages-1Gi": "1Gi"},
            "medium: HugePages can't be used if container requests multiple huge page sizes",
        ),
        (
            "HugePages-1Gi",
            {"hugepages-2Mi": "4Mi"},
            "medium HugePages-1Gi: hugePages storage requested, but there is no resource request for huge pages",
        ),
    ],
)
def test_huge_pages_that_cannot_be(medium: str, requests: dict[str, str], text: str) -> None:
    with pytest.raises(VolumeError) as caught:
        page_size_option(medium, pod(requests=requests))
    assert str(caught.value) == text


def test_a_directory_is_for_everybody_and_the_pods_group(tmp_path: Path) -> None:
    volume = tmp_path / "plugin" / "v"
    make(volume, {"name": "v", "emptyDir": {}}, pod(), 0)
    assert volume.stat().st_mode & 0o7777 == 0o777
    grouped = tmp_path / "plugin" / "g"
    make(grouped, {"name": "g", "emptyDir": {}}, pod(securityContext={"fsGroup": os.getgid()}), 0)
    assert grouped.stat().st_mode & 0o7777 == 0o2777
    assert grouped.stat().st_gid == os.getgid()


def test_what_a_pod_did_to_its_directory_stays(tmp_path: Path) -> None:
    volume = tmp_path / "v"
    make_directory(volume, os.getgid())
    volume.chmod(0o700)
    make_directory(volume, os.getgid())
    assert volume.stat().st_mode & 0o7777 == 0o700


def test_a_half_made_directory_is_finished(tmp_path: Path) -> None:
    (tmp_path / ".v.new").mkdir(mode=0o700)
    make_directory(tmp_path / "v")
    assert os.listdir(tmp_path) == ["v"]
    assert (tmp_path / "v").stat().st_mode & 0o7777 == 0o777


def test_a_medium_that_nobody_knows(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match=r'^unknown storage medium "Paper"$'):
        make(tmp_path / "v", {"name": "v", "emptyDir": {"medium": "Paper"}}, pod(), 0)


@pytest.mark.ring3
def test_memory_is_mounted_once_with_its_size_and_group(tmp_path: Path) -> None:
    volume = {"name": "v", "emptyDir": {"medium": "Memory", "sizeLimit": "2Mi"}}
    path = tmp_path / "v"
    try:
        for _ in range(2):
            make(path, volume, pod(securityContext={"fsGroup": 2345}), 100 * MEBI)
        assert mounts.mounts_below(str(tmp_path)) == [str(path)]
        found = os.statvfs(path)
        assert found.f_blocks * found.f_frsize == 2 * MEBI
        assert (path.stat().st_mode & 0o7777, path.stat().st_gid) == (0o3777, 2345)
    finally:
        for point in mounts.mounts_below(str(tmp_path)):
            mounts.unmount(point)
