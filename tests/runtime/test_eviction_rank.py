"""Who must go first, and what they are told."""

from __future__ import annotations

from typing import Any

import pytest

from kone.runtime.disk_usage import DiskUsage
from kone.runtime.eviction_rank import has_storage_limit, is_critical, low_on, over_limit, ranked
from kone.runtime.eviction_signals import IMAGE_DISK, MEMORY, NODE_DISK, NODE_INODES, PIDS
from kone.runtime.runtime import ContainerState, ContainerStatus, PodMeta
from kone.runtime.stats import ContainerUse, PodUse
from kone.runtime.usage import Usage

MEBI = 1 << 20


def use(
    name: str,
    *,
    memory: int = 0,
    processes: int = 0,
    layer: int = 0,
    log: int = 0,
    volume: int | None = None,
    inodes: int = 0,
    requests: dict[str, str] | None = None,
    limits: dict[str, str] | None = None,
    size_limit: str = "",
    **spec: Any,
) -> PodUse:
    """A pod of one container "c" and perhaps an emptyDir "v"; sizes in MiB."""
    container = {"name": "c", "resources": {"requests": requests or {}, "limits": limits or {}}}
    empty = {"sizeLimit": size_limit} if size_limit else {}
    volumes = [] if volume is None else [{"name": "v", "emptyDir": empty}]
    pod = {"metadata": {"name": name, "uid": name}, "spec": {"containers": [container], "volumes": volumes, **spec}}
    status = ContainerStatus("i", "s", PodMeta(name, "n", name), "c", ContainerState.RUNNING, 0.0)
    used = Usage(working_set_bytes=memory * MEBI, processes=processes)
    one = ContainerUse(status, used, DiskUsage(layer * MEBI, inodes), DiskUsage(log * MEBI))
    taken = {} if volume is None else {"v": DiskUsage(volume * MEBI)}
    return PodUse(pod, [one], used, (), taken)


def order(signal: str, *uses: PodUse, own_image_fs: bool = False) -> list[str]:
    return [found.pod["metadata"]["name"] for found in ranked(uses, signal, own_image_fs=own_image_fs)]


def test_memory_who_exceeds_then_who_matters_least_then_who_exceeds_most() -> None:
    assert order(
        MEMORY,
        use("modest", memory=10, requests={"memory": "20Mi"}),
        use("huge but asked for", memory=500, requests={"memory": "600Mi"}),
        use("important", memory=900, priority=1000),
        use("exceeds by 30", memory=50, requests={"memory": "20Mi"}),
        use("exceeds by 40", memory=40),
    ) == ["exceeds by 40", "exceeds by 30", "important", "modest", "huge but asked for"]


def test_processes_by_priority_and_number() -> None:
    uses = (use("few", processes=1), use("many", processes=9), use("least", processes=1, priority=-1))
    assert order(PIDS, *uses) == ["least", "many", "few"]


@pytest.mark.parametrize(
    ("signal", "own_image_fs", "first"),
    [
        (NODE_DISK, False, "layer"),
        (NODE_DISK, True, "log"),
        (IMAGE_DISK, True, "layer"),
        (NODE_INODES, False, "files"),
    ],
    ids=["one disk: all counts", "images elsewhere: logs and volumes", "the images' disk: layers", "inodes"],
)
def test_disk(signal: str, own_image_fs: bool, first: str) -> None:
    uses = (use("layer", layer=9), use("log", log=8), use("volume", volume=7), use("files", inodes=99))
    assert order(signal, *uses, own_image_fs=own_image_fs)[0] == first


def test_the_message_names_who_exceeds() -> None:
    greedy = use("p", memory=50, requests={"memory": "20Mi"})
    message, annotations = low_on(MEMORY, "Threshold quantity: 100Mi, available: 1Mi. ", greedy)
    assert message == (
        "The node was low on resource: memory. Threshold quantity: 100Mi, available: 1Mi. "
        "Container c was using 50Mi, request is 20Mi, has larger consumption of memory. "
    )
    assert annotations == {
        "offending_containers": "c",
        "offending_containers_usage": "50Mi",
        "starved_resource": "memory",
    }


def test_the_message_of_a_modest_pod_and_of_one_with_resources_of_its_own() -> None:
    assert low_on(MEMORY, "", use("p", memory=1, requests={"memory": "20Mi"}))[0] == (
        "The node was low on resource: memory. "
    )
    whole = use("p", memory=50, resources={"requests": {"memory": "60Mi"}})
    assert low_on(MEMORY, "", whole)[0] == (
        "The node was low on resource: memory. "
        "Pod p was using 50Mi, request is 60Mi, has larger consumption of memory. "
        "Container c was using 50Mi, request is 0, has larger consumption of memory. "
    )
    disk = use("p", layer=3, log=2)
    assert low_on(NODE_DISK, "", disk)[0] == (
        "The node was low on resource: ephemeral-storage. "
        "Container c was using 5Mi, request is 0, has larger consumption of ephemeral-storage. "
    )


@pytest.mark.parametrize(
    ("found", "own_image_fs", "text"),
    [
        (use("p", volume=2, size_limit="1Mi"), False, 'Usage of EmptyDir volume "v" exceeds the limit "1Mi". '),
        (use("p", volume=1, size_limit="1Mi"), False, None),
        (use("p", volume=100), False, None),
        (
            use("p", layer=2, log=2, volume=2, limits={"ephemeral-storage": "5Mi"}),
            False,
            "Pod ephemeral local storage usage exceeds the total limit of containers 5Mi. ",
        ),
        (use("p", layer=2, log=2, limits={"ephemeral-storage": "5Mi"}), False, None),
        (
            use("p", layer=6, limits={"ephemeral-storage": "5Mi"}, resources={"limits": {"ephemeral-storage": "9Mi"}}),
            False,
            'Container c exceeded its local ephemeral storage limit "5Mi". ',
        ),
        (
            use("p", layer=6, limits={"ephemeral-storage": "5Mi"}, resources={"limits": {"ephemeral-storage": "9Mi"}}),
            True,
            None,
        ),
    ],
    ids=[
        "a volume",
        "a volume that is just full",
        "a volume without a limit",
        "all together",
        "all together, within",
        "one container",
        "a container whose layer lies elsewhere",
    ],
)
def test_limits_of_local_storage(found: PodUse, own_image_fs: bool, text: str | None) -> None:
    assert over_limit(found, own_image_fs=own_image_fs) == text


def test_only_what_is_limited_must_be_counted() -> None:
    assert not has_storage_limit(use("p", volume=1).pod)
    assert has_storage_limit(use("p", volume=1, size_limit="1Mi").pod)
    assert has_storage_limit(use("p", limits={"ephemeral-storage": "1Mi"}).pod)
    memory = {"name": "v", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}
    assert not has_storage_limit({"spec": {"containers": [{"name": "c"}], "volumes": [memory]}})


def test_pods_that_the_node_needs() -> None:
    assert is_critical(use("p", priority=2_000_000_000).pod)
    assert not is_critical(use("p", priority=1_999_999_999).pod)
    assert is_critical({"metadata": {"annotations": {"kubernetes.io/config.mirror": "x"}}, "spec": {}})
    assert is_critical({"metadata": {"annotations": {"kubernetes.io/config.source": "file"}}, "spec": {}})
