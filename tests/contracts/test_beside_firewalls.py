"""Services and pods beside the firewalls that hosts have, the real ones: firewalld, ufw and a Docker of the test's own.

Each is started, made to write its rules anew, and started again, in the test's network namespace. Within five seconds
each time a pod reaches Services, other pods and the outside, and the outside a node port. `make rounds`: 20 times.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from kone.net.firewalld import Firewalld
from kone.net.service_map import ServicePort
from tests.contracts.proxiers import CONTESTANTS, DNS, NAMES, SLOWNESS, WEB, Contestant, Stage, require
from tests.contracts.test_proxier import eventually
from tests.net.world import World, run

pytestmark = pytest.mark.ring3

ROUNDS = int(os.environ.get("KONE_TEST_ROUNDS", "2"))
WITHIN_S = 5.0
STARTED_WITHIN_S = 60.0
MODES = ("ipvs-v4", "nftables-v4", "iptables-nft-v4", "iptables-nft-v6", "iptables-legacy-v4")
BUS = """<busconfig>
  <type>system</type>
  <listen>unix:path={folder}/bus</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="root"/> <allow own="*"/> <allow send_destination="*"/> <allow receive_sender="*"/>
  </policy>
</busconfig>
"""


@pytest.fixture
def world() -> Iterator[World]:
    with World.entered() as world:
        yield world


@pytest.fixture(params=[c for c in CONTESTANTS if str(c) in MODES], ids=str)
async def stage(request: pytest.FixtureRequest, world: World, tmp_path: Path) -> AsyncIterator[Stage]:
    contestant: Contestant = request.param
    require(contestant)
    stage = Stage(world, tmp_path, contestant)
    await stage.start()
    try:
        yield stage
    finally:
        await stage.stop()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path, for sockets."""
    with tempfile.TemporaryDirectory(prefix="kone-fw-") as folder:
        yield Path(folder)


@contextmanager
def program(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    """It runs, with its children, for as long as the block lasts."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(30 * SLOWNESS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for(command: list[str]) -> None:
    """Until the command succeeds."""
    deadline = time.monotonic() + STARTED_WITHIN_S * SLOWNESS
    while subprocess.run(command, capture_output=True).returncode:
        assert time.monotonic() < deadline, f"{' '.join(command)} does not succeed"
        time.sleep(0.1)


def reload_firewalld() -> None:
    """Until it is through; firewall-cmd does not wait so long for a slow machine."""
    subprocess.run(["firewall-cmd", "--reload"], capture_output=True)
    wait_for(["firewall-cmd", "--state"])


def needs(*programs: str) -> None:
    for name in programs:
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed")


async def all_is_right(stage: Stage) -> Callable[[], object]:
    """A Service with a node port, a DNS-like one of UDP; what tells whether all ways are open."""
    a = await stage.backend_pod("a")
    outside = stage.world.outside
    await stage.servers.enter_async_context(
        await stage.world.serve(outside, 7000, "outside", address=stage.at.everywhere)
    )
    # The host itself serves too, as kone's API server and DNS do.
    await stage.servers.enter_async_context(await stage.world.serve("", 7001, "host", address=stage.at.everywhere))
    host_port: ServicePort = stage.web(a, node_port=30080)
    await stage.proxier.sync({WEB: host_port, DNS: stage.dns(a)})

    async def right() -> bool:
        return (
            await stage.answers(stage.at.vip, 80)
            and await stage.answers(stage.at.vip, 80, path="")
            and await stage.answers(stage.at.host, 30080, path=outside)
            and await stage.answers(a.ip, a.port)
            and await stage.answers(stage.at.outside, 7000)
            and await stage.answers(stage.at.bridge, 7001)
        )

    return right


async def test_firewalld_starts_reloads_and_starts_again(
    stage: Stage, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("firewalld", "dbus-daemon")
    right = await all_is_right(stage)
    assert await right()
    (folder / "bus.conf").write_text(BUS.format(folder=folder))
    (folder / "etc" / "firewalld").mkdir(parents=True)
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={folder}/bus")
    firewalld = ("firewalld", "--nofork", "--nopid", "--system-config", f"{folder}/etc", "--log-target", "console")
    with ExitStack() as running:
        running.enter_context(program("dbus-daemon", "--nofork", f"--config-file={folder}/bus.conf"))
        wait_for(["test", "-S", f"{folder}/bus"])
        for _ in range(ROUNDS):
            with program(*firewalld):
                wait_for(["firewall-cmd", "--state"])
                assert "filter_FORWARD" in run("nft", "list", "chains")
                await eventually(right, WITHIN_S)
                assert not await stage.answers(stage.at.host, 7001, path=stage.world.outside), "firewalld works"
                reload_firewalld()
                await eventually(right, WITHIN_S)
                assert not await stage.answers(stage.at.host, 7001, path=stage.world.outside)
                cleaner = Firewalld(NAMES, ())
                await cleaner.cleanup()
                await cleaner.stop()
                assert "kone" not in run("nft", "list", "table", "inet", "firewalld")
            await eventually(right, WITHIN_S)


async def test_ufw_is_enabled_reloaded_and_enabled_again(stage: Stage, folder: Path) -> None:
    needs("ufw")
    right = await all_is_right(stage)
    assert await right()
    shutil.copytree("/etc/ufw", folder / "ufw")
    binds = {"/etc/ufw": f"{folder}/ufw"}
    if stage.contestant.backend == "legacy":
        binds["/usr/sbin/xtables-nft-multi"] = "/usr/sbin/xtables-legacy-multi"
    mounts = "".join(f"mount --bind {mine} {theirs}; " for theirs, mine in binds.items())

    def ufw(*words: str) -> None:
        """As on a host of its own: its files, and the iptables that it finds, are the test's."""
        run("unshare", "--mount", "sh", "-ec", f"{mounts}ufw {' '.join(words)}")

    for _ in range(ROUNDS):
        for command in (("--force", "enable"), ("reload",)):
            ufw(*command)
            await eventually(right, WITHIN_S)
            assert not await stage.answers(stage.at.host, 7001, path=stage.world.outside), "ufw works"
        ufw("--force", "disable")
        await eventually(right, WITHIN_S)


async def test_docker_starts_and_restarts(stage: Stage, folder: Path) -> None:
    needs("dockerd")
    if stage.family == 6 or stage.contestant.backend == "legacy":
        pytest.skip("Docker's rules are of IPv4, in the back end that iptables stands for")
    right = await all_is_right(stage)
    assert await right()
    socket = f"unix://{folder}/docker.sock"
    dockerd = [
        *("dockerd", "--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec", "--pidfile", f"{folder}/pid"),
        *("--host", socket, "--storage-driver", "vfs", "--bip", "172.31.255.1/24", "--config-file", f"{folder}/json"),
    ]
    (folder / "json").write_text("{}")
    Path("/proc/sys/net/ipv4/ip_forward").write_text("0")  # where Docker turns it on, it drops what it does not know
    for _ in range(ROUNDS):
        with program(*dockerd):
            wait_for(["docker", "--host", socket, "version"])
            assert "-P FORWARD DROP" in run("iptables", "-S", "FORWARD")
            await eventually(right, WITHIN_S)
        await eventually(right, WITHIN_S)
