"""The write path: what a create, an update, a patch and a delete do to what is stored, and what they answer."""

from __future__ import annotations

import asyncio

import pytest

from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import CONFIGMAPS, DEPLOYMENTS, LEASES, NAMESPACES, PODS
from kone.apimachinery.objects import Object, deep_copy
from kone.apimachinery.patch import Patch
from kone.apiserver.context import DeleteOptions
from kone.apiserver.options import ListOptions
from tests.apiserver.conftest import Small

UID = "11111111-1111-1111-1111-111111111111"


async def refused(awaitable: object) -> StatusError:
    with pytest.raises(StatusError) as caught:
        await awaitable  # type: ignore[misc]
    return caught.value


async def test_a_created_object_gets_its_identity_and_is_seen_before_the_answer(small: Small) -> None:
    made = await small.make(CONFIGMAPS, metadata={"uid": UID, "creationTimestamp": "2001-01-01T00:00:00Z"})
    assert made["metadata"]["uid"] != UID
    assert made["metadata"]["creationTimestamp"] == "2023-11-14T22:13:20Z"
    assert list(made)[:3] == ["kind", "apiVersion", "metadata"]
    assert small.get(CONFIGMAPS) == made


async def test_a_name_is_taken_once(small: Small) -> None:
    await small.make(CONFIGMAPS)
    error = await refused(small.make(CONFIGMAPS))
    assert (error.code, error.message) == (409, 'configmaps "a" already exists')


async def test_a_name_of_an_object_that_goes_is_still_taken(small: Small) -> None:
    await small.make(CONFIGMAPS, metadata={"finalizers": ["example.com/f"]})
    await small.verbs.delete(small.ctx(), small.resource(CONFIGMAPS), "a", namespace="ns")
    error = await refused(small.make(CONFIGMAPS))
    assert error.message == 'object is being deleted: configmaps "a" already exists'


async def test_a_generated_name_keeps_its_prefix(small: Small) -> None:
    answer = await small.verbs.create(
        small.ctx(), small.resource(CONFIGMAPS), {"metadata": {"generateName": "g-"}}, namespace="ns"
    )
    name = answer.obj["metadata"]["name"]
    assert name.startswith("g-")
    assert len(name) == 7


@pytest.mark.parametrize(
    ("version", "message"),
    [("12", "resourceVersion should not be set on objects to be created"), ("0", ""), ("abc", "")],
)
async def test_a_resource_version_on_create(small: Small, version: str, message: str) -> None:
    creating = small.make(CONFIGMAPS, metadata={"resourceVersion": version})
    if message:
        error = await refused(creating)
        assert (error.code, error.reason, error.message) == (500, "", message)
    else:
        assert (await creating)["metadata"]["resourceVersion"] != version


async def test_a_dry_run_stores_nothing_but_answers_as_if(small: Small) -> None:
    answer = await small.verbs.create(
        small.ctx(dry_run=True), small.resource(CONFIGMAPS), {"metadata": {"name": "a"}}, namespace="ns"
    )
    assert "resourceVersion" not in answer.obj["metadata"]
    assert answer.obj["metadata"]["uid"]
    assert small.get(CONFIGMAPS) is None


@pytest.mark.parametrize("version", ["", "0", "live"])
async def test_an_update_without_or_with_the_newest_version(small: Small, version: str) -> None:
    made = await small.make(CONFIGMAPS, data={"k": "1"})
    wanted = made["metadata"]["resourceVersion"] if version == "live" else version
    obj = {"metadata": {"name": "a", "resourceVersion": wanted}, "data": {"k": "2"}}
    answer = await small.verbs.update(small.ctx(), small.resource(CONFIGMAPS), "a", obj, namespace="ns")
    assert answer.obj["data"] == {"k": "2"}
    assert answer.obj["metadata"]["uid"] == made["metadata"]["uid"]


@pytest.mark.parametrize(("version", "code"), [("1", 409), ("999999", 409), ("abc", 500), ("-1", 500)])
async def test_an_update_of_another_version_is_refused(small: Small, version: str, code: int) -> None:
    await small.make(CONFIGMAPS)
    obj = {"metadata": {"name": "a", "resourceVersion": version}, "data": {"k": "2"}}
    error = await refused(small.verbs.update(small.ctx(), small.resource(CONFIGMAPS), "a", obj, namespace="ns"))
    assert error.code == code


async def test_a_kind_that_must_not_be_overwritten_blindly_wants_a_version(small: Small) -> None:
    await small.make(LEASES, spec={"holderIdentity": "one"})
    obj = {"metadata": {"name": "a"}, "spec": {"holderIdentity": "me"}}
    error = await refused(small.verbs.update(small.ctx(), small.resource(LEASES), "a", obj, namespace="ns"))
    assert error.message == (
        'leases.coordination.k8s.io "a" is invalid: metadata.resourceVersion: Invalid value: 0: '
        "must be specified for an update"
    )


async def test_an_update_of_what_is_not_there_creates_where_the_kind_says_so(small: Small) -> None:
    obj = {"metadata": {"name": "a", "uid": ""}, "spec": {"holderIdentity": "me"}}
    answer = await small.verbs.update(small.ctx(), small.resource(LEASES), "a", obj, namespace="ns")
    assert answer.code == 201
    error = await refused(
        small.verbs.update(small.ctx(), small.resource(CONFIGMAPS), "b", {"metadata": {"name": "b"}}, namespace="ns")
    )
    assert error.message == 'configmaps "b" not found'


async def test_an_update_with_another_uid_is_a_conflict(small: Small) -> None:
    made = await small.make(CONFIGMAPS)
    obj = {"metadata": {"name": "a", "uid": UID}}
    error = await refused(small.verbs.update(small.ctx(), small.resource(CONFIGMAPS), "a", obj, namespace="ns"))
    assert error.message.endswith(
        f"Precondition failed: UID in precondition: {UID}, UID in object meta: {made['metadata']['uid']}"
    )


async def test_a_write_that_changes_nothing_gets_no_new_revision(small: Small) -> None:
    made = await small.make(CONFIGMAPS, data={"k": "1"})
    obj = {"metadata": {"name": "a"}, "data": {"k": "1"}}
    answer = await small.verbs.update(small.ctx(), small.resource(CONFIGMAPS), "a", obj, namespace="ns")
    assert answer.obj == made


async def test_the_generation_counts_changes_of_spec_only(small: Small) -> None:
    made = await small.make(DEPLOYMENTS, metadata={"generation": 7})
    assert made["metadata"]["generation"] == 1
    patched = await small.verbs.patch(
        small.ctx(), small.resource(DEPLOYMENTS), "a", Patch("merge", {"spec": {"replicas": 3}}), namespace="ns"
    )
    assert patched.obj["metadata"]["generation"] == 2
    labelled = await small.verbs.patch(
        small.ctx(),
        small.resource(DEPLOYMENTS),
        "a",
        Patch("merge", {"metadata": {"labels": {"x": "y"}}}),
        namespace="ns",
    )
    assert labelled.obj["metadata"]["generation"] == 2
    status = await small.verbs.patch(
        small.ctx(),
        small.resource(DEPLOYMENTS),
        "a",
        Patch("merge", {"status": {"replicas": 2}, "spec": {"replicas": 9}}),
        namespace="ns",
        subresource="status",
    )
    assert (status.obj["status"], status.obj["spec"]["replicas"]) == ({"replicas": 2}, 3)
    assert status.obj["metadata"]["generation"] == 2


async def test_validation_names_the_kind_and_every_field(small: Small) -> None:
    error = await refused(small.make(DEPLOYMENTS, spec={"replicas": -1}))
    assert error.message == (
        'Deployment.apps "a" is invalid: spec.replicas: Invalid value: -1: must be greater than or equal to 0'
    )


async def test_concurrent_patches_are_all_kept(small: Small) -> None:
    await small.make(CONFIGMAPS)
    resource = small.resource(CONFIGMAPS)
    await asyncio.gather(
        *(
            small.verbs.patch(small.ctx(), resource, "a", Patch("merge", {"data": {f"k{i}": "v"}}), namespace="ns")
            for i in range(20)
        )
    )
    found = small.get(CONFIGMAPS)
    assert found is not None
    assert len(found["data"]) == 20


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        ({"metadata": {"name": "z"}}, "the name of the object (z) does not match the name on the URL (a)"),
        (
            {"metadata": {"namespace": "other"}},
            "the namespace of the provided object does not match the namespace sent on the request",
        ),
    ],
)
async def test_a_patch_cannot_rename(small: Small, patch: dict[str, object], message: str) -> None:
    await small.make(CONFIGMAPS)
    error = await refused(
        small.verbs.patch(small.ctx(), small.resource(CONFIGMAPS), "a", Patch("merge", patch), namespace="ns")
    )
    assert (error.code, error.message) == (400, message)


async def test_unknown_fields_warn_or_refuse_as_asked(small: Small) -> None:
    ctx = small.ctx()
    obj = {"metadata": {"name": "a"}, "colour": "red"}
    answer = await small.verbs.create(ctx, small.resource(CONFIGMAPS), obj, namespace="ns")
    assert "colour" not in answer.obj
    assert ctx.warnings == ['unknown field "colour"']
    error = await refused(
        small.verbs.create(small.ctx(field_validation="Strict"), small.resource(CONFIGMAPS), obj, namespace="ns")
    )
    assert error.message == (
        'ConfigMap in version "v1" cannot be handled as a ConfigMap: strict decoding error: unknown field "colour"'
    )


async def test_deleting_answers_the_uid(small: Small) -> None:
    made = await small.make(CONFIGMAPS)
    answer = await small.verbs.delete(small.ctx(), small.resource(CONFIGMAPS), "a", namespace="ns")
    assert answer.obj["status"] == "Success"
    assert answer.obj["details"] == {"name": "a", "kind": "configmaps", "uid": made["metadata"]["uid"]}
    assert small.get(CONFIGMAPS) is None


async def test_a_finalizer_holds_an_object_until_it_is_taken_away(small: Small) -> None:
    await small.make(DEPLOYMENTS, metadata={"finalizers": ["example.com/f"]})
    resource = small.resource(DEPLOYMENTS)
    answer = await small.verbs.delete(small.ctx(), resource, "a", namespace="ns")
    meta = answer.obj["metadata"]
    assert (meta["deletionTimestamp"], meta["deletionGracePeriodSeconds"], meta["generation"]) == (
        "2023-11-14T22:13:20Z",
        0,
        2,
    )
    await small.verbs.patch(
        small.ctx(), resource, "a", Patch("merge", {"metadata": {"finalizers": None}}), namespace="ns"
    )
    assert small.get(DEPLOYMENTS) is None


@pytest.mark.parametrize(
    ("options", "finalizers"),
    [
        (DeleteOptions(propagation="Orphan"), ["orphan"]),
        (DeleteOptions(propagation="Foreground"), ["foregroundDeletion"]),
        (DeleteOptions(orphan_dependents=True), ["orphan"]),
        (DeleteOptions(propagation="Background"), None),
        (DeleteOptions(), None),
    ],
)
async def test_propagation(small: Small, options: DeleteOptions, finalizers: list[str] | None) -> None:
    await small.make(CONFIGMAPS)
    await small.verbs.delete(small.ctx(), small.resource(CONFIGMAPS), "a", options, namespace="ns")
    left = small.get(CONFIGMAPS)
    assert (None if left is None else left["metadata"]["finalizers"]) == finalizers


async def test_preconditions_of_a_delete(small: Small) -> None:
    made = await small.make(CONFIGMAPS)
    error = await refused(
        small.verbs.delete(small.ctx(), small.resource(CONFIGMAPS), "a", DeleteOptions(uid=UID), namespace="ns")
    )
    assert error.message == (
        f'Operation cannot be fulfilled on ConfigMap "a": the UID in the precondition ({UID}) does not match the UID '
        f"in record ({made['metadata']['uid']}). The object might have been deleted and then recreated"
    )


async def test_a_scheduled_pod_goes_in_two_steps_and_only_faster(small: Small) -> None:
    resource = small.resource(PODS)
    await small.make(PODS, spec={"nodeName": "n"})

    async def delete(grace_s: int | None) -> tuple[int, str]:
        answer = await small.verbs.delete(small.ctx(), resource, "a", DeleteOptions(grace_s), namespace="ns")
        meta = answer.obj["metadata"]
        return meta["deletionGracePeriodSeconds"], meta["deletionTimestamp"]

    assert await delete(None) == (30, "2023-11-14T22:13:50Z")
    assert await delete(50) == (30, "2023-11-14T22:13:50Z")
    assert await delete(5) == (5, "2023-11-14T22:13:25Z")
    await small.clock.advance(10)
    assert await delete(1) == (1, "2023-11-14T22:13:30Z")
    assert small.get(PODS) is not None
    assert (await delete(0))[0] == 0
    assert small.get(PODS) is None


async def test_an_unscheduled_pod_goes_at_once_and_is_answered(small: Small) -> None:
    await small.make(PODS)
    answer = await small.verbs.delete(small.ctx(), small.resource(PODS), "a", DeleteOptions(60), namespace="ns")
    assert answer.obj["kind"] == "Pod"
    assert answer.obj["metadata"]["deletionGracePeriodSeconds"] == 0
    assert small.get(PODS) is None


async def test_a_namespace_terminates_until_its_own_finalizers_are_gone(small: Small) -> None:
    await small.make(NAMESPACES, namespace="")
    resource = small.resource(NAMESPACES)
    answer = await small.verbs.delete(small.ctx(), resource, "a")
    assert answer.obj["status"] == {"phase": "Terminating"}
    assert "deletionGracePeriodSeconds" not in answer.obj["metadata"]
    again = await small.verbs.delete(small.ctx(), resource, "a")
    assert again.obj == answer.obj
    await small.verbs.patch(small.ctx(), resource, "a", Patch("merge", {"spec": {"finalizers": None}}))
    assert small.get(NAMESPACES, namespace="") is None


async def test_delete_collection_takes_what_is_selected_and_answers_it(small: Small) -> None:
    for name, group in (("a", "1"), ("b", "1"), ("c", "2")):
        await small.make(CONFIGMAPS, name, metadata={"labels": {"g": group}})
    page = await small.verbs.delete_collection(
        small.ctx(), small.resource(CONFIGMAPS), ListOptions(labels="g=1"), DeleteOptions(), namespace="ns"
    )
    assert [entry.obj["metadata"]["name"] for entry in page.entries] == ["a", "b"]
    assert small.get(CONFIGMAPS, "a") is None
    assert small.get(CONFIGMAPS, "c") is not None


async def test_writers_of_one_object_are_made_once_or_twice_each_and_committed_together(small: Small) -> None:
    await small.make(CONFIGMAPS)
    resource = small.resource(CONFIGMAPS)
    made = 0

    async def count(i: int) -> str:
        async def make(live: Object | None) -> Object:
            nonlocal made
            made += 1
            assert live is not None
            wanted: Object = deep_copy(live)
            wanted.setdefault("data", {})[f"k{i}"] = "v"
            return wanted

        answer = await small.verbs.write(small.ctx(), resource, "a", make, namespace="ns")
        return str(answer.obj["metadata"]["resourceVersion"])

    versions = await asyncio.gather(*(count(i) for i in range(20)))
    assert made <= 40
    assert len(set(versions)) == 20
    found = small.get(CONFIGMAPS)
    assert found is not None
    assert len(found["data"]) == 20


async def test_who_waits_behind_a_deletion_finds_nothing(small: Small) -> None:
    await small.make(CONFIGMAPS, metadata={"finalizers": ["example.com/f"]})
    resource = small.resource(CONFIGMAPS)
    await small.verbs.delete(small.ctx(), resource, "a", namespace="ns")
    patches = [{"data": {"k": "1"}}, {"metadata": {"finalizers": None}}, {"data": {"k": "2"}}]
    first, last, late = await asyncio.gather(
        *(small.verbs.patch(small.ctx(), resource, "a", Patch("merge", patch), namespace="ns") for patch in patches),
        return_exceptions=True,
    )
    assert not isinstance(first, BaseException)
    assert not isinstance(last, BaseException)
    assert isinstance(late, StatusError)
    assert late.reason == "NotFound"
    assert small.get(CONFIGMAPS) is None


async def test_a_waiting_writer_with_an_old_version_is_refused(small: Small) -> None:
    made = await small.make(CONFIGMAPS)
    resource = small.resource(CONFIGMAPS)
    version = made["metadata"]["resourceVersion"]
    writes = [{"metadata": {"name": "a", "resourceVersion": version}, "data": {"k": str(i)}} for i in range(3)]
    answers = await asyncio.gather(
        *(small.verbs.update(small.ctx(), resource, "a", obj, namespace="ns") for obj in writes),
        return_exceptions=True,
    )
    assert [getattr(answer, "reason", "ok") for answer in answers] == ["ok", "Conflict", "Conflict"]
