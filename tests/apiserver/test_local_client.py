"""The client without HTTP: what contracts/test_client.py does not say of every client."""

from __future__ import annotations

import pytest

from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import CONFIGMAPS, GVR, PODS
from kone.apimachinery.objects import Object, name_of
from tests.apiserver.conftest import Full


async def test_a_write_is_in_the_informer_when_it_returns(full: Full) -> None:
    informer = full.client.informer(CONFIGMAPS)
    await full.client.create(CONFIGMAPS, {"metadata": {"name": "a"}}, namespace="ns")
    assert informer.synced
    assert [name_of(obj) for obj in informer.list("ns")] == ["a"]
    await full.client.delete(CONFIGMAPS, "a", namespace="ns")
    assert informer.get("ns", "a") is None


async def test_an_informer_of_some_fields_sees_objects_come_and_go(full: Full) -> None:
    told: list[tuple[str, str]] = []

    def note(kind: str, obj: Object, previous: Object | None) -> None:
        told.append((kind, name_of(obj)))

    informer = full.client.informer(PODS, fields="spec.nodeName=n1")
    end = informer.subscribe(note)
    await full.pod("elsewhere", node="n2")
    await full.pod("here", node="n1", status={"phase": "Running"})
    await full.client.delete(PODS, "here", namespace="ns", grace_s=0)
    end()
    await full.pod("later", node="n1")
    assert told == [("ADDED", "here"), ("MODIFIED", "here"), ("MODIFIED", "here"), ("DELETED", "here")]
    assert [name_of(obj) for obj in informer.list()] == ["later"]


async def test_a_handler_that_fails_fails_alone(full: Full, caplog: pytest.LogCaptureFixture) -> None:
    def broken(kind: str, obj: Object, previous: Object | None) -> None:
        raise RuntimeError("broken")

    full.client.informer(CONFIGMAPS).subscribe(broken)
    await full.client.create(CONFIGMAPS, {"metadata": {"name": "a"}}, namespace="ns")
    assert full.find(CONFIGMAPS, "a") is not None
    assert "a handler of ConfigMap failed at ADDED of ns/a" in caplog.text


async def test_what_is_not_there(full: Full) -> None:
    with pytest.raises(StatusError, match="could not find the requested resource"):
        await full.client.list(GVR("example.com", "v1", "nothings"))
    with pytest.raises(StatusError, match="could not find the requested resource"):
        await full.client.get(CONFIGMAPS, "a", "ns", subresource="status")
