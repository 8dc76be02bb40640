"""Clients that take nothing but protobuf are answered in it; who takes JSON, too, gets JSON."""

from __future__ import annotations

import aiohttp
import pytest

from kone.apimachinery import protobuf, protowire
from kone.apimachinery.objects import Object
from tests.apiserver.conftest import Served

CM = "/api/v1/namespaces/ns/configmaps"
PROTOBUF = "application/vnd.kubernetes.protobuf"


async def get(served: Served, path: str, accept: str = PROTOBUF) -> tuple[int, str, bytes]:
    async with served.session.get(f"http://kone{path}", headers={"Accept": accept}) as answer:
        return answer.status, answer.headers["Content-Type"], await answer.read()


async def made(served: Served) -> Object:
    _, found, _ = await served.call("POST", CM, {"metadata": {"name": "a"}, "data": {"k": "v"}})
    assert isinstance(found, dict)
    return found


async def test_an_object_and_a_list(served: Served) -> None:
    created = await made(served)
    code, kind, body = await get(served, f"{CM}/a")
    assert (code, kind) == (200, PROTOBUF)
    assert protobuf.decode(body) == created
    _, _, body = await get(served, CM)
    listed = protobuf.decode(body)
    assert listed["kind"] == "ConfigMapList"
    assert [item["data"] for item in listed["items"]] == [{"k": "v"}]


async def test_a_refusal(served: Served) -> None:
    code, kind, body = await get(served, f"{CM}/missing")
    assert (code, kind) == (404, PROTOBUF)
    assert protobuf.decode(body)["reason"] == "NotFound"


@pytest.mark.parametrize(
    "accept", [f"{PROTOBUF},application/json", f"{PROTOBUF};as=Table;v=v1;g=meta.k8s.io,application/json"]
)
async def test_who_takes_json_gets_json(served: Served, accept: str) -> None:
    await made(served)
    assert (await get(served, f"{CM}/a", accept))[:2] == (200, "application/json")


METADATA = f"{PROTOBUF};as=PartialObjectMetadata{{}};g=meta.k8s.io;v=v1,application/json"


async def test_metadata_alone_is_protobuf_for_whom_names_it_first(served: Served) -> None:
    created = await made(served)
    code, kind, body = await get(served, f"{CM}/a", METADATA.format(""))
    assert (code, kind) == (200, PROTOBUF)
    assert envelope(body) == (b"PartialObjectMetadata", created["metadata"]["uid"].encode())
    code, kind, body = await get(served, CM, METADATA.format("List"))
    assert (code, kind) == (200, PROTOBUF)
    assert envelope(body) == (b"PartialObjectMetadataList", created["metadata"]["uid"].encode())


def envelope(body: bytes) -> tuple[bytes, bytes]:
    """The kind, and the uid of the first object (ObjectMeta, field 5)."""
    parts = dict(protowire.read_parts(body, 4, len(body)))
    kind = dict(protowire.read_parts(parts[1], 0, len(parts[1])))[2]
    message = parts[2]
    if kind.endswith(b"List"):
        message = dict(protowire.read_parts(message, 0, len(message)))[2]
    meta = dict(protowire.read_parts(message, 0, len(message)))[1]
    return kind, dict(protowire.read_parts(meta, 0, len(meta)))[5]


async def test_cbor_alone_is_not_acceptable(served: Served) -> None:
    assert (await get(served, CM, "application/cbor"))[0] == 406
    code, _, _ = await served.call("POST", CM, b"\xd9\xd9\xf7\xa0", Content_Type="application/cbor")
    assert code == 415


async def test_a_watch_is_frames_of_events(served: Served) -> None:
    created = await made(served)
    timeout = aiohttp.ClientTimeout(total=5.0)
    url = f"http://kone{CM}?watch=1&resourceVersion=0"
    async with served.session.get(url, headers={"Accept": f"{PROTOBUF};stream=watch"}, timeout=timeout) as answer:
        assert answer.headers["Content-Type"] == f"{PROTOBUF};stream=watch"
        size = int.from_bytes(await answer.content.readexactly(4), "big")
        event = await answer.content.readexactly(size)
    # WatchEvent: type = 1, object = 2 (RawExtension: raw = 1)
    assert event.startswith(b"\x0a\x05ADDED\x12")
    assert protobuf.decode(event[event.index(protobuf.MAGIC) :]) == created
