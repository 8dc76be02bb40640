"""The flags of the API's security through a whole server: what the files say is what it does."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from kone.apimachinery.kinds import SECRETS
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
