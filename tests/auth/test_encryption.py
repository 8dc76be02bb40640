"""EncryptionConfiguration: which key seals what, which may open it, and what cannot be in the file."""

from __future__ import annotations

import base64
import json

import pytest

from kone.apimachinery.config_files import ConfigFileError
from kone.apimachinery.objects import Object
from kone.auth.encryption import Encryption, parse_encryption
from kone.store.sealing import SealError
from kone.store.store import key_for

SECRET = key_for("", "secrets", "ns", "a")
OTHER = key_for("", "secrets", "ns", "b")
VALUE = b'{"kind":"Secret","data":{"k":"cGxhaW4="}}'


def key(name: str, length: int = 32, byte: int = 7) -> Object:
    return {"name": name, "secret": base64.b64encode(bytes([byte]) * length).decode()}


def provider(kind: str, *keys: Object) -> Object:
    return {kind: {"keys": list(keys)}} if keys else {kind: {}}


def config(*providers: Object, resources: tuple[str, ...] = ("secrets",)) -> str:
    return entries({"resources": list(resources), "providers": list(providers)})


def entries(*found: Object) -> str:
    kind = {"kind": "EncryptionConfiguration", "apiVersion": "apiserver.config.k8s.io/v1"}
    return json.dumps({**kind, "resources": list(found)})


def of(*providers: Object) -> Encryption:
    return parse_encryption(config(*providers))


@pytest.mark.parametrize("kind", ["aesgcm", "aescbc", "secretbox"])
@pytest.mark.parametrize("value", [VALUE, b"", b"x" * 16, b"x" * 10_000])
def test_what_is_sealed_says_by_whom_and_can_be_opened(kind: str, value: bytes) -> None:
    encryption = of(provider(kind, key("first")), provider("identity"))
    sealed = encryption.seal(SECRET, value)
    assert sealed.startswith(f"k8s:enc:{kind}:v1:first:".encode())
    assert value[:20] not in sealed or not value
    assert encryption.seal(SECRET, value) != sealed  # never twice the same
    assert encryption.unseal(SECRET, sealed) == (value, False)
    with pytest.raises(SealError):
        of(provider(kind, key("first", byte=8))).unseal(SECRET, sealed)
    with pytest.raises(SealError, match="no matching prefix found"):
        of(provider(kind, key("second"))).unseal(SECRET, sealed)


@pytest.mark.parametrize("kind", ["aesgcm", "secretbox"])
def test_a_changed_value_is_not_taken(kind: str) -> None:
    encryption = of(provider(kind, key("a")))
    sealed = bytearray(encryption.seal(SECRET, VALUE))
    sealed[-1] ^= 1
    with pytest.raises(SealError):
        encryption.unseal(SECRET, bytes(sealed))


def test_a_value_cannot_be_moved_to_another_object() -> None:
    encryption = of(provider("aesgcm", key("a")))
    with pytest.raises(SealError, match="message authentication failed"):
        encryption.unseal(OTHER, encryption.seal(SECRET, VALUE))


def test_what_another_key_or_provider_sealed_is_stale() -> None:
    old = of(provider("aescbc", key("one"))).seal(SECRET, VALUE)
    rotated = of(provider("aesgcm", key("two", byte=8)), provider("aescbc", key("one")), provider("identity"))
    assert rotated.unseal(SECRET, old) == (VALUE, True)
    assert rotated.unseal(SECRET, VALUE) == (VALUE, True)
    within = of(provider("aesgcm", key("two", byte=8), key("one")))
    assert within.unseal(SECRET, of(provider("aesgcm", key("one"))).seal(SECRET, VALUE)) == (VALUE, True)


def test_identity_first_stores_as_it_is_and_does_not_read_what_is_encrypted() -> None:
    identity = of(provider("identity"))
    assert identity.seal(SECRET, VALUE) is VALUE
    assert identity.unseal(SECRET, VALUE) == (VALUE, False)
    with pytest.raises(SealError, match="identity transformer tried to read encrypted data"):
        identity.unseal(SECRET, of(provider("aesgcm", key("a"))).seal(SECRET, VALUE))


@pytest.mark.parametrize(
    ("names", "group", "resource", "sealed"),
    [
        (("secrets",), "", "secrets", True),
        (("secrets",), "", "configmaps", False),
        (("secrets",), "example.com", "secrets", False),
        (("deployments.apps",), "apps", "deployments", True),
        (("*.apps",), "apps", "deployments", True),
        (("*.apps",), "", "secrets", False),
        (("*.",), "", "secrets", True),
        (("*.",), "apps", "deployments", False),
        (("*.*",), "apps", "deployments", True),
        (("*.*",), "", "events", True),
        (("widgets.example.com",), "example.com", "widgets", True),
    ],
)
def test_which_resources_an_entry_means(names: tuple[str, ...], group: str, resource: str, sealed: bool) -> None:
    encryption = parse_encryption(config(provider("aesgcm", key("a")), resources=names))
    stored = encryption.seal(key_for(group, resource, "ns", "x"), VALUE)
    assert (stored != VALUE) is sealed


def test_the_first_entry_that_means_a_resource_counts() -> None:
    text = entries(
        {"resources": ["events"], "providers": [provider("identity")]},
        {"resources": ["*.*"], "providers": [provider("aesgcm", key("a"))]},
    )
    assert parse_encryption(text).seal(key_for("", "events", "ns", "x"), VALUE) == VALUE


GCM = provider("aesgcm", key("a"))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (entries(), "resources: Required value: at least one resources is required"),
        (
            entries({"resources": [], "providers": [GCM]}),
            "resources[0].resources: Required value: at least one resources[0].resources is required",
        ),
        (
            config(),
            "resources[0].providers: Required value: at least one resources[0].providers is required",
        ),
        (
            config(provider("aesgcm", key("a", 8))),
            'resources[0].providers[0].aesgcm.keys[0].secret: Invalid value: "REDACTED": secret is not of the '
            "expected length, got 8, expected one of [16 24 32]",
        ),
        (
            config(provider("secretbox", key("a", 16))),
            'resources[0].providers[0].secretbox.keys[0].secret: Invalid value: "REDACTED": secret is not of the '
            "expected length, got 16, expected one of [32]",
        ),
        (
            config(provider("aesgcm", {"name": "a", "secret": "§"})),
            'resources[0].providers[0].aesgcm.keys[0].secret: Invalid value: "REDACTED": secrets must be base64 '
            "encoded",
        ),
        (
            config(provider("aescbc", {"secret": key("a")["secret"]})),
            "resources[0].providers[0].aescbc.keys[0].name: Required value: name is a mandatory field for a key",
        ),
        (
            config(provider("aescbc")),
            "resources[0].providers[0].aescbc.keys: Required value: at least one keys is required",
        ),
        (
            config(GCM, resources=("secrets", "*.")),
            'resources[0].resources: Invalid value: ["secrets","*."]: using overlapping resources such as '
            "'secrets' and '*.' in the same resource list is not allowed as they will be masked",
        ),
        (
            config(GCM, resources=("secrets", "secrets")),
            'resources[0].resources: Invalid value: ["secrets","secrets"]: the same resource cannot be specified '
            "multiple times",
        ),
        (
            config(GCM, resources=("*",)),
            "resources[0].resources[0]: Invalid value: \"*\": use '*.' to encrypt all the resources from core API "
            "group or *.* to encrypt all resources",
        ),
        (
            config(GCM, resources=("Secrets",)),
            'resources[0].resources[0]: Invalid value: "Secrets": resource name should not contain capital letters',
        ),
        (
            config(GCM, resources=("secrets.*",)),
            'resources[0].resources[0]: Invalid value: "secrets.*": encrypting the same resource across groups is not '
            "supported",
        ),
        (config({"kms": {"name": "k"}}), "kms providers are not supported: give aesgcm, aescbc or secretbox"),
        (config({"rot13": {}}), 'strict decoding error: unknown field "resources[0].providers[0].rot13"'),
    ],
)
def test_a_wrong_file_is_refused(text: str, why: str) -> None:
    with pytest.raises(ConfigFileError) as caught:
        parse_encryption(text)
    assert str(caught.value) == why


def test_two_providers_in_one_element_are_refused_without_their_keys() -> None:
    with pytest.raises(ConfigFileError, match="more than one provider specified in a single element") as caught:
        parse_encryption(config({**GCM, "identity": {}}))
    assert key("a")["secret"] not in str(caught.value)
