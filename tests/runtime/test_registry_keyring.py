"""Which credentials are tried for an image, and in which order."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from kone.runtime.registry_keyring import Credential, Keyring, Source, of_secrets, secret_auths, urls_match
from kone.runtime.runtime import RegistryAuth


def encoded(user: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def users(auths: dict[str, Any], repository: str) -> list[str]:
    keyring = Keyring()
    keyring.add(auths)
    return [credential.auth.username for credential in keyring.lookup(repository)]


@pytest.mark.parametrize(
    ("pattern", "target", "covers"),
    [
        ("*.docker.io", "blah.docker.io", True),
        ("*.docker.io", "not.right.io", False),
        ("*.docker.io", "a.b.docker.io", False),
        ("*.*.docker.io", "a.b.docker.io", True),
        ("prefix*.io", "prefix-x.io", True),
        ("*.kubernetes.io:5000", "x.kubernetes.io:5000/app", True),
        ("*.kubernetes.io", "x.kubernetes.io:5000/app", False),
        ("*.kubernetes.io:5000", "x.kubernetes.io:5001/app", False),
        ("quay.io/team", "quay.io/team/app", True),
        ("quay.io/team", "quay.io/teamwork", True),
        ("quay.io/team", "quay.io/other/app", False),
        ("quay.io", "quay.io/app", True),
        ("127.0.0.1:5000", "127.0.0.1:5000/app", True),
        ("[::1]:5000", "[::1]:5000/app", True),
        ("[::1", "quay.io", False),
    ],
)
def test_an_address_covers_images_by_port_labels_and_the_paths_beginning(
    pattern: str, target: str, covers: bool
) -> None:
    assert urls_match(pattern, target) is covers


def test_the_most_exact_address_comes_first() -> None:
    auths = {"quay.io": encoded("all", "1"), "https://quay.io/team": encoded("team", "2"), "q.io": encoded("q", "3")}
    assert users(auths, "quay.io/team/app") == ["team", "all"]
    assert users(auths, "quay.io/app") == ["all"]
    assert users(auths, "gcr.io/x") == []


def test_several_of_one_address_are_all_tried_so_that_passwords_can_be_rotated() -> None:
    keyring = Keyring()
    keyring.add({"quay.io": encoded("u", "old")})
    keyring.add({"https://quay.io/v2/": encoded("u", "new")})
    assert [found.auth.password for found in keyring.lookup("quay.io/app")] == ["old", "new"]


def test_docker_hub_is_known_by_its_old_address() -> None:
    auths = {"https://index.docker.io/v1/": {"username": "hub", "password": "4"}}
    assert users(auths, "docker.io/library/busybox") == ["hub"]
    assert users(auths, "quay.io/app") == []


@pytest.mark.parametrize("entry", [{"auth": "no base64!"}, {"auth": base64.b64encode(b"nobody").decode()}, "text"])
def test_an_entry_that_cannot_be_read_is_left_out(entry: Any) -> None:
    assert users({"quay.io": entry}, "quay.io/app") == []


def secret(kind: str, content: Any, **data: str) -> dict[str, Any]:
    key = ".dockerconfigjson" if kind.endswith("json") else ".dockercfg"
    return {
        "metadata": {"name": "s", "namespace": "default", "uid": "u1"},
        "type": f"kubernetes.io/{kind}",
        "data": {key: base64.b64encode(json.dumps(content).encode()).decode(), **data},
    }


def test_both_types_of_pull_secret_are_read_and_say_where_they_are_from() -> None:
    auths = {"quay.io": encoded("u", "p")}
    for one in (secret("dockerconfigjson", {"auths": auths}), secret("dockercfg", auths)):
        assert of_secrets([one]).lookup("quay.io/app") == [
            Credential(RegistryAuth("u", "p", "quay.io"), Source("Secret", "u1", "default", "s"))
        ]


def test_a_secret_of_another_type_is_none_whatever_it_holds() -> None:
    assert secret_auths({**secret("dockercfg", {"quay.io": encoded("u", "p")}), "type": "Opaque"}) == {}
    assert secret_auths(secret("dockerconfigjson", "text")) == {}
    assert secret_auths({}) == {}


def test_the_same_user_and_password_have_the_same_digest_wherever_they_are_from() -> None:
    one, other = RegistryAuth("u", "p", "a"), RegistryAuth("u", "p", "b")
    assert Credential(one).digest == Credential(other, Source("Secret", "1", "n", "s")).digest
    assert Credential(one).digest != Credential(RegistryAuth("u", "q", "a")).digest
