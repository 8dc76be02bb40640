"""What users see of what loops say: counted, aggregated, bounded."""

from kone.aio.clock import FakeClock, settle
from kone.apimachinery import errors
from kone.apimachinery.kinds import EVENTS, GVR
from kone.apimachinery.objects import Object
from kone.client.events import RETRY_S, EventRecorder
from tests.fakes import FakeClient

POD: Object = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "web-1", "namespace": "shop", "uid": "u1", "resourceVersion": "7"},
}


def make() -> tuple[FakeClock, FakeClient, EventRecorder]:
    clock = FakeClock()
    client = FakeClient(clock)
    return clock, client, EventRecorder(client, "kubelet", host="n1", clock=clock)


async def test_an_event_says_who_about_what_and_when() -> None:
    clock, client, recorder = make()
    recorder.event(POD, "Normal", "Pulled", "image is there", field_path="spec.containers{c}")
    await clock.advance(1)
    [event] = client.of(EVENTS, "shop")
    assert event["metadata"]["name"].startswith("web-1.")
    assert event["involvedObject"] == {
        "kind": "Pod",
        "namespace": "shop",
        "name": "web-1",
        "uid": "u1",
        "apiVersion": "v1",
        "resourceVersion": "7",
        "fieldPath": "spec.containers{c}",
    }
    assert (event["type"], event["reason"], event["message"], event["count"]) == (
        "Normal",
        "Pulled",
        "image is there",
        1,
    )
    assert event["source"] == {"component": "kubelet", "host": "n1"}
    assert (event["reportingComponent"], event["reportingInstance"]) == ("kubelet", "n1")
    assert event["firstTimestamp"] == event["lastTimestamp"] == "2023-11-14T22:13:20Z"


async def test_events_about_cluster_scoped_objects_go_to_default() -> None:
    clock, client, recorder = make()
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "uid": "n1"}}
    recorder.event(node, "Normal", "NodeReady", "m")
    await clock.advance(1)
    [event] = client.of(EVENTS, "default")
    assert "namespace" not in event["involvedObject"]


async def test_the_same_event_again_counts_up() -> None:
    clock, client, recorder = make()
    for _ in range(3):
        recorder.event(POD, "Warning", "BackOff", "restarting")
        await clock.advance(60)
    [event] = client.of(EVENTS)
    assert event["count"] == 3
    assert (event["firstTimestamp"], event["lastTimestamp"]) == ("2023-11-14T22:13:20Z", "2023-11-14T22:15:20Z")


async def test_a_repeated_event_that_was_deleted_is_made_anew() -> None:
    clock, client, recorder = make()
    recorder.event(POD, "Warning", "BackOff", "restarting")
    await clock.advance(1)
    await client.delete(EVENTS, client.of(EVENTS)[0]["metadata"]["name"], namespace="shop")
    recorder.event(POD, "Warning", "BackOff", "restarting")
    await clock.advance(1)
    [event] = client.of(EVENTS)
    assert event["count"] == 2


async def test_from_the_tenth_message_on_similar_events_are_combined() -> None:
    clock, client, recorder = make()
    for number in range(15):
        recorder.event(POD, "Normal", "Scaled", f"to {number}")
        await clock.advance(1)
    messages = sorted((e["message"], e["count"]) for e in client.of(EVENTS))
    assert len(messages) == 10
    assert messages[0] == ("(combined from similar events): to 14", 6)


async def test_25_at_once_about_one_object_then_one_in_5_minutes() -> None:
    clock, client, recorder = make()
    for number in range(40):
        recorder.event(POD, "Normal", f"Reason{number}", "m")
    await clock.advance(1)
    assert len(client.of(EVENTS)) == 25
    await clock.advance(300)
    for number in range(40, 45):
        recorder.event(POD, "Normal", f"Reason{number}", "m")
    await clock.advance(1)
    assert len(client.of(EVENTS)) == 26


async def test_no_api_for_a_while_loses_nothing() -> None:
    clock, client, recorder = make()
    down = True

    async def create(resource: GVR, obj: Object, **kwargs: str) -> Object:
        if down:
            raise ConnectionError("down")
        return client.put(resource, obj, **kwargs)

    client.create = create  # type: ignore[method-assign, assignment]
    recorder.event(POD, "Normal", "Pulled", "m")
    await clock.advance(RETRY_S * 3)
    assert client.of(EVENTS) == []
    down = False
    await clock.advance(RETRY_S)
    assert len(client.of(EVENTS)) == 1


async def test_a_refused_event_does_not_stop_the_next() -> None:
    clock, client, recorder = make()
    client.refuse = lambda verb, resource, obj: (
        errors.forbidden("events", "", "namespace is being terminated") if obj["reason"] == "A" else None
    )
    recorder.event(POD, "Normal", "A", "m")
    recorder.event(POD, "Normal", "B", "m")
    await clock.advance(1)
    assert [e["reason"] for e in client.of(EVENTS)] == ["B"]


async def test_stop_writes_what_waits() -> None:
    _, client, recorder = make()
    recorder.event(POD, "Normal", "Pulled", "m")
    await settle()
    await recorder.stop()
    assert len(client.of(EVENTS)) == 1


async def test_a_name_too_long_for_an_event_becomes_a_uuid() -> None:
    clock, client, recorder = make()
    recorder.event({**POD, "metadata": {"name": "x" * 250, "namespace": "shop"}}, "Normal", "A", "m")
    await clock.advance(1)
    assert len(client.of(EVENTS)[0]["metadata"]["name"]) == 36
