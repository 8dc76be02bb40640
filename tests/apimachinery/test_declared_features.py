"""Which features a node must declare, for a pod to run on it or to change in place."""

from __future__ import annotations

import pytest

from kone.apimachinery.declared_features import needed_to_change, needed_to_run
from kone.apimachinery.objects import Object


def container(name: str = "c", cpu: str = "1", **more: object) -> Object:
    return {"name": name, "resources": {"requests": {"cpu": cpu}}, **more}


RULE = {"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [42]}}


@pytest.mark.parametrize(
    ("spec", "needed"),
    [
        ({"containers": [container()]}, []),
        ({"containers": [container(restartPolicyRules=[{**RULE, "action": "Restart"}])]}, []),
        ({"containers": [container(restartPolicyRules=[RULE])]}, ["RestartAllContainersOnContainerExits"]),
        (
            {"containers": [container()], "initContainers": [container("i", restartPolicyRules=[RULE])]},
            ["RestartAllContainersOnContainerExits"],
        ),
        ({"hostNetwork": True, "hostUsers": False}, ["UserNamespacesHostNetworkSupport"]),
        ({"hostNetwork": True}, []),
        ({"hostUsers": False}, []),
    ],
)
def test_to_run(spec: Object, needed: list[str]) -> None:
    assert needed_to_run(spec) == needed


@pytest.mark.parametrize(
    ("old", "new", "needed"),
    [
        ({"containers": [container()]}, {"containers": [container(cpu="2")]}, []),
        (
            {"initContainers": [container()]},
            {"initContainers": [container(cpu="2")]},
            ["InPlacePodVerticalScalingInitContainers"],
        ),
        ({"initContainers": [container()]}, {"initContainers": [container(cpu="1000m")]}, []),
        (
            {"initContainers": [container(restartPolicy="Always")]},
            {"initContainers": [container(cpu="2", restartPolicy="Always")]},
            [],
        ),
        (
            {"resources": {"limits": {"cpu": "1"}}},
            {"resources": {"limits": {"cpu": "2"}}},
            ["InPlacePodLevelResourcesVerticalScaling"],
        ),
    ],
    ids=["a container", "an init container", "the same amount in other words", "a sidecar", "the pod as a whole"],
)
def test_to_change(old: Object, new: Object, needed: list[str]) -> None:
    assert needed_to_change(old, new) == needed
