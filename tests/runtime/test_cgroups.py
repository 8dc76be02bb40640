"""A pod's control group: the arithmetic of requests and limits, for both versions."""

from __future__ import annotations

from pathlib import Path

import pytest

from kone.runtime.cgroups import Cgroups, quota_of, settings_v1, settings_v2, shares_of, weight_of


@pytest.mark.parametrize(("milli", "shares"), [(0, 2), (1, 2), (100, 102), (1000, 1024), (10**9, 262144)])
def test_shares(milli: int, shares: int) -> None:
    assert shares_of(milli) == shares


@pytest.mark.parametrize(("milli", "quota"), [(1, 1000), (500, 50_000), (1500, 150_000)])
def test_quota(milli: int, quota: int) -> None:
    assert quota_of(milli) == quota


@pytest.mark.parametrize(("shares", "weight"), [(2, 1), (1024, 39), (262_144, 10_000)])
def test_weight(shares: int, weight: int) -> None:
    assert weight_of(shares) == weight


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
