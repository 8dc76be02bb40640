"""What kube-proxy's health endpoint says of the service proxy, and to whom."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import pytest

from kone.apimachinery.objects import Object, replace_in
from kone.net.proxy_health import HEALTH_TIMEOUT_S, ProxyHealth, ProxyServer, is_eligible, said
from tests.fakes import make_node

NOW = 1_795_000_000.0


def told(health: ProxyHealth, now: float, eligible: bool | None = True) -> tuple[int, Any]:
    answer = said(health, now, eligible)
    return answer.status, json.loads(answer.body)


def test_a_proxy_that_has_just_started_is_healthy() -> None:
    health = ProxyHealth()
    health.queued(("IPv4",), NOW)
    status, body = told(health, NOW + 3600)
    assert (status, body["healthy"], "status" in body) == (200, True, False)


def test_what_waits_for_a_minute_makes_its_family_and_the_whole_unhealthy() -> None:
    health = ProxyHealth()
    for family in ("IPv4", "IPv6"):
        health.updated(family, NOW)
    health.queued(("IPv4", "IPv6"), NOW + 1)
    health.updated("IPv6", NOW + 2)
    health.queued(("IPv4",), NOW + 30)
    assert told(health, NOW + HEALTH_TIMEOUT_S)[0] == 200
    status, body = told(health, NOW + 1 + HEALTH_TIMEOUT_S)
    assert (status, body["healthy"]) == (503, False)
    assert {family: state["healthy"] for family, state in body["status"].items()} == {"IPv4": False, "IPv6": True}
    assert body["lastUpdated"] == body["status"]["IPv6"]["lastUpdated"], "the newest of what was done"
    health.updated("IPv4", NOW + 100)
    assert told(health, NOW + 100)[0] == 200


def test_a_healthy_proxy_was_updated_now() -> None:
    health = ProxyHealth()
    health.updated("IPv4", NOW)
    _, body = told(health, NOW + 3600)
    assert body["lastUpdated"] == body["currentTime"] != body["status"]["IPv4"]["lastUpdated"]


def test_a_node_that_goes_gets_no_new_traffic_but_lives() -> None:
    health = ProxyHealth()
    health.updated("IPv4", NOW)
    assert told(health, NOW, False)[0] == 503
    status, body = told(health, NOW, None)
    assert (status, "nodeEligible" in body) == (200, False)


TAINTS = [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]


@pytest.mark.parametrize(
    ("node", "eligible"),
    [
        (make_node("n1"), True),
        (None, False),
        (replace_in(make_node("n1"), ("metadata", "deletionTimestamp"), "2026-01-01T00:00:00Z"), False),
        (replace_in(make_node("n1"), ("spec", "taints"), TAINTS), False),
        (replace_in(make_node("n1"), ("spec", "taints"), [{"key": "other", "effect": "NoSchedule"}]), True),
    ],
    ids=["ready", "unknown", "being deleted", "the autoscaler will delete it", "another taint"],
)
def test_which_nodes_are_eligible(node: Object | None, eligible: bool) -> None:
    assert is_eligible(node) is eligible


async def test_paths_of_both_doors_and_a_port_that_is_taken() -> None:
    health = ProxyHealth()
    health.updated("IPv4", NOW)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = ProxyServer(health, lambda: make_node("n1"), lambda: NOW, "nftables", healthz_port=0, status_port=0)
        blocked = ProxyServer(
            health,
            lambda: None,
            lambda: NOW,
            "ipvs",
            healthz_port=0,
            status_port=taken.getsockname()[1],
        )
        await blocked.start()
        await blocked.stop()
    assert server.answer_all("/healthz").status == 200
    assert server.answer_all("/livez").status == 200
    assert server.answer_all("/proxyMode").status == 404
    assert server.answer_localhost("/proxyMode").body == "nftables"
    assert server.answer_localhost("/healthz").body == "ok"


async def test_it_answers_by_http() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    health = ProxyHealth()
    server = ProxyServer(health, lambda: None, lambda: NOW, "nftables", healthz_port=0, status_port=port)
    await server.start()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /proxyMode?x=1 HTTP/1.1\r\nHost: n1\r\n\r\n")
        answer = (await reader.read()).decode()
        writer.close()
        await writer.wait_closed()
    finally:
        await server.stop()
    assert answer.startswith("HTTP/1.1 200 OK\r\n")
    assert answer.endswith("\r\n\r\nnftables")
