"""The flags of the API's security through a whole server: what the files say is what it does."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path

import pytest

from kone.apimachinery.kinds import SECRETS, TOKENREVIEWS
from kone.apimachinery.objects import Object, dig, name_of
from kone.client.client import EventType
from kone.config import ConfigError
from kone.testing import Cluster


def encryption(*providers: tuple[str, str, int]) -> str:
    """(provider, key's name, the byte that its key repeats)…"""
    made = [
        {kind: {"keys": [{"name": name, "secret": base64.b64encode(bytes([byte]) * 32).decode()}]}}
        for kind, name, byte in providers
    ]
    rule = {"resources": ["secrets"], "providers": [*made, {"identity": {}}]}
    kind = {"kind": "EncryptionConfiguration", "apiVersion": "apiserver.config.k8s.io/v1"}
    return json.dumps({**kind, "resources": [rule]})


async def test_no_secret_is_plain_on_disk_and_keys_rotate_while_it_runs(tmp_path: Path) -> None:
    config, data = tmp_path / "encryption.yaml", tmp_path / "data"
    config.write_text(encryption(("aesgcm", "one", 1)))

    def stored() -> bytes:
        return b"".join(file.read_bytes() for file in data.glob("kone.db*"))

    settings = {"datastore": f"sqlite:///{data / 'kone.db'}", "encryption_provider_config": str(config)}
    async with Cluster(controllers=False, scheduler=False, **settings) as cluster:
        made = {"metadata": {"name": "s"}, "stringData": {"k": "needle"}}
        await cluster.client.create(SECRETS, made, namespace="default")
        assert b"k8s:enc:aesgcm:v1:one:" in stored()
        config.write_text(encryption(("aescbc", "two", 2), ("aesgcm", "one", 1)))
        await cluster.node.reload_files()
        assert b"k8s:enc:aescbc:v1:two:" in stored()
        assert b"k8s:enc:aesgcm:v1:one:" not in stored()
        config.write_text("kind: Nonsense")
        await cluster.node.reload_files()  # changes nothing
        await cluster.client.patch(SECRETS, "s", {"data": {"k2": "bmVlZGxl"}}, namespace="default")
        assert b"bmVlZGxl" not in stored()
        assert b"needle" not in stored()
    config.write_text(encryption(("aescbc", "two", 2)))
    async with Cluster(controllers=False, scheduler=False, **settings) as cluster:
        found = await cluster.client.get(SECRETS, "s", "default")
        assert found["data"] == {"k": "bmVlZGxl", "k2": "bmVlZGxl"}


async def test_a_file_that_cannot_be_is_named_at_the_start(tmp_path: Path) -> None:
    config = tmp_path / "encryption.yaml"
    config.write_text("kind: Nonsense")
    with pytest.raises(ConfigError, match=f"--encryption-provider-config {config}: unsupported kind"):
        async with Cluster(encryption_provider_config=str(config)):
            raise AssertionError("it started")


async def test_tokens_of_a_file_and_of_secrets_stand_for_users(tmp_path: Path) -> None:
    listed = tmp_path / "tokens.csv"
    listed.write_text('abc,ann,1,"devs"\n')
    async with Cluster(scheduler=False, token_auth_file=str(listed)) as cluster:

        async def who(token: str) -> str:
            review = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}}
            answer = await cluster.client.create(TOKENREVIEWS, review)
            return str(dig(answer, "status", "user", "username", default=""))

        assert await who("abc") == "ann"
        data = {"token-id": "07401b", "token-secret": "f395accd246ae52d", "usage-bootstrap-authentication": "true"}
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "bootstrap-token-07401b"},
            "type": "bootstrap.kubernetes.io/token",
            "stringData": data,
        }
        assert await who("07401b.f395accd246ae52d") == ""
        await cluster.client.create(SECRETS, secret, namespace="kube-system")
        assert await who("07401b.f395accd246ae52d") == "system:bootstrap:07401b"
        gone = asyncio.Event()

        def seen(event: EventType, secret: Object, previous: Object | None) -> None:
            if event == "DELETED" and name_of(secret) == "bootstrap-token-07401b":
                gone.set()

        cluster.client.informer(SECRETS).subscribe(seen)
        expired = {"stringData": {"expiration": "2000-01-01T00:00:00Z"}}
        await cluster.client.patch(SECRETS, "bootstrap-token-07401b", expired, namespace="kube-system")
        assert await who("07401b.f395accd246ae52d") == ""
        await asyncio.wait_for(gone.wait(), 30)


async def test_a_token_file_that_cannot_be_is_named_at_the_start(tmp_path: Path) -> None:
    listed = tmp_path / "tokens.csv"
    listed.write_text("abc,ann\n")
    with pytest.raises(ConfigError, match=f"--token-auth-file {listed}: must have at least 3 columns"):
        async with Cluster(token_auth_file=str(listed)):
            raise AssertionError("it started")
