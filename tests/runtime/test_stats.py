"""Use of pods and the node: measured on this very process, in the shape of the stats API and of Prometheus."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from kone.aio.clock import FakeClock
from kone.apimachinery.objects import Object
from kone.runtime import usage
from kone.runtime.cadvisor_metrics import cadvisor_metrics
from kone.runtime.meters import Meters
from kone.runtime.metrics import Page, kubelet_metrics, probe_metrics, resource_metrics
from kone.runtime.node_status import host_facts
from kone.runtime.probes import Probed
from kone.runtime.runtime import ContainerState, ContainerStatus, PodMeta, RuntimeStatus
from kone.runtime.stats import Stats

try:
    usage.group_of(os.getpid()).read()
except (OSError, KeyError):
    pytest.skip("this process is in no control group that counts", allow_module_level=True)

POD: Object = {
    "metadata": {"name": "p", "namespace": "n", "uid": "u"},
    "spec": {"containers": [{"name": "c"}], "volumes": [{"name": "v", "emptyDir": {}}]},
    "status": {"startTime": "2023-11-14T22:13:20Z"},
}


class Runtime:
    def __init__(self, root: Path) -> None:
        self.root = root

    async def status(self) -> RuntimeStatus:
        return RuntimeStatus(True, root_dir=str(self.root), pid=os.getppid())


class World:
    """A pod whose one container is the process that runs the tests."""

    def __init__(self, path: Path) -> None:
        self.clock = FakeClock()
        self.path = path
        self.log = path / "c-json.log"
        self.log.write_text("x" * 100_000)
        (path / "c-json.log.1").write_text("x" * 100_000)
        self.volume = path / "pods/u/volumes/kubernetes.io~empty-dir/v"
        self.volume.mkdir(parents=True)
        (self.volume / "f").write_bytes(os.urandom(100_000))
        meta = PodMeta("p", "n", "u")
        self.status = ContainerStatus(
            "c1",
            "s",
            meta,
            "c",
            ContainerState.RUNNING,
            0.0,
            started_at=5.5,
            pid=os.getpid(),
            image="img:1",
            log_path=str(self.log),
        )
        self.stats = Stats(self, Runtime(path), self.clock, "n1", path)  # type: ignore[arg-type]

    def pods(self) -> list[Object]:
        return [POD, {"metadata": {"name": "idle", "namespace": "n", "uid": "i"}, "spec": {"containers": []}}]

    def containers(self, pod_uid: str) -> list[ContainerStatus]:
        return [self.status] if pod_uid == "u" else []


async def test_disk_is_counted_only_when_asked_for(tmp_path: Path) -> None:
    world = World(tmp_path)
    [quick] = await world.stats.pods()
    assert quick.usage.memory_bytes > 0
    assert quick.ephemeral_storage.bytes == 0
    [full] = await world.stats.pods(disk=True)
    assert full.containers[0].log.bytes >= 200_000
    assert full.volumes["v"].bytes >= 100_000
    assert full.ephemeral_storage.bytes >= 300_000


async def test_a_container_that_has_just_ended_is_left_out(tmp_path: Path) -> None:
    world = World(tmp_path)
    gone = ContainerStatus("c2", "s", world.status.pod, "d", ContainerState.RUNNING, 0.0, pid=2**22 + 1)
    use = await world.stats.pod(POD, [gone, world.status], disk=False)
    assert [container.status.name for container in use.containers] == ["c"]


async def test_the_summary_of_a_pod(tmp_path: Path) -> None:
    world = World(tmp_path)
    summary = await world.stats.summary()
    [pod] = summary["pods"]
    assert pod["podRef"] == {"name": "p", "namespace": "n", "uid": "u"}
    assert pod["startTime"] == "2023-11-14T22:13:20Z"
    [container] = pod["containers"]
    assert (container["name"], container["startTime"]) == ("c", "1970-01-01T00:00:05Z")
    assert container["logs"]["usedBytes"] >= 200_000
    assert [volume["name"] for volume in pod["volume"]] == ["v"]
    assert pod["ephemeral-storage"]["usedBytes"] >= 300_000
    assert pod["process_stats"]["process_count"] >= 0
    assert "usageNanoCores" not in pod["cpu"]
    await world.clock.advance(10)
    again = (await world.stats.summary(only_cpu_and_memory=True))["pods"][0]
    assert again["cpu"]["usageNanoCores"] >= 0
    assert "ephemeral-storage" not in again


async def test_the_summary_tells_pressure_where_the_kernel_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pressure = usage.Pressure(some=usage.Stalls(7, 1.5, 0.5, 0.1))
    monkeypatch.setattr(usage.Group, "pressures", lambda group: {"cpu": pressure, "io": pressure})
    summary = await World(tmp_path).stats.summary()
    nothing = {"total": 0, "avg10": 0.0, "avg60": 0.0, "avg300": 0.0}
    psi = {"some": {"total": 7, "avg10": 1.5, "avg60": 0.5, "avg300": 0.1}, "full": nothing}
    for found in (summary["node"], summary["pods"][0]["containers"][0]):
        assert found["cpu"]["psi"] == found["io"]["psi"] == psi
        assert "psi" not in found["memory"]


async def test_what_metrics_server_reads(tmp_path: Path) -> None:
    world = World(tmp_path)
    uses = await world.stats.pods()
    text = resource_metrics(uses, 1_700_000_000.5)
    labels = 'container="c",namespace="n",pod="p"'
    lines = text.splitlines()
    working_set = uses[0].containers[0].usage.working_set_bytes
    assert f"container_memory_working_set_bytes{{{labels}}} {working_set} 1700000000500" in lines
    assert f"container_start_time_seconds{{{labels}}} 5.5" in lines
    assert any(line.startswith('pod_cpu_usage_seconds_total{namespace="n",pod="p"} ') for line in lines)
    assert any(line.startswith("node_memory_working_set_bytes ") for line in lines)
    assert text.endswith("resource_scrape_error 0\n")


async def test_the_summary_of_the_node(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.stats.summary()
    await world.clock.advance(10)
    node = (await world.stats.summary())["node"]
    parts = {part["name"]: part for part in node["systemContainers"]}
    assert parts.keys() == {"kubelet", "runtime", "pods"}
    for part in (node, *parts.values()):
        assert part["cpu"]["usageNanoCores"] >= 0
        assert part["memory"]["workingSetBytes"] > 0
        assert part["swap"]["swapUsageBytes"] >= 0
    assert parts["pods"]["memory"]["availableBytes"] > 0
    assert "availableBytes" not in parts["kubelet"]["memory"]
    assert node["fs"].keys() == node["runtime"]["imageFs"].keys() == node["runtime"]["containerFs"].keys()
    assert node["network"]["name"] in ("", "eth0")
    assert node["rlimit"]["maxpid"] >= node["rlimit"]["curproc"]


async def cadvisor_lines(world: World) -> list[str]:
    uses = await world.stats.pods(disk=True)
    disk = await world.stats.image_fs()
    return cadvisor_metrics(uses, disk, host_facts(world.path), "20.10", 1.0).splitlines()


async def test_what_dashboards_read(tmp_path: Path) -> None:
    lines = await cadvisor_lines(World(tmp_path))
    container = f'container="c",id="{usage.group_of(os.getpid()).name}",image="img:1",name="c1",namespace="n",pod="p"'
    root = 'container="",id="/",image="",name="",namespace="",pod=""'
    assert any(line.startswith(f"container_memory_rss{{{container}}} ") for line in lines)
    assert any(line.startswith(f'container_cpu_usage_seconds_total{{{root},cpu="total"}} ') for line in lines)
    assert any(line.startswith("machine_memory_bytes{boot_id=") for line in lines)


# kubernetes/test/e2e_node/container_metrics_test.go
OF_CONTAINERS = re.findall(
    r"\w+",
    """
    container_blkio_device_usage_total container_cpu_system_seconds_total container_cpu_usage_seconds_total
    container_cpu_user_seconds_total container_file_descriptors container_fs_reads_bytes_total
    container_fs_reads_total container_fs_usage_bytes container_fs_writes_bytes_total container_fs_writes_total
    container_last_seen container_memory_cache container_memory_events_high_total container_memory_events_max_total
    container_memory_failcnt container_memory_failures_total container_memory_mapped_file
    container_memory_max_usage_bytes container_memory_rss container_memory_swap container_memory_usage_bytes
    container_memory_working_set_bytes container_oom_events_total container_processes container_sockets
    container_spec_cpu_period container_spec_cpu_shares container_spec_memory_limit_bytes
    container_spec_memory_reservation_limit_bytes container_spec_memory_swap_limit_bytes
    container_start_time_seconds container_threads container_threads_max container_ulimits_soft
    """,
)
NOT_COUNTED_HERE = {"container_blkio_device_usage_total", *(n for n in OF_CONTAINERS if n.startswith("container_fs_"))}


async def test_every_family_that_upstreams_own_test_asks_of_a_container_is_there(tmp_path: Path) -> None:
    lines = await cadvisor_lines(World(tmp_path))
    there = {line.partition("{")[0] for line in lines if 'container="c"' in line}
    assert set(OF_CONTAINERS) - there <= NOT_COUNTED_HERE  # without a device there is nothing to tell of it


def test_what_the_kubelet_counts_of_its_work(tmp_path: Path) -> None:
    meters = Meters()
    meters.terminated_containers.add("container", "139", "Error")
    meters.pod_start_s.observe(0.7)
    meters.pod_start_s.observe(4000)
    lines = kubelet_metrics(World(tmp_path), "n1", meters).splitlines()  # type: ignore[arg-type]
    assert 'kubelet_terminated_containers_total{container_type="container",exit_code="139",reason="Error"} 1' in lines
    assert "kubelet_started_pods_total 0" in lines
    buckets = [line for line in lines if line.startswith("kubelet_pod_start_duration_seconds")]
    assert buckets[0] == 'kubelet_pod_start_duration_seconds_bucket{le="0.5"} 0'
    assert buckets[1] == 'kubelet_pod_start_duration_seconds_bucket{le="1"} 1'
    assert buckets[-3:] == [
        'kubelet_pod_start_duration_seconds_bucket{le="+Inf"} 2',
        "kubelet_pod_start_duration_seconds_sum 4000.7",
        "kubelet_pod_start_duration_seconds_count 2",
    ]
    assert 'kubelet_active_pods{static=""} 2' in lines


def test_a_page_of_metrics() -> None:
    page = Page(2.5)
    page.family("a_total", "counter", "Help.", [({}, 1.0), ({"x": 'q"\\\n'}, 0.25)])
    page.family("b", "gauge", "More.", [({}, 3)], stamped=True)
    assert page.text() == (
        "# HELP a_total Help.\n# TYPE a_total counter\n"
        'a_total 1\na_total{x="q\\"\\\\\\n"} 0.25\n'
        "# HELP b More.\n# TYPE b gauge\nb 3 2500\n"
    )


def test_probes() -> None:
    text = probe_metrics({Probed("Readiness", "failed", "c", "p", "n", "u"): 3})
    labels = 'probe_type="Readiness",result="failed",container="c",pod="p",namespace="n",pod_uid="u"'
    assert text.splitlines()[-1] == f"prober_probe_total{{{labels}}} 3"
