"""Who may write what into the status of a ResourceClaim."""

from __future__ import annotations

import pytest

from kone.admission.device_status_authorization import DeviceStatusAuthorization
from kone.apimachinery.access import AccessRequest
from kone.apimachinery.kinds import RESOURCECLAIMS
from kone.apimachinery.objects import Object
from kone.apimachinery.users import User
from tests.admission.support import admit, refusal, write

DRIVER = "gpu.example.com"
ONLY_N1 = {"nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}]}
GIVEN = {"devices": {"results": []}, "nodeSelector": ONLY_N1}
DEVICE = {"driver": DRIVER, "pool": "p", "device": "a"}


class Leave:
    """An authorizer that allows what is listed as "verb subresource/name"."""

    escalation = None

    def __init__(self, *allowed: str) -> None:
        self._allowed = allowed

    def allowed(self, user: User, request: AccessRequest) -> tuple[bool, str]:
        where = f"{request.subresource}/{request.name}" if request.name else request.subresource
        return f"{request.verb} {where}" in self._allowed, "no rule"


def on(node: str) -> User:
    return User("system:serviceaccount:ns:plugin", extra={"authentication.kubernetes.io/node-name": (node,)})


def claim(**status: object) -> Object:
    return {"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim", "metadata": {"name": "c"}, "status": status}


@pytest.mark.parametrize(
    ("leave", "old", "new", "user", "why"),
    [
        pytest.param(
            [],
            claim(),
            claim(allocation=GIVEN),
            on("n1"),
            "status.allocation: Forbidden: changing status.allocation or status.reservedFor requires "
            'resource="resourceclaims/binding", verb="update" permission: resourceclaims.resource.k8s.io is forbidden: '
            'User "system:serviceaccount:ns:plugin" cannot update resource "resourceclaims/binding" in API group '
            '"resource.k8s.io" at the cluster scope: no rule',
            id="who gives devices",
        ),
        pytest.param(["update binding"], claim(), claim(allocation=GIVEN), on("n1"), "", id="the scheduler"),
        pytest.param(
            [f"associated-node:update driver/{DRIVER}"],
            claim(allocation=GIVEN),
            claim(allocation=GIVEN, devices=[DEVICE]),
            on("n1"),
            "",
            id="a driver on the claim's node",
        ),
        pytest.param(
            [f"associated-node:update driver/{DRIVER}"],
            claim(allocation=GIVEN),
            claim(allocation=GIVEN, devices=[DEVICE]),
            on("n2"),
            'status.devices: Forbidden: changing status.devices requires resource="resourceclaims/driver", '
            f'verb="[arbitrary-node:update]" permission: resourceclaims.resource.k8s.io "{DRIVER}" is forbidden: User '
            '"system:serviceaccount:ns:plugin" cannot arbitrary-node:update resource "resourceclaims/driver" in API '
            'group "resource.k8s.io" in the namespace "ns": no rule',
            id="a driver on another node",
        ),
        pytest.param(
            [f"arbitrary-node:patch driver/{DRIVER}"],
            claim(allocation=GIVEN, devices=[DEVICE]),
            claim(allocation=GIVEN),
            User("controller"),
            "",
            id="a driver's controller takes back what it said",
        ),
        pytest.param([], claim(allocation=GIVEN), claim(allocation=GIVEN), User("x"), "", id="nothing of it changes"),
    ],
)
async def test_leave_to_write_a_status(leave: list[str], old: Object, new: Object, user: User, why: str) -> None:
    plugin = DeviceStatusAuthorization(Leave(*leave))  # type: ignore[arg-type]
    request = write("UPDATE", new, RESOURCECLAIMS, old=old, subresource="status", kind="ResourceClaim", user=user)
    if not why:
        await admit(plugin, request)
        return
    error = await refusal(plugin, request)
    assert error.code == 422
    assert error.message == f'ResourceClaim.resource.k8s.io "c" is invalid: {why}'
