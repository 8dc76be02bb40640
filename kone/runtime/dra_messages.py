"""What drivers of dynamic resources and the kubelet say to each other (kubelet/pkg/apis/dra), in both versions."""

from __future__ import annotations

from typing import Final

from kone.apimachinery.messages import Message
from kone.runtime.grpc import Method

_CLAIM = Message({1: ("namespace", str), 2: ("uid", str), 3: ("name", str)})
_DEVICE = Message(
    {
        1: ("request_names", [str]),
        2: ("pool_name", str),
        3: ("device_name", str),
        4: ("cdi_device_ids", [str]),
        5: ("share_id", str),
    }
)
_PREPARED = Message({1: ("devices", [_DEVICE]), 2: ("error", str)})
_CLAIMS = Message({1: ("claims", [_CLAIM])})


def _by_uid(answer: Message) -> Message:
    """map<string, answer>, whose entries are messages of two fields."""
    return Message({1: ("claims", [Message({1: ("key", str), 2: ("value", answer)})])})


def prepare(version: str) -> Method:
    return Method(f"/k8s.io.kubelet.pkg.apis.dra.{version}.DRAPlugin/NodePrepareResources", _CLAIMS, _by_uid(_PREPARED))


def unprepare(version: str) -> Method:
    answer = _by_uid(Message({1: ("error", str)}))
    return Method(f"/k8s.io.kubelet.pkg.apis.dra.{version}.DRAPlugin/NodeUnprepareResources", _CLAIMS, answer)


VERSIONS: Final = ("v1", "v1beta1")  # the kubelet's choice first
