"""Bad input of every sort, byte by byte over TLS: each is refused in the right words' code, and the next client is
served as if nothing had been.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from kone.client.kubeconfig import load_kubeconfig
from kone.testing import Cluster

pytestmark = pytest.mark.asyncio(loop_scope="module")
CONFIGMAPS = "/api/v1/namespaces/default/configmaps"
LIMIT = 3 * 1024 * 1024


@dataclass
class Door:
    """The server's TLS door, opened by an administrator."""

    host: str
    port: int
    tls: ssl.SSLContext
    token: str

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(self.host, self.port, ssl=self.tls)

    async def send(self, data: bytes, *, end: bool = False) -> int:
        """The code that these bytes are answered by; 0 if the connection is closed instead. `end`: then nothing more
        is sent, though the server might wait."""
        reader, writer = await self.open()
        try:
            writer.write(data)
            if end:
                await writer.drain()
                writer.transport.abort()
                return 0
            async with asyncio.timeout(30):
                line = await reader.readline()
            return int(line.split()[1]) if line else 0
        except ConnectionError:
            return 0
        finally:
            writer.transport.abort()

    async def ask(self, method: str, target: str, body: bytes = b"", **headers: str) -> int:
        """The code of one request, whose target is sent as it is."""
        return await self.send(self.request(method, target, body, **headers))

    def request(self, method: str, target: str, body: bytes = b"", **headers: str) -> bytes:
        every = {"Host": "x", "Authorization": f"Bearer {self.token}", **headers}
        if "Transfer_Encoding" not in every:
            every.setdefault("Content_Length", str(len(body)))
        lines = [
            f"{method} {target} HTTP/1.1",
            *(f"{name.replace('_', '-')}: {value}" for name, value in every.items()),
        ]
        return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body

    async def serves(self) -> None:
        """Others are answered, soon."""
        async with asyncio.timeout(10):
            assert await self.ask("GET", "/api/v1/namespaces/default") == 200


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def door() -> AsyncIterator[Door]:
    async with Cluster(controllers=False, scheduler=False) as cluster:
        connection = load_kubeconfig(cluster.kubeconfig)
        where = urlsplit(connection.server)
        assert where.hostname is not None
        assert where.port is not None
        yield Door(where.hostname, where.port, connection.ssl_context(), connection.token)


async def test_no_more_errors_are_told_than_anybody_reads(door: Door) -> None:
    labels = {f"-{number}": "a" for number in range(50_000)}
    reader, writer = await door.open()
    body = configmap(metadata={"name": "a", "labels": labels})
    writer.write(door.request("POST", CONFIGMAPS, body, Content_Type="application/json", Connection="close"))
    async with asyncio.timeout(30):
        answer = await reader.read()
    writer.transport.abort()
    status = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert status["code"] == 422
    assert len(status["details"]["causes"]) == 1000


def configmap(**more: object) -> bytes:
    return json.dumps({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, **more}).encode()


def labelled(key: str, value: str) -> bytes:
    return configmap(metadata={"name": "a", "labels": {key: value}})


YAML_BOMB = b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (letter, letter, b",".join([b"*%c" % (letter - 1)] * 9)) for letter in b"bcdefghij"
)
DOUBLING = [{"op": "add", "path": "/metadata/annotations", "value": {"a": "x" * 100}}] + [
    {"op": "copy", "from": "/metadata/annotations", "path": f"/metadata/annotations/x{number}"} for number in range(40)
]

BODIES: dict[str, tuple[bytes, dict[str, str], int]] = {
    "arrays a hundred thousand deep": (b"[" * 100_000, {}, 400),
    "objects a hundred thousand deep": (b'{"a":' * 100_000, {}, 400),
    "a whole object a hundred thousand deep": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, {}, 400),
    "an unknown field a thousand deep": (configmap()[:-1] + b',"x":' + b"[" * 1000 + b"]" * 1000 + b"}", {}, 400),
    "an unknown field a hundred deep": (configmap()[:-1] + b',"x":' + b"[" * 100 + b"]" * 100 + b"}", {}, 201),
    "yaml a hundred thousand deep": (b"[" * 100_000, {"Content_Type": "application/yaml"}, 400),
    "yaml that names itself often": (YAML_BOMB, {"Content_Type": "application/yaml"}, 400),
    "no JSON": (b"{", {}, 400),
    "not a number": (b'{"a": NaN}', {}, 400),
    "an array": (b"[]", {}, 400),
    "nothing": (b"", {}, 400),
    "no UTF-8": (b"\xff\xfe\x00", {}, 400),
    "nothing in it": (b"{}", {}, 422),
    "another kind": (configmap(kind="Pod"), {}, 400),
    "a name of a megabyte": (configmap(metadata={"name": "a" * (1 << 20)}), {}, 422),
    "a label of a megabyte": (labelled("a", "x" * (1 << 20)), {}, 422),
    "a label's key of a megabyte": (labelled("x" * (1 << 20), "a"), {}, 422),
    "ten thousand bad labels": (
        configmap(metadata={"name": "a", "labels": {f"-{i}": "-" for i in range(10_000)}}),
        {},
        422,
    ),
    "annotations of a megabyte": (configmap(metadata={"name": "a", "annotations": {"a": "x" * (1 << 20)}}), {}, 422),
    "a name of another type": (configmap(metadata={"name": {"a": []}}), {}, 400),
    "a body of more than 3 MB": (configmap(data={"a": "x" * LIMIT}), {}, 413),
    "plain text": (configmap(), {"Content_Type": "text/plain"}, 415),
    "CBOR": (b"\xd9\xd9\xf7\xa0", {"Content_Type": "application/cbor"}, 415),
    "a form": (b"a=b", {"Content_Type": "application/x-www-form-urlencoded"}, 415),
    "a broken content type": (configmap(), {"Content_Type": ";;;="}, 415),
    "protobuf that is none": (b"k8s\x00\xff\xff", {"Content_Type": "application/vnd.kubernetes.protobuf"}, 400),
    "broken gzip": (gzip.compress(configmap())[:-6] + b"xxxxxx", {"Content_Encoding": "gzip"}, 400),
    "gzip that is none": (configmap(), {"Content_Encoding": "gzip"}, 201),  # of which upstream takes no notice
    "a small gzip of much": (gzip.compress(b" " * (64 << 20)), {"Content_Encoding": "gzip"}, 400),
    "chunks that are none": (b"zz\r\n", {"Transfer_Encoding": "chunked"}, 400),
    "chunks without end": (b"400000\r\n" + b"x" * 0x400000 + b"\r\n0\r\n\r\n", {"Transfer_Encoding": "chunked"}, 413),
    "a length that is none": (b"", {"Content_Length": "x"}, 400),
    "a length below nothing": (b"", {"Content_Length": "-1"}, 400),
    "two ways to say how long": (b"0\r\n\r\n", {"Transfer_Encoding": "chunked", "Content_Length": "5"}, 400),
}


@pytest.mark.parametrize(("body", "headers", "code"), BODIES.values(), ids=BODIES)
async def test_bodies(door: Door, body: bytes, headers: dict[str, str], code: int) -> None:
    assert (
        await door.ask("POST", CONFIGMAPS + "?dryRun=All", body, **{"Content_Type": "application/json", **headers})
        == code
    )
    await door.serves()


def nested(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = {"a": value}
    return value


PATCHES: dict[str, tuple[object, str, int]] = {
    "more steps than allowed": ([{"op": "add", "path": "/a", "value": 1}] * 10_001, "json-patch", 413),
    "copies that double forty times": (DOUBLING, "json-patch", 422),
    "copies of deep things into deep places": (
        [
            {"op": "add", "path": "/data", "value": nested(150)},
            {"op": "copy", "from": "/data", "path": "/data" + "/a" * 120},
        ],
        "json-patch",
        422,
    ),
    "steps that are none": ([1, 2], "json-patch", 400),
    "a step without a path": ([{"op": "add"}], "json-patch", 422),
    "an object where steps should be": ({}, "json-patch", 400),
    "a pointer that is none": ([{"op": "add", "path": "x", "value": 1}], "json-patch", 422),
    "a far index": (
        [{"op": "add", "path": "/metadata/finalizers/99999999999999999999", "value": 1}],
        "json-patch",
        422,
    ),
    "text as a merge": ("x", "merge-patch", 400),
    "a list as metadata": ({"metadata": []}, "merge-patch", 422),
    "a label of a megabyte": ({"metadata": {"labels": {"a": "x" * (1 << 20)}}}, "merge-patch", 422),
    "another name": ({"metadata": {"name": "b"}}, "merge-patch", 400),
    "an unknown type of patch": ({}, "x-patch", 415),
}


@pytest.mark.parametrize(("patch", "kind", "code"), PATCHES.values(), ids=PATCHES)
async def test_patches(door: Door, patch: object, kind: str, code: int) -> None:
    await door.ask("POST", CONFIGMAPS, configmap(metadata={"name": "patched"}), Content_Type="application/json")
    body = json.dumps(patch).encode()
    target = f"{CONFIGMAPS}/patched"
    assert await door.ask("PATCH", target, body, Content_Type=f"application/{kind}+json") == code
    await door.serves()


TARGETS = {
    "/api/v1/namespaces/../secrets": 200,  # a namespace of that name holds none
    "/api/v1/namespaces/default/configmaps/..": 404,
    "/api/v1/namespaces/default/configmaps/%2e%2e": 404,
    "/api/v1/namespaces/default/configmaps/a%2Fb": 404,
    "/api/v1/namespaces/default/configmaps/a%2F..%2F..%2Fsecrets": 404,
    "/api/v1/namespaces/default/configmaps/%00": 404,
    "/api/v1/namespaces/default/configmaps/%zz": 404,
    "/api/v1/namespaces/default/configmaps/%ff": 404,
    "/api/v1/nodes/..%2f..%2fetc%2fpasswd/proxy/": 404,
    "/../../etc/passwd": 404,
    "/api/v1/../../metrics/..": 404,
    "/openapi/v3/../v2": 404,
    "/apis/apps/v1/namespaces/default/deployments/a/b/c/d/e/f": 404,
    "/" + "a/" * 3000: 404,
    "/api/v1/namespaces/default/configmaps/" + "a" * 20_000: 404,
    "/api/v1/configmaps?labelSelector=" + "a" * 40_000: 431,
    "/api/v1/configmaps?limit=x": 400,
    "/api/v1/configmaps?limit=-1": 200,
    "/api/v1/configmaps?continue=%00": 400,
    "/api/v1/configmaps?resourceVersion=-1": 400,
    "/api/v1/configmaps?fieldSelector=a=b": 400,
    "/api/v1/configmaps?labelSelector=a%20in%20(": 400,
    "/api/v1/configmaps?" + "&".join(f"a{i}=b" for i in range(2000)): 200,
    "http://other.example.com/api/v1/namespaces/default": 200,
    "*": 400,
}


@pytest.mark.parametrize(("target", "code"), TARGETS.items(), ids=lambda value: str(value)[:60])
async def test_targets(door: Door, target: str, code: int) -> None:
    assert await door.ask("GET", target) == code
    await door.serves()


HEADS: dict[str, tuple[bytes, set[int]]] = {
    "a header of 64 kB": (b"GET /version HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 65536 + b"\r\n\r\n", {431}),
    "ten thousand headers": (
        b"GET /version HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X%d: y\r\n" % i for i in range(10_000)) + b"\r\n",
        {431},
    ),
    "a method that is none": (b"FOO /version HTTP/1.1\r\nHost: x\r\n\r\n", {405}),
    "a method with signs": (b"G@T /version HTTP/1.1\r\nHost: x\r\n\r\n", {400, 405}),
    "a version that is none": (b"GET /version HTTP/9.9\r\nHost: x\r\n\r\n", {400, 505}),
    "no HTTP": (b"\x00\x01\x02\x03\r\n\r\n", {400, 405}),
    "HTTP/2 without asking": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {0, 400, 405, 505}),
    "a header without a name": (b"GET /version HTTP/1.1\r\n: x\r\n\r\n", {400}),
    "a header with a new line": (b"GET /version HTTP/1.1\r\nA: b\rc\r\n\r\n", {400}),
    "a header folded": (b"GET /version HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n", {200, 400, 401}),
    "a token that is none": (b"GET /api HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer \xff\xfe\r\n\r\n", {401}),
    "a token of 16 kB": (b"GET /api HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + b"x" * 16384 + b"\r\n\r\n", {401}),
}


@pytest.mark.parametrize(("data", "codes"), HEADS.values(), ids=HEADS)
async def test_heads(door: Door, data: bytes, codes: set[int]) -> None:
    assert await door.send(data) in codes
    await door.serves()


async def test_bodies_that_break_off(door: Door) -> None:
    whole = door.request("POST", CONFIGMAPS, configmap(), Content_Type="application/json")
    for length in (1, 20, len(whole) - 30, len(whole) - 1):
        await door.send(whole[:length], end=True)
    await door.serves()
    assert await door.ask("GET", f"{CONFIGMAPS}/a") == 404, "what came in part was not made"


async def test_who_speaks_no_tls_is_cut(door: Door) -> None:
    reader, writer = await asyncio.open_connection(door.host, door.port)
    writer.write(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
    async with asyncio.timeout(30):
        with contextlib.suppress(ConnectionError):
            assert not (await reader.read()).startswith(b"HTTP/1.1 2")
    writer.transport.abort()
    await door.serves()


async def test_slow_clients_hold_up_nobody(door: Door) -> None:
    slow = [await door.open() for _ in range(100)]
    for _, writer in slow:
        writer.write(b"POST /api/v1/namespaces HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n")
    await door.serves()
    for _, writer in slow:
        writer.write(b"\r\n{")
    await door.serves()
    for _, writer in slow:
        writer.transport.abort()


@pytest.mark.ring3
async def test_idle_watches_hold_up_nobody(door: Door) -> None:
    watches = []
    for _ in range(10):
        opened = await asyncio.gather(*(door.open() for _ in range(20)))
        for reader, writer in opened:
            writer.write(door.request("GET", CONFIGMAPS + "?watch=1"))
            watches.append((reader, writer))
    for reader, _ in watches:
        async with asyncio.timeout(30):
            assert b" 200 " in await reader.readline()
    await door.serves()
    assert (
        await door.ask("POST", CONFIGMAPS, configmap(metadata={"name": "seen"}), Content_Type="application/json") == 201
    )
    for reader, _ in watches:
        async with asyncio.timeout(30):
            await reader.readuntil(b'"name":"seen"')
    for _, writer in watches:
        writer.transport.abort()
    await door.serves()
