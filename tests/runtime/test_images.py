"""Image names and the credentials that fit them."""

from __future__ import annotations

import base64
import json

import pytest

from kone.runtime.image_names import credentials_for, docker_auths, parse_reference
from kone.runtime.runtime import RegistryAuth

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("busybox", "docker.io/library/busybox:latest"),
        ("busybox:1.36", "docker.io/library/busybox:1.36"),
        ("me/app", "docker.io/me/app:latest"),
        ("registry.k8s.io/pause:3.9", "registry.k8s.io/pause:3.9"),
        ("localhost/app", "localhost/app:latest"),
        ("127.0.0.1:5000/a/b:1", "127.0.0.1:5000/a/b:1"),
        (f"busybox@{DIGEST}", f"docker.io/library/busybox@{DIGEST}"),
        (f"quay.io/a/b:1@{DIGEST}", f"quay.io/a/b@{DIGEST}"),
    ],
)
def test_names_in_full(name: str, full: str) -> None:
    assert parse_reference(name).full == full


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "invalid reference format"),
        ("a//b", "invalid reference format"),
        ("a:b:c", "invalid reference format"),
        ("busybox:", "invalid reference format"),
        ("busybox:-x", "invalid reference format"),
        ("busybox@sha256:12", "invalid reference format"),
        ("Foo", "invalid reference format: repository name (library/Foo) must be lowercase"),
        ("quay.io/A/b", "invalid reference format: repository name (A/b) must be lowercase"),
    ],
)
def test_names_that_are_none(name: str, message: str) -> None:
    with pytest.raises(ValueError) as error:
        parse_reference(name)
    assert str(error.value) == message


def encoded(user: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def test_credentials_are_those_of_the_registry_most_exact_first() -> None:
    config = {
        "quay.io": encoded("all", "1"),
        "https://quay.io/team": encoded("team", "2"),
        "quay.io/other": encoded("other", "3"),
        "https://index.docker.io/v1/": {"username": "hub", "password": "4"},
    }
    assert [auth.username for auth in credentials_for(parse_reference("quay.io/team/app:1"), [config])] == [
        "team",
        "all",
    ]
    assert credentials_for(parse_reference("busybox"), [config]) == [
        RegistryAuth("hub", "4", "https://index.docker.io/v1/")
    ]
    assert credentials_for(parse_reference("gcr.io/x"), [config]) == []


def test_both_types_of_pull_secret_are_read() -> None:
    auths = {"quay.io": encoded("u", "p")}
    new = {"data": {".dockerconfigjson": base64.b64encode(json.dumps({"auths": auths}).encode()).decode()}}
    old = {"data": {".dockercfg": base64.b64encode(json.dumps(auths).encode()).decode()}}
    assert docker_auths(new) == docker_auths(old) == auths
    assert docker_auths({"data": {".dockerconfigjson": "bm90IGpzb24="}}) == {}
    assert docker_auths({}) == {}
