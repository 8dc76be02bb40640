"""Round after round of what happens to a host: rules flushed, Docker restarted, another address, no default route.

Traffic must be right again within five seconds each time. `make rounds` runs it, 20 rounds each; KONE_TEST_ROUNDS says
how many. What Docker does as it starts is played, command by command: it makes its own chains anew, puts its jumps
first and sets the policy of FORWARD to DROP.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from kone.net.service_map import ServicePortName
from tests.contracts.proxiers import CONTESTANTS, Contestant, Stage, require
from tests.contracts.test_proxier import eventually
from tests.net.world import World, run

ROUNDS = int(os.environ.get("KONE_TEST_ROUNDS", "0"))
pytestmark = [pytest.mark.ring3, pytest.mark.skipif(not ROUNDS, reason="long: make rounds")]

WEB = ServicePortName("default", "web", "http", "TCP")
WITHIN_S = 5.0

DOCKER_STOPS = """
-t nat -D PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-t nat -D OUTPUT -m addrtype --dst-type LOCAL -j DOCKER
-t nat -F DOCKER
-t nat -X DOCKER
-D FORWARD -j DOCKER-USER
-D FORWARD -j DOCKER-ISOLATION-STAGE-1
-F DOCKER
-F DOCKER-ISOLATION-STAGE-1
-X DOCKER-ISOLATION-STAGE-1
"""
DOCKER_STARTS = """
-t nat -N DOCKER
-N DOCKER
-N DOCKER-ISOLATION-STAGE-1
-N DOCKER-USER
-t nat -I POSTROUTING -s {pods} ! -o docker0 -j MASQUERADE
-t nat -I DOCKER -i docker0 -j RETURN
-t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-t nat -A OUTPUT -m addrtype --dst-type LOCAL -j DOCKER
-I FORWARD -i docker0 ! -o docker0 -j ACCEPT
-I FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-P FORWARD DROP
-I FORWARD -j DOCKER-ISOLATION-STAGE-1
-A DOCKER-USER -j RETURN
-I FORWARD -j DOCKER-USER
"""
KEPT = ("-N DOCKER", "-N DOCKER-USER", "-A DOCKER-USER -j RETURN")  # chains that Docker leaves where they are
DOCKER_RANGES = {4: "172.17.0.0/16", 6: "fd00:172::/64"}

Scene = Callable[[Stage, int], str]
"""Does it to the stage, for the n-th time; the host's address from then on."""


def rules_are_flushed(stage: Stage, number: int) -> str:
    stage.contestant.harms[number % len(stage.contestant.harms)]()
    return stage.at.host


def docker_restarts(stage: Stage, number: int) -> str:
    tool = "ip6tables" if stage.family == 6 else "iptables"
    tool = f"{tool}-{stage.contestant.backend or 'nft'}"
    script = DOCKER_STARTS if number == 0 else f"{DOCKER_STOPS}{DOCKER_STARTS}"
    kept = () if number == 0 else KEPT
    for line in script.format(pods=DOCKER_RANGES[stage.family]).splitlines():
        if line and line not in kept:
            run(tool, *line.split())
    return stage.at.host


def the_address_changes(stage: Stage, number: int) -> str:
    length = 64 if stage.family == 6 else 24
    both = stage.at.host, f"{stage.at.host}3"
    old, new = both if number % 2 == 0 else both[::-1]
    run("ip", "addr", "del", f"{old}/{length}", "dev", "up0")
    run("ip", "addr", "add", f"{new}/{length}", "dev", "up0", *(["nodad"] if stage.family == 6 else []))
    run("ip", "route", "replace", "default", "via", stage.at.outside)
    return new


def the_default_route_goes(stage: Stage, number: int) -> str:
    if number:
        run("ip", "route", "replace", "default", "via", stage.at.outside)
    run("ip", f"-{stage.family}", "route", "del", "default")
    return stage.at.host


@pytest.fixture
def world() -> Iterator[World]:
    with World.entered() as world:
        yield world


@pytest.fixture(params=CONTESTANTS, ids=str)
async def stage(request: pytest.FixtureRequest, world: World, tmp_path: Path) -> AsyncIterator[Stage]:
    contestant: Contestant = request.param
    require(contestant)
    stage = Stage(world, tmp_path, contestant)
    await stage.start()
    try:
        yield stage
    finally:
        await stage.stop()


@pytest.mark.parametrize(
    "scene", [rules_are_flushed, docker_restarts, the_address_changes, the_default_route_goes], ids=lambda f: f.__name__
)
async def test_traffic_is_right_again_each_time(stage: Stage, scene: Scene) -> None:
    a = await stage.backend_pod("a")
    await stage.proxier.sync({WEB: stage.web(a, node_port=30080)})
    host = stage.at.host

    async def served() -> bool:
        return (
            await stage.answers(stage.at.vip, 80)
            and await stage.answers(stage.at.vip, 80, path="")
            and await stage.answers(host, 30080, path=stage.world.outside)
        )

    assert await served()
    took = []
    for number in range(ROUNDS):
        host = scene(stage, number)
        took.append(await eventually(served, within_s=WITHIN_S))
    print(f"{stage.contestant} {scene.__name__}: worst of {ROUNDS} {max(took):.2f} s")
