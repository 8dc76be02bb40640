"""What device plugins and the kubelet say to each other (kubelet/pkg/apis/deviceplugin/v1beta1/api.proto)."""

from __future__ import annotations

from typing import Final

from kone.apimachinery.messages import TEXT_MAP, Message
from kone.runtime.grpc import Method

VERSION: Final = "v1beta1"
HEALTHY: Final = "Healthy"

_EMPTY = Message({})
OPTIONS: Final = Message({1: ("pre_start_required", bool), 2: ("get_preferred_allocation_available", bool)})
_NODE = Message({1: ("ID", int)})
_DEVICE = Message({1: ("ID", str), 2: ("health", str), 3: ("topology", Message({1: ("nodes", [_NODE])}))})
_PREFERRED = Message(
    {1: ("available_deviceIDs", [str]), 2: ("must_include_deviceIDs", [str]), 3: ("allocation_size", int)}
)
_IDS = Message({1: ("devices_ids", [str])})
_MOUNT = Message({1: ("container_path", str), 2: ("host_path", str), 3: ("read_only", bool)})
_NODE_DEVICE = Message({1: ("container_path", str), 2: ("host_path", str), 3: ("permissions", str)})
_ALLOCATED = Message(
    {
        1: ("envs", TEXT_MAP),
        2: ("mounts", [_MOUNT]),
        3: ("devices", [_NODE_DEVICE]),
        4: ("annotations", TEXT_MAP),
        5: ("cdi_devices", [Message({1: ("name", str)})]),
    }
)

REGISTER: Final = Method(
    f"/{VERSION}.Registration/Register",
    Message({1: ("version", str), 2: ("endpoint", str), 3: ("resource_name", str), 4: ("options", OPTIONS)}),
    _EMPTY,
)
GET_OPTIONS: Final = Method(f"/{VERSION}.DevicePlugin/GetDevicePluginOptions", _EMPTY, OPTIONS)
LIST_AND_WATCH: Final = Method(
    f"/{VERSION}.DevicePlugin/ListAndWatch", _EMPTY, Message({1: ("devices", [_DEVICE])}), streams=True
)
PREFERRED: Final = Method(
    f"/{VERSION}.DevicePlugin/GetPreferredAllocation",
    Message({1: ("container_requests", [_PREFERRED])}),
    Message({1: ("container_responses", [Message({1: ("deviceIDs", [str])})])}),
)
ALLOCATE: Final = Method(
    f"/{VERSION}.DevicePlugin/Allocate",
    Message({1: ("container_requests", [_IDS])}),
    Message({1: ("container_responses", [_ALLOCATED])}),
)
PRE_START: Final = Method(f"/{VERSION}.DevicePlugin/PreStartContainer", _IDS, _EMPTY)
