"""Certificates of pods: asked for once, handed over when issued, renewed in time, never after a refusal."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kone.aio.clock import FakeClock, settle
from kone.apimachinery.kinds import EVENTS, NODES, PODS, SERVICEACCOUNTS
from kone.apimachinery.objects import Object, replace_in
from kone.apimachinery.timestamps import format_time
from kone.client.events import EventRecorder
from kone.runtime.parts import VolumeError
from kone.runtime.pod_certificates import PODCERTIFICATEREQUESTS, PodCertificates, clean_chain
from kone.runtime.volumes import Volumes
from tests.fakes import FakeClient, make_node

DAY_S = 86400.0
CHAIN = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
NOT_YET = "credential bundle is not issued yet"


class World:
    """A node with one pod of one certificate; `sign` and `refuse` play the signer."""

    def __init__(self, path: Path) -> None:
        self.clock = FakeClock()
        self.client = FakeClient(self.clock)
        self.recorder = EventRecorder(self.client, "kubelet", host="n1", clock=self.clock, linger_s=0.0)
        self.made: list[str] = []
        self.synced: list[str] = []
        self.certificates = PodCertificates(self.client, self.recorder, self.clock, "n1", self._new_key)
        self.volumes = Volumes(
            self.client,
            path,
            self.clock,
            lambda pod, item: "",
            sync_pod=self.synced.append,
            certificates=self.certificates,
        )
        account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "robot", "namespace": "n"}}
        self.client.put(SERVICEACCOUNTS, account)
        self.client.put(NODES, make_node())
        self.pod = self._pod({"credentialBundlePath": "bundle.pem"})

    def _new_key(self, key_type: str) -> tuple[bytes, bytes]:
        self.made.append(key_type)
        return f"key-{len(self.made)}\n".encode(), b"proof"

    def _pod(self, paths: Object) -> Object:
        source = {"signerName": "example.com/s", "keyType": "ED25519", "userAnnotations": {"example.com/a": "b"}}
        sources = [{"downwardAPI": {"items": []}}, {"podCertificate": {**source, **paths}}]
        spec = {
            "nodeName": "n1",
            "serviceAccountName": "robot",
            "containers": [{"name": "c"}],
            "volumes": [{"name": "v", "projected": {"sources": sources, "defaultMode": 0o644}}],
        }
        meta = {"name": "p", "namespace": "n"}
        return self.client.put(PODS, {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec})

    async def mount(self) -> str:
        """The file of the mounted volume."""
        mounted = await self.volumes.mount(self.pod)
        return (Path(mounted["v"].host_path) / "bundle.pem").read_text()

    async def wait(self) -> str:
        """Why the volume cannot be mounted."""
        with pytest.raises(VolumeError) as told:
            await self.mount()
        return str(told.value).partition(" : ")[2]

    @property
    def requests(self) -> list[Object]:
        return self.client.of(PODCERTIFICATEREQUESTS, "n")

    def _end(self, request: Object, status: Object) -> None:
        self.client.overwrite(PODCERTIFICATEREQUESTS, replace_in(request, ("status",), status))

    def sign(self, *, life_s: float = DAY_S) -> None:
        now = self.clock.now()
        condition = {"type": "Issued", "status": "True", "reason": "Good", "message": ""}
        status = {
            "conditions": [condition],
            "certificateChain": f"# of the signer\n{CHAIN}",
            "beginRefreshAt": format_time(now + life_s / 2),
            "notAfter": format_time(now + life_s),
        }
        self._end(self.requests[-1], status)

    def refuse(self, kind: str) -> None:
        condition = {"type": kind, "status": "True", "reason": "No", "message": 'not "you"'}
        self._end(self.requests[-1], {"conditions": [condition]})

    async def events(self) -> list[tuple[str, str]]:
        await settle()
        await self.recorder.stop()
        return [(event["reason"], event["message"]) for event in self.client.of(EVENTS, "n")]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    await made.volumes.start()
    yield made
    await made.volumes.unmount(made.pod["metadata"]["uid"])
    await made.volumes.stop()


async def asked(world: World, requests: int) -> None:
    """Until there are that many requests: a key is made in a thread."""
    changed = asyncio.Event()
    unsubscribe = world.client.informer(PODCERTIFICATEREQUESTS).subscribe(lambda *_: changed.set())
    async with asyncio.timeout(20):
        while len(world.requests) < requests:
            changed.clear()
            await changed.wait()
    unsubscribe()
    await settle()


async def test_a_request_says_who_asks_for_whom(world: World) -> None:
    assert await world.wait() == NOT_YET
    (request,) = world.requests
    meta, spec = request["metadata"], request["spec"]
    uid = world.pod["metadata"]["uid"]
    assert meta["generateName"] == "req-"
    assert meta["ownerReferences"] == [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": uid}]
    assert spec == {
        "signerName": "example.com/s",
        "podName": "p",
        "podUID": uid,
        "serviceAccountName": "robot",
        "serviceAccountUID": world.client.of(SERVICEACCOUNTS, "n")[0]["metadata"]["uid"],
        "nodeName": "n1",
        "nodeUID": world.client.of(NODES)[0]["metadata"]["uid"],
        "stubPKCS10Request": base64.b64encode(b"proof").decode(),
        "unverifiedUserAnnotations": {"example.com/a": "b"},
    }
    assert world.made == ["ED25519"]


async def test_the_bundle_is_there_as_soon_as_it_is_issued(world: World) -> None:
    assert await world.wait() == NOT_YET
    assert await world.wait() == NOT_YET
    assert len(world.requests) == 1
    world.sign()
    await settle()
    assert world.synced[-1] == world.pod["metadata"]["uid"]
    assert await world.mount() == f"key-1\n{CHAIN}"


async def test_key_and_chain_by_themselves(world: World) -> None:
    world.client.overwrite(PODS, world.pod)
    source = world.pod["spec"]["volumes"][0]["projected"]["sources"][1]["podCertificate"]
    source.pop("credentialBundlePath")
    source.update(keyPath="key.pem", certificateChainPath="chain.pem")
    assert await world.wait() == NOT_YET
    world.sign()
    await settle()
    folder = Path((await world.volumes.mount(world.pod))["v"].host_path)
    assert ((folder / "key.pem").read_text(), (folder / "chain.pem").read_text()) == ("key-1\n", CHAIN)


@pytest.mark.parametrize(
    ("kind", "text", "event"),
    [
        (
            "Denied",
            'PodCertificateRequest was permanently denied: reason="No" message="not \\"you\\""',
            'was denied, reason="No", message="not \\"you\\""',
        ),
        (
            "Failed",
            'PodCertificateRequest was permanently failed: reason="No" message="not \\"you\\""',
            'failed, reason="No", message="not \\"you\\""',
        ),
    ],
)
async def test_a_refusal_is_for_ever(world: World, kind: str, text: str, event: str) -> None:
    await world.wait()
    world.refuse(kind)
    await settle()
    assert await world.wait() == text
    await world.clock.advance(2 * DAY_S)
    assert await world.wait() == text
    name = world.requests[0]["metadata"]["name"]
    assert len(world.requests) == 1
    assert await world.events() == [(kind, f"PodCertificateRequest n/{name} {event}")]


async def test_it_is_renewed_in_time_and_used_until_then(world: World) -> None:
    await world.wait()
    world.sign()
    await settle()
    await world.clock.advance(DAY_S / 2 - 60)
    assert len(world.requests) == 1
    await world.clock.advance(60 + 300 + 120)  # the latest jitter, and the next look
    await asked(world, 2)
    assert await world.mount() == f"key-1\n{CHAIN}"
    world.sign()
    await settle()
    assert await world.mount() == f"key-2\n{CHAIN}"
    assert await world.events() == []


async def test_a_signer_that_does_not_renew_is_told_of(world: World) -> None:
    await world.wait()
    world.sign()
    await settle()
    await world.clock.advance(DAY_S / 2 + 300 + 600 + 120)
    await world.clock.advance(DAY_S / 2)
    assert await world.mount() == f"key-1\n{CHAIN}"
    assert await world.events() == [
        ("CertificateOverdueForRefresh", "PodCertificate refresh overdue"),
        ("CertificateExpired", "PodCertificate expired"),
    ]


async def test_a_request_that_somebody_deleted_is_made_again(world: World) -> None:
    await world.wait()
    name = world.requests[0]["metadata"]["name"]
    await world.client.delete(PODCERTIFICATEREQUESTS, name, namespace="n")
    await settle()
    assert await world.wait() == NOT_YET
    assert world.requests == []
    await world.clock.advance(600 + 300 + 120)
    await asked(world, 1)
    assert [request["metadata"]["name"] != name for request in world.requests] == [True]


async def test_a_pod_that_is_gone_is_forgotten(world: World) -> None:
    await world.wait()
    await world.volumes.unmount(world.pod["metadata"]["uid"])
    assert list(world.certificates.due()) == []
    assert await world.wait() == NOT_YET
    assert len(world.requests) == 2


async def test_what_the_api_refuses_is_said(world: World) -> None:
    await world.client.delete(SERVICEACCOUNTS, "robot", namespace="n")
    assert await world.wait() == f'{NOT_YET}: serviceaccounts "robot" not found'


def test_only_certificates_are_handed_on() -> None:
    text = "Subject: x\n-----BEGIN CERTIFICATE-----\nHeader: y\n\nAAAA\n-----END CERTIFICATE-----\ntrash\n"
    assert clean_chain(text + CHAIN) == (CHAIN + CHAIN).encode()
