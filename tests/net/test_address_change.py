"""A host that gets another address while the node runs."""

from __future__ import annotations

import asyncio
import ssl
import time
from pathlib import Path

import pytest

from kone.apimachinery.kinds import ENDPOINTSLICES
from kone.config import Settings, resolve
from kone.node import Node
from tests.net.test_bridge import eventually
from tests.net.world import HOST_IP, OUTSIDE_IP, World, run

pytestmark = pytest.mark.ring3

OTHER_IP = "192.0.2.77"
PARTS = "controllers,scheduler,kubelet,proxy,dns,ingress,networkpolicy"


async def leads_to(node: Node) -> list[str]:
    found = await node.client.get(ENDPOINTSLICES, "kubernetes", "default")
    return [str(address) for endpoint in found["endpoints"] for address in endpoint["addresses"]]


async def test_the_api_is_found_at_the_new_address(world: World, tmp_path: Path) -> None:
    node = Node(resolve(Settings(data_dir=str(tmp_path), secure_port=0, disable=PARTS)))
    await node.start()
    try:
        assert await leads_to(node) == [HOST_IP]
        run("ip", "route", "del", "default")
        run("ip", "addr", "add", "198.51.100.9/32", "dev", "lo")
        began = time.monotonic()
        await eventually(lambda: time.monotonic() > began + 0.8, within_s=2)
        assert await leads_to(node) == [HOST_IP], "a lost default route alone is no other address"
        run("ip", "addr", "del", f"{HOST_IP}/24", "dev", "up0")
        run("ip", "addr", "add", f"{OTHER_IP}/24", "dev", "up0")
        run("ip", "route", "add", "default", "via", OUTSIDE_IP)
        await eventually(lambda: node.node_ip == OTHER_IP, within_s=5)
        began = time.monotonic()
        while await leads_to(node) != [OTHER_IP]:
            assert time.monotonic() < began + 5
            await asyncio.sleep(0.05)
        certificate = ssl._ssl._test_decode_cert(str(tmp_path / "pki" / "apiserver.crt"))  # type: ignore[attr-defined]
        names = [name for _, name in certificate["subjectAltName"]]
        assert OTHER_IP in names
        assert HOST_IP not in names
    finally:
        await node.stop()
