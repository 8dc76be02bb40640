"""A pod's control group: the arithmetic of requests and limits, for both versions."""

from __future__ import annotations

import asyncio
import sys
import uuid
from pathlib import Path

import pytest

from kone.runtime.cgroups import (
    ROOT,
    Cgroups,
    limits_of,
    quota_of,
    remove_hierarchy,
    settings_v1,
    settings_v2,
    shares_of,
    shares_of_weight,
    weight_of,
)
from kone.runtime.usage import group_of


@pytest.mark.parametrize(("milli", "shares"), [(0, 2), (1, 2), (100, 102), (1000, 1024), (10**9, 262144)])
def test_shares(milli: int, shares: int) -> None:
    assert shares_of(milli) == shares


@pytest.mark.parametrize(("milli", "quota"), [(1, 1000), (500, 50_000), (1500, 150_000)])
def test_quota(milli: int, quota: int) -> None:
    assert quota_of(milli) == quota


@pytest.mark.parametrize(("shares", "weight"), [(2, 1), (102, 17), (1024, 100), (2048, 174), (262_144, 10_000)])
def test_weight(shares: int, weight: int) -> None:
    assert weight_of(shares) == weight


@pytest.mark.parametrize("milli", [2, 100, 250, 1000, 4000, 64_000])
def test_a_weight_says_what_was_asked_for_to_a_few_parts_in_a_hundred(milli: int) -> None:
    shares = shares_of(milli)
    assert shares <= shares_of_weight(weight_of(shares)) <= shares * 1.1 + 2


def test_no_limit_no_file() -> None:
    assert settings_v1({}, {}) == {("cpu", "cpu.shares"): "2"}
    assert settings_v2({}, {}) == {"cpu.weight": "1"}


def test_limits_are_written_in_each_versions_words() -> None:
    requests, limits = {"cpu": 250}, {"cpu": 500, "memory": 64 << 20}
    assert settings_v1(requests, limits)["memory", "memory.limit_in_bytes"] == str(64 << 20)
    assert settings_v2(requests, limits)["cpu.max"] == "50000 100000"


def pod(**resources: dict[str, str]) -> dict[str, object]:
    return {"metadata": {"uid": "a-b"}, "spec": {"containers": [{"name": "c", "resources": resources}]}}


async def test_each_quality_of_service_has_its_branch(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("")
    groups = Cgroups(version=2, driver="cgroupfs", root=tmp_path)
    for top in ("kubepods", "kubepods/burstable", "kubepods/besteffort"):
        (tmp_path / top).mkdir()
        (tmp_path / top / "cgroup.controllers").write_text("")
    await groups.start()
    limits = {"cpu": "1", "memory": "1Mi"}
    assert await groups.ensure(pod()) == "/kubepods/besteffort/poda-b"
    assert await groups.ensure(pod(requests={"cpu": "1"})) == "/kubepods/burstable/poda-b"
    assert await groups.ensure(pod(limits=limits)) == "/kubepods/poda-b"
    assert (tmp_path / "kubepods/poda-b/memory.max").read_text() == str(1 << 20)


async def test_under_systemd_the_group_is_a_slice_and_dashes_do_not_nest() -> None:
    groups = Cgroups(version=2, driver="systemd")
    await groups.start()
    assert await groups.ensure(pod()) == "kubepods-besteffort-poda_b.slice"


def test_huge_pages_are_limited_to_what_was_asked_for() -> None:
    requests = {"cpu": 0, "hugepages-2Mi": 4 << 20, "hugepages-1Gi": 1 << 30, "hugepages-64Ki": 1 << 16}
    assert settings_v1(requests, {})["hugetlb", "hugetlb.2MB.limit_in_bytes"] == str(4 << 20)
    found = settings_v2(requests, {})
    assert (found["hugetlb.1GB.max"], found["hugetlb.64KB.max"]) == (str(1 << 30), str(1 << 16))


LIMITED = {"resources": {"limits": {"cpu": "1", "memory": "1Mi"}}}


@pytest.mark.parametrize(
    ("spec", "limits"),
    [
        ({"containers": [LIMITED, LIMITED]}, {"cpu": 2000, "memory": 2 << 20}),
        ({"containers": [LIMITED, {}]}, {}),
        ({"containers": [LIMITED], "initContainers": [{}]}, {}),
        ({"containers": [LIMITED], "initContainers": [LIMITED]}, {"cpu": 1000, "memory": 1 << 20}),
        ({"containers": [{}], **LIMITED}, {"cpu": 1000, "memory": 1 << 20}),
    ],
    ids=["all limited", "one is not", "an init container is not", "init containers too", "the pod is"],
)
def test_a_group_is_limited_where_all_in_it_are(spec: dict[str, object], limits: dict[str, int]) -> None:
    assert limits_of({"spec": spec}) == limits


async def test_burstable_pods_weigh_what_they_ask_for_together(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    groups = Cgroups(version=1, driver="cgroupfs", root=tmp_path)
    await groups.start()
    top = tmp_path / "cpu" / "kubepods"
    assert (top / "besteffort" / "cpu.shares").read_text() == "2"
    for uid, cpu in (("a", "1"), ("b", "500m")):
        await groups.ensure({**pod(requests={"cpu": cpu}), "metadata": {"uid": uid}})
    assert (top / "burstable" / "cpu.shares").read_text() == str(1024 + 512)
    for file in (top / "burstable" / "poda").iterdir():
        file.unlink()  # a real group's files go with it
    await groups.remove("a")
    assert (top / "burstable" / "cpu.shares").read_text() == "512"


async def test_burstable_pods_of_version_2_weigh_what_one_pod_of_all_their_requests_would(tmp_path: Path) -> None:
    groups = Cgroups(version=2, driver="cgroupfs", root=tmp_path)
    for top in (".", "kubepods", "kubepods/burstable"):
        (tmp_path / top).mkdir(exist_ok=True)
        (tmp_path / top / "cgroup.controllers").write_text("")
    await groups.start()
    for uid in ("a", "b"):
        await groups.ensure({**pod(requests={"cpu": "1"}), "metadata": {"uid": uid}})
    assert (tmp_path / "kubepods/burstable/cpu.weight").read_text() == str(weight_of(2048))


async def test_a_pods_group_goes_from_every_hierarchy_in_which_docker_made_it(tmp_path: Path) -> None:
    for hierarchy in ("cpu", "memory", "systemd", "net_cls"):
        (tmp_path / hierarchy / "kubepods/besteffort/poda").mkdir(parents=True)
    await Cgroups(version=1, driver="cgroupfs", root=tmp_path).remove("a")
    assert list(tmp_path.glob("*/kubepods/besteffort/*")) == []


async def test_pods_that_have_groups_are_known_in_whichever_hierarchy_they_are(tmp_path: Path) -> None:
    for place in ("cpu/kubepods/poda", "memory/kubepods/burstable/podb", "systemd/kubepods/besteffort/podc"):
        (tmp_path / place).mkdir(parents=True)
    groups = Cgroups(version=1, driver="cgroupfs", root=tmp_path)
    await groups.start()
    assert groups.known() == {"a", "b", "c"}


async def test_all_of_a_container_is_killed_when_it_is_out_of_memory(tmp_path: Path) -> None:
    for name in ("proc/7", "groups/pod/c"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "proc/7/cgroup").write_text("0::/pod/c\n")
    groups = Cgroups(version=2, driver="cgroupfs", root=tmp_path / "groups", proc=tmp_path / "proc")
    groups.kill_as_one(7)
    assert (tmp_path / "groups/pod/c/memory.oom.group").read_text() == "1"
    groups.kill_as_one(8)  # which has ended already


@pytest.mark.ring3
@pytest.mark.skipif(not (ROOT / "memory").is_dir(), reason="this host has no control groups of version 1")
async def test_real_groups_hold_their_processes_to_the_limit_and_go_with_the_pod() -> None:
    instance = f"t{uuid.uuid4().hex[:6]}"
    groups = Cgroups(version=1, driver="cgroupfs", instance=instance)
    try:
        await groups.start()
        path = await groups.ensure(pod(limits={"cpu": "500m", "memory": "64Mi"}))
        assert path == f"/kubepods-{instance}/poda-b"
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "import sys; sys.stdin.read(1)", stdin=asyncio.subprocess.PIPE
        )
        for controller in ("cpu", "memory", "cpuacct", "pids", "cpuset"):
            (ROOT / controller / path.lstrip("/") / "cgroup.procs").write_text(str(child.pid))
        assert (ROOT / "cpu" / path.lstrip("/") / "cpu.cfs_quota_us").read_text() == "50000\n"
        group = group_of(child.pid)
        assert group.path.name == "poda-b"
        assert group.read().processes == 1
        child.kill()
        await child.wait()
        await groups.remove("a-b")
        assert not (ROOT / "memory" / path.lstrip("/")).exists()
    finally:
        await remove_hierarchy(instance)
    assert list(ROOT.glob(f"*/kubepods-{instance}")) == []


@pytest.mark.ring3
@pytest.mark.skipif(not (ROOT / "cgroup.controllers").exists(), reason="this host has control groups of version 1")
async def test_real_groups_of_version_2_take_the_limits_tell_of_pressure_and_are_killed_as_one() -> None:
    instance = f"t{uuid.uuid4().hex[:6]}"
    groups = Cgroups(version=2, driver="cgroupfs", instance=instance)
    try:
        await groups.start()
        limits = {"cpu": "500m", "memory": "64Mi"}
        path = await groups.ensure(pod(requests=limits, limits=limits))
        folder = ROOT / path.lstrip("/")
        files = ("memory.max", "cpu.max", "cpu.weight", "memory.min", "memory.high", "pids.max")
        told = [(folder / file).read_text().strip() for file in files]
        assert told == [str(64 << 20), "50000 100000", str(weight_of(shares_of(500))), "0", "max", "max"]
        for quality in ("burstable", "besteffort"):
            assert (folder.parent / quality / "cpu.weight").read_text() == "1\n"

        (container := folder / "c").mkdir()
        (folder / "cgroup.subtree_control").write_text("+memory +cpu +pids")
        code = "import sys; sys.stdin.read(1); held = [b'x' * (1 << 20) for _ in range(200)]"
        command = (sys.executable, "-c", code)
        children = [await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.PIPE) for _ in range(2)]
        for child in children:
            (container / "cgroup.procs").write_text(str(child.pid))
        groups.kill_as_one(children[0].pid)
        found = group_of(children[0].pid)
        assert (found.path, found.read().processes) == (container, 2)
        assert found.parent.pressures().keys() == (
            {"cpu", "memory", "io"} if (ROOT / "cpu.pressure").exists() else set()
        )
        greedy = children[0].stdin
        assert greedy is not None
        greedy.write(b"x")
        await greedy.drain()
        assert [await child.wait() for child in children] == [-9, -9], "one wants too much, and both are ended"
        container.rmdir()
        await groups.remove("a-b")
        assert not folder.exists()
    finally:
        await remove_hierarchy(instance)
    assert list(ROOT.glob(f"kubepods-{instance}")) == []
