"""From objects to files: what a volume's sources give, and what is said when they cannot."""

from __future__ import annotations

from typing import Any

import pytest

from kone.runtime.atomic_writer import File
from kone.runtime.parts import VolumeError
from kone.runtime.volume_payloads import (
    Source,
    common_user,
    config_map_files,
    downward_files,
    nested_mount_points,
    secret_files,
    sources_of,
    token_files,
    token_request,
    trust_bundle_files,
)

CONFIG_MAP = {"data": {"a": "one", "b": "two"}, "binaryData": {"raw": "AAH/gA=="}}


def source(kind: str, spec: dict[str, Any], mode: int = 0o644) -> Source:
    return Source(kind, spec.get("name", ""), spec, mode)


def test_without_items_every_key_is_a_file() -> None:
    assert config_map_files(source("configMap", {"name": "c"}), CONFIG_MAP) == {
        "a": File(b"one", 0o644),
        "b": File(b"two", 0o644),
        "raw": File(b"\x00\x01\xff\x80", 0o644),
    }


def test_items_choose_keys_paths_and_modes() -> None:
    items = [{"key": "a", "path": "sub/x", "mode": 0o400}, {"key": "b", "path": "y"}]
    assert config_map_files(source("configMap", {"name": "c", "items": items}, 0o600), CONFIG_MAP) == {
        "sub/x": File(b"one", 0o400),
        "y": File(b"two", 0o600),
    }


@pytest.mark.parametrize(
    ("kind", "spec", "found", "text"),
    [
        ("configMap", {"name": "c"}, None, 'configmap "c" not found'),
        ("secret", {"name": "s"}, None, 'secret "s" not found'),
        (
            "configMap",
            {"name": "c", "items": [{"key": "z", "path": "z"}]},
            CONFIG_MAP,
            "^configmap references non-existent config key: z$",
        ),
        (
            "secret",
            {"name": "s", "items": [{"key": "z", "path": "z"}]},
            {"data": {}},
            "^references non-existent secret key: z$",
        ),
    ],
)
def test_what_is_missing_is_said_unless_optional(kind: str, spec: dict[str, Any], found: Any, text: str) -> None:
    files = config_map_files if kind == "configMap" else secret_files
    with pytest.raises(VolumeError, match=text):
        files(source(kind, spec), found)
    assert files(source(kind, {**spec, "optional": True}), found) == {}


def test_a_projected_volume_is_the_list_of_its_sources() -> None:
    volume = {
        "name": "v",
        "projected": {
            "defaultMode": 0o440,
            "sources": [
                {"configMap": {"name": "c"}},
                {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
                {"downwardAPI": {"items": []}},
            ],
        },
    }
    found = sources_of(volume)
    assert found is not None
    assert [(s.kind, s.name, s.default_mode) for s in found] == [
        ("configMap", "c", 0o440),
        ("serviceAccountToken", "", 0o440),
        ("downwardAPI", "", 0o440),
    ]
    assert sources_of({"name": "e", "emptyDir": {}}) is None


def test_downward_files_hold_what_the_reference_gives() -> None:
    items = [{"path": "n", "fieldRef": {"fieldPath": "metadata.name"}}]
    found = downward_files(source("downwardAPI", {"items": items}), {"metadata": {"name": "p"}}, lambda pod, item: "p")
    assert found == {"n": File(b"p", 0o644)}


POD: dict[str, Any] = {"metadata": {"name": "p", "uid": "u"}, "spec": {"containers": [{"name": "c"}]}}


def test_a_token_is_bound_to_its_pod_and_meant_for_its_audience() -> None:
    asked = token_request(source("serviceAccountToken", {"path": "t", "audience": "vault"}), POD)
    assert asked["spec"] == {
        "expirationSeconds": 3600,
        "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u"},
        "audiences": ["vault"],
    }


@pytest.mark.parametrize(
    ("security", "expected"),
    [
        ({}, File(b"t", 0o644, None)),
        ({"runAsUser": 1000}, File(b"t", 0o600, 1000)),
        ({"fsGroup": 55}, File(b"t", 0o600, None)),
    ],
)
def test_only_its_reader_may_read_a_token(security: dict[str, int], expected: File) -> None:
    pod = {**POD, "spec": {**POD["spec"], "securityContext": security}}
    assert token_files(source("serviceAccountToken", {"path": "t"}), "t", pod) == {"t": expected}


def test_containers_that_differ_in_user_have_none_in_common() -> None:
    one = {"name": "a", "securityContext": {"runAsUser": 1}}
    assert common_user({"spec": {"containers": [one]}}) == 1
    assert common_user({"spec": {"containers": [one, {"name": "b"}]}}) is None
    assert common_user({"spec": {"securityContext": {"runAsUser": 1}, "containers": [one, {"name": "b"}]}}) == 1


def test_every_downward_item_that_fails_is_named_once() -> None:
    def refuse(pod: Any, item: Any) -> str:
        raise ValueError(item["text"])

    items = [{"path": "a", "text": "one"}, {"path": "b", "text": "two"}, {"path": "c", "text": "two"}]
    with pytest.raises(VolumeError, match=r"^\[one, two\]$"):
        downward_files(source("downwardAPI", {"items": items}), POD, refuse)


def certificate(body: str) -> str:
    return f"-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n"


def bundle(name: str, signer: str, *bodies: str, **labels: str) -> dict[str, Any]:
    text = "# comment\n" + "\n".join(map(certificate, bodies))
    return {"metadata": {"name": name, "labels": labels}, "spec": {"signerName": signer, "trustBundle": text}}


BUNDLES = [bundle("a", "x/s", "AAAA", "BBBB", tier="one"), bundle("b", "x/s", "BBBB"), bundle("c", "", "CCCC")]


@pytest.mark.parametrize(
    ("spec", "bodies"),
    [
        ({"name": "c"}, ["CCCC"]),
        ({"signerName": "x/s", "labelSelector": {}}, ["AAAA", "BBBB"]),
        ({"signerName": "x/s", "labelSelector": {"matchLabels": {"tier": "one"}}}, ["AAAA", "BBBB"]),
        ({"name": "none", "optional": True}, []),
        ({"signerName": "x/s", "optional": True}, []),
    ],
    ids=[
        "by name",
        "by signer, each once",
        "by labels",
        "none is enough where optional",
        "no selector selects nothing",
    ],
)
def test_trust_bundles(spec: dict[str, Any], bodies: list[str]) -> None:
    found = trust_bundle_files(source("clusterTrustBundle", {"path": "ca.pem", **spec}), BUNDLES, POD)
    assert found == {"ca.pem": File("".join(map(certificate, bodies)).encode(), 0o644)}


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (
            {"name": "none"},
            'while getting ClusterTrustBundle: clustertrustbundle.certificates.k8s.io "none" not found',
        ),
        (
            {"signerName": "x/s"},
            "combination of signerName and labelSelector matched zero ClusterTrustBundles",
        ),
        ({}, "ClusterTrustBundle projection requires either name or signerName to be set"),
    ],
)
def test_trust_bundles_that_are_missing(spec: dict[str, Any], text: str) -> None:
    with pytest.raises(VolumeError) as caught:
        trust_bundle_files(source("clusterTrustBundle", {"path": "ca.pem", **spec}), BUNDLES, POD)
    assert str(caught.value) == text


def mounting(**paths: str) -> dict[str, Any]:
    mounts = [{"name": name.rstrip("_"), "mountPath": path} for name, path in paths.items()]
    return {"spec": {"containers": [{"name": "c", "volumeMounts": mounts}]}}


@pytest.mark.parametrize(
    ("pod", "inside"),
    [
        (mounting(v="/dir", a="/dir/in", b="/dir/in/deep"), ["in"]),
        (mounting(v="/dir", a="/dir/in", b="/dir/in-vol", c="/dir/in2"), ["in", "in-vol", "in2"]),
        (mounting(v="/dir", a="/dir/one/two"), ["one/two"]),
        (mounting(v="/dir", a="/directory"), []),
        (mounting(v="/dir/v", a="/dir"), []),
        (mounting(v="/", a="/a/"), ["a"]),
    ],
    ids=["only the outermost", "siblings of like names", "deep", "not a prefix", "we are inside", "the root"],
)
def test_mount_points_inside_a_volume(pod: dict[str, Any], inside: list[str]) -> None:
    assert nested_mount_points(pod, "v") == inside
