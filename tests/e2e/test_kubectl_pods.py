"""kubectl's verbs that containers answer: run, attach, logs of many, debug in its three ways, drain."""

from __future__ import annotations

import pytest

from tests.e2e.conftest import Place
from tests.e2e.node_process import eventually
from tests.e2e.test_pods import pod

pytestmark = pytest.mark.ring4


def ready(place: Place, *names: str) -> None:
    place.kubectl("wait", "--for=condition=Ready", *(f"pod/{name}" for name in names), "--timeout=60s")


def test_run_attaches_and_removes_what_it_ran(place: Place) -> None:
    words = ("run", "once", "--rm", "-i", "--restart=Never", f"--image={place.image}", "--image-pull-policy=Never")
    said = place.kubectl(*words, "--", "sh", "-c", "read word; echo got $word", input="this\n")
    assert "got this" in said
    assert "No resources found" in place.kubectl("get", "pods", check=False)


def test_logs_of_every_pod_that_a_selector_finds(place: Place) -> None:
    for name in ("a", "b"):
        place.kubectl(
            "run", name, f"--image={place.image}", "--labels=app=x", "--", "sh", "-c", f"echo {name}; sleep 60"
        )
    ready(place, "a", "b")
    said = place.kubectl("logs", "-l", "app=x", "--prefix", "--tail=1", "--all-containers")
    assert sorted(said.splitlines()) == ["[pod/a/a] a", "[pod/b/b] b"]


def test_debug_adds_a_container_that_sees_the_others_files(place: Place) -> None:
    place.apply(pod(place, "a", "echo mine > /tmp/x; sleep 60"))
    ready(place, "a")
    look = "until cat /proc/1/root/tmp/x; do sleep 0.1; done"
    place.kubectl("debug", "a", f"--image={place.image}", "--target=c", "--container=d", "--", "sh", "-c", look)
    eventually(lambda: place.kubectl("logs", "a", "-c", "d", check=False) == "mine\n")
    assert "Ephemeral Containers:\n  d:" in place.kubectl("describe", "pod", "a")


def test_debug_copies_a_pod_with_another_command(place: Place) -> None:
    place.apply(pod(place, "a"))
    place.kubectl("debug", "a", "--copy-to=b", "--container=c", "--", "sh", "-c", "echo copied; sleep 60")
    ready(place, "b")
    assert place.kubectl("logs", "b") == "copied\n"


def test_debug_of_a_node_sees_its_files_and_its_name(place: Place) -> None:
    node = place.node.get("nodes")["items"][0]["metadata"]["name"]
    look = "cat /host/proc/sys/kernel/hostname; hostname"
    place.kubectl("debug", f"node/{node}", f"--image={place.image}", "--", "sh", "-c", look)
    (debugger,) = place.get("pods")["items"]  # type: ignore[misc]
    name = debugger["metadata"]["name"]  # type: ignore[index]
    place.kubectl("wait", "--for=jsonpath={.status.phase}=Succeeded", f"pod/{name}", "--timeout=60s")
    host, inside = place.kubectl("logs", name).split()
    assert host == inside, "it shares the host's names"


def test_drain_evicts_as_budgets_allow(place: Place) -> None:
    node = place.node.get("nodes")["items"][0]["metadata"]["name"]
    script = "trap 'exit 0' TERM; sleep 600 & wait"
    place.kubectl("create", "deployment", "web", f"--image={place.image}", "--", "sh", "-c", script)
    place.kubectl("create", "poddisruptionbudget", "web", "--selector=app=web", "--min-available=1")
    place.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
    drain = ("drain", node, "--pod-selector=app=web,!job-name", "--ignore-daemonsets")
    try:
        refused = place.kubectl(*drain, "--timeout=2s", check=False)
        assert "Cannot evict pod as it would violate the pod's disruption budget." in refused
        place.kubectl("delete", "poddisruptionbudget", "web")
        assert f"node/{node} drained" in place.kubectl(*drain, "--timeout=60s")
        assert "SchedulingDisabled" in place.kubectl("get", "node", node)
    finally:
        place.kubectl("uncordon", node)
    place.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
