"""What CSI's node service says (container-storage-interface/spec v1.13, csi.proto): the messages that a kubelet sends
and reads, under their own names.
"""

from __future__ import annotations

from typing import Final

from kone.apimachinery.messages import TEXT_MAP, Message
from kone.runtime.grpc import Method

# NodeServiceCapability.RPC.Type
STAGE_UNSTAGE_VOLUME: Final = 1
GET_VOLUME_STATS: Final = 2
EXPAND_VOLUME: Final = 3
SINGLE_NODE_MULTI_WRITER: Final = 5
VOLUME_MOUNT_GROUP: Final = 6

# VolumeUsage.Unit
BYTES: Final = 1
INODES: Final = 2

_EMPTY = Message({})
_TOPOLOGY = Message({1: ("segments", TEXT_MAP)})
_MOUNT_VOLUME = Message({1: ("fs_type", str), 2: ("mount_flags", [str]), 3: ("volume_mount_group", str)})
_ACCESS_MODE = Message({1: ("mode", int)})
_CAPABILITY = Message({1: ("block", _EMPTY), 2: ("mount", _MOUNT_VOLUME), 3: ("access_mode", _ACCESS_MODE)})
_RPC = Message({1: ("type", int)})
_NODE_CAPABILITY = Message({1: ("rpc", _RPC)})
_RANGE = Message({1: ("required_bytes", int), 2: ("limit_bytes", int)})
_USAGE = Message({1: ("available", int), 2: ("total", int), 3: ("used", int), 4: ("unit", int)})


def _method(name: str, request: Message, answer: Message) -> Method:
    return Method(f"/csi.v1.Node/{name}", request, answer)


GET_CAPABILITIES: Final = _method("NodeGetCapabilities", _EMPTY, Message({1: ("capabilities", [_NODE_CAPABILITY])}))
GET_INFO: Final = _method(
    "NodeGetInfo",
    _EMPTY,
    Message({1: ("node_id", str), 2: ("max_volumes_per_node", int), 3: ("accessible_topology", _TOPOLOGY)}),
)
STAGE: Final = _method(
    "NodeStageVolume",
    Message(
        {
            1: ("volume_id", str),
            2: ("publish_context", TEXT_MAP),
            3: ("staging_target_path", str),
            4: ("volume_capability", _CAPABILITY),
            5: ("secrets", TEXT_MAP),
            6: ("volume_context", TEXT_MAP),
        }
    ),
    _EMPTY,
)
UNSTAGE: Final = _method("NodeUnstageVolume", Message({1: ("volume_id", str), 2: ("staging_target_path", str)}), _EMPTY)
PUBLISH: Final = _method(
    "NodePublishVolume",
    Message(
        {
            1: ("volume_id", str),
            2: ("publish_context", TEXT_MAP),
            3: ("staging_target_path", str),
            4: ("target_path", str),
            5: ("volume_capability", _CAPABILITY),
            6: ("readonly", bool),
            7: ("secrets", TEXT_MAP),
            8: ("volume_context", TEXT_MAP),
        }
    ),
    _EMPTY,
)
UNPUBLISH: Final = _method("NodeUnpublishVolume", Message({1: ("volume_id", str), 2: ("target_path", str)}), _EMPTY)
EXPAND: Final = _method(
    "NodeExpandVolume",
    Message(
        {
            1: ("volume_id", str),
            2: ("volume_path", str),
            3: ("capacity_range", _RANGE),
            4: ("staging_target_path", str),
            5: ("volume_capability", _CAPABILITY),
            6: ("secrets", TEXT_MAP),
        }
    ),
    Message({1: ("capacity_bytes", int)}),
)
GET_STATS: Final = _method(
    "NodeGetVolumeStats",
    Message({1: ("volume_id", str), 2: ("volume_path", str), 3: ("staging_target_path", str)}),
    Message({1: ("usage", [_USAGE])}),
)
