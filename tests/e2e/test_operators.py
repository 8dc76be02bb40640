"""An operator made with controller-runtime, unchanged against a Cluster: the program that KONE_TEST_OPERATOR names,
built from tests/e2e/operator (CI builds none: that takes minutes).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime
import ipaddress
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import CONFIGMAPS, CUSTOMRESOURCEDEFINITIONS, GVR, LEASES
from kone.apimachinery.objects import Object
from kone.testing import Cluster

OPERATOR = os.environ.get("KONE_TEST_OPERATOR", "")
pytestmark = [pytest.mark.ring4, pytest.mark.skipif(not OPERATOR, reason="KONE_TEST_OPERATOR names no program")]

GREETINGS = GVR("operator.kone.dev", "v1", "greetings")
WEBHOOKS = "admissionregistration.k8s.io", "v1"
OPEN: Object = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
DEFINITION: Object = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "greetings.operator.kone.dev"},
    "spec": {
        "group": "operator.kone.dev",
        "scope": "Namespaced",
        "names": {"plural": "greetings", "singular": "greeting", "kind": "Greeting", "listKind": "GreetingList"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": OPEN, "status": OPEN}}},
            }
        ],
    },
}


def certificate(folder: Path) -> str:
    """A certificate for 127.0.0.1 where controller-runtime looks for it; its own bundle, in base64."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "webhooks")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, SHA256())
    )
    (folder / "tls.crt").write_bytes(made.public_bytes(Encoding.PEM))
    (folder / "tls.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return base64.b64encode(made.public_bytes(Encoding.PEM)).decode()


def webhook(kind: str, path: str, port: int, bundle: str) -> Object:
    rule = {
        "apiGroups": ["operator.kone.dev"],
        "apiVersions": ["v1"],
        "operations": ["CREATE", "UPDATE"],
        "resources": ["greetings"],
    }
    hook = {
        "name": "greetings.operator.kone.dev",
        "clientConfig": {"url": f"https://127.0.0.1:{port}{path}", "caBundle": bundle},
        "rules": [rule],
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
        "timeoutSeconds": 30,
    }
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": f"{kind}WebhookConfiguration",
        "metadata": {"name": "greetings"},
        "webhooks": [hook],
    }


@contextlib.asynccontextmanager
async def operator(cluster: Cluster, folder: Path, port: int) -> AsyncIterator[asyncio.subprocess.Process]:
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        process = await asyncio.create_subprocess_exec(
            *(OPERATOR, "default", str(folder), str(port)),
            env={**os.environ, "KUBECONFIG": str(cluster.kubeconfig)},
            stderr=log,
        )
    finally:
        os.close(log)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def eventually(look: Any) -> Any:
    """The first true value of `await look()` in 60 s; a StatusError counts as none yet."""
    for _ in range(1200):
        with contextlib.suppress(StatusError):
            if found := await look():
                return found
        await asyncio.sleep(0.05)
    raise AssertionError("not within 60 s")


def greeting(name: str, **spec: Any) -> Object:
    made = {"apiVersion": GREETINGS.api_version, "kind": "Greeting", "metadata": {"name": name}, "spec": spec}
    return {**made, "metadata": {"name": name}}


async def test_an_operator_does_its_work(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    bundle = certificate(tmp_path)
    async with Cluster(scheduler=False) as cluster:
        client = cluster.client
        await client.create(CUSTOMRESOURCEDEFINITIONS, DEFINITION)
        mutating = GVR(*WEBHOOKS, "mutatingwebhookconfigurations")
        validating = GVR(*WEBHOOKS, "validatingwebhookconfigurations")
        await client.create(mutating, webhook("Mutating", "/mutate-operator-kone-dev-v1-greeting", port, bundle))
        await client.create(validating, webhook("Validating", "/validate-operator-kone-dev-v1-greeting", port, bundle))

        async with operator(cluster, tmp_path, port):
            made = await eventually(lambda: client.create(GREETINGS, greeting("a", loud=True), namespace="default"))
            assert made["spec"] == {"loud": True, "text": "hello"}, "the mutating webhook"
            with pytest.raises(StatusError) as refused:
                await client.create(GREETINGS, greeting("b", text="hello!"), namespace="default")
            assert "greetings are quiet" in refused.value.message

            async def said(name: str, what: str) -> bool:
                return bool((await client.get(GREETINGS, name, "default"))["status"]["said"] == what)

            await eventually(lambda: _has_status(client, "a"))
            assert await said("a", "HELLO")
            child = await client.get(CONFIGMAPS, "a", "default")
            (entry,) = child["metadata"]["managedFields"]
            assert (entry["manager"], entry["operation"]) == ("greeting-operator", "Apply")

            await client.patch(CONFIGMAPS, "a", {"data": {"said": "else"}}, namespace="default")
            await eventually(lambda: _data(client, "a", "HELLO"))
            lease = await client.get(LEASES, "greeting-operator", "default")
            assert lease["spec"]["holderIdentity"]

            await client.delete(GREETINGS, "a", namespace="default")
            await eventually(lambda: _data(client, "farewells", None))
            assert (await client.get(CONFIGMAPS, "farewells", "default"))["data"] == {"a": "bye"}

        lease = await client.get(LEASES, "greeting-operator", "default")
        assert not lease["spec"].get("holderIdentity"), "the leader released its lease"
        log = (tmp_path / "log").read_text()
        assert "panic" not in log
        assert '"level":"error"' not in log


async def _has_status(client: Any, name: str) -> bool:
    return bool(((await client.get(GREETINGS, name, "default")).get("status") or {}).get("said"))


async def _data(client: Any, name: str, said: str | None) -> bool:
    found = await client.get(CONFIGMAPS, name, "default")
    return said is None or bool(found["data"].get("said") == said)
