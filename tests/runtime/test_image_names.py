"""Image names."""

from __future__ import annotations

import pytest

from kone.runtime.image_names import parse_reference, without_tag

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


@pytest.mark.parametrize(
    ("name", "bare"),
    [
        ("busybox", "busybox"),
        ("busybox:1.36", "busybox"),
        ("127.0.0.1:5000/a/b:1", "127.0.0.1:5000/a/b"),
        ("127.0.0.1:5000/a/b", "127.0.0.1:5000/a/b"),
        (f"quay.io/a/b:1@{DIGEST}", "quay.io/a/b"),
    ],
)
def test_a_name_without_tag_and_digest_is_as_it_was_written(name: str, bare: str) -> None:
    assert without_tag(name) == bare
