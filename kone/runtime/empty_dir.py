"""emptyDir volumes: a directory on disk, or memory, or huge pages, that lives as long as its pod.

A directory appears with its mode and group at once (it is renamed or mounted into place), so that a kubelet killed in
the middle leaves none that is only half made, and one that is there is never touched again: what the pod did to it
stays. Rules: kubernetes/pkg/volume/emptydir.
"""

from __future__ import annotations

from pathlib import Path

from kone.apimachinery.objects import Object, dig
from kone.apimachinery.pod_resources import pod_limits
from kone.apimachinery.quantity import parse_quantity
from kone.runtime import atomic_writer, mounts
from kone.runtime.parts import VolumeError

HUGE_PAGES = "HugePages"


def make(path: Path, volume: Object, pod: Object, allocatable_memory_bytes: int) -> None:
    """Make the volume where it is not there yet. Raises VolumeError, OSError."""
    empty = volume["emptyDir"]
    medium = empty.get("medium") or ""
    group: int | None = dig(pod, "spec", "securityContext", "fsGroup")
    if medium == "":
        make_directory(path, group)
    elif medium == "Memory":
        limit = parse_quantity(empty["sizeLimit"]).value() if empty.get("sizeLimit") else 0
        make_tmpfs(path, memory_bytes(limit, pod, allocatable_memory_bytes), group)
    elif medium == HUGE_PAGES or medium.startswith(HUGE_PAGES + "-"):
        option = page_size_option(medium, pod)
        make_directory(path)
        if not mounts.is_mount_point(str(path)):
            mounts.mount_hugetlbfs(str(path), option)
            if group is not None:
                atomic_writer.own(path, group, read_only=False)
    else:
        raise VolumeError(f'unknown storage medium "{medium}"')


def make_directory(path: Path, group: int | None = None) -> None:
    """A directory that everybody may write to, of the pod's fsGroup where it has one."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")  # no volume's name begins with a dot
    fresh.mkdir(exist_ok=True)
    fresh.chmod(0o777)
    if group is not None:
        atomic_writer.own(fresh, group, read_only=False)
    fresh.rename(path)


def make_tmpfs(path: Path, size_bytes: int, group: int | None = None) -> None:
    """Memory as a directory; size 0 leaves the kernel's default, half of the machine's memory."""
    make_directory(path)
    if mounts.is_mount_point(str(path)):
        return
    options = [f"size={size_bytes}"] if size_bytes else []
    if group is not None:
        bits = atomic_writer.READ_WRITE_BITS | atomic_writer.DIRECTORY_BITS
        options += [f"gid={group}", f"mode={0o1777 | bits:o}"]
    mounts.mount_tmpfs(str(path), ",".join(options))


def memory_bytes(size_limit: int, pod: Object, allocatable: int) -> int:
    """How much a memory volume may hold: what the volume, the pod and all pods together may use, whichever is least.

    0 is "not limited", for each of the three and for the answer.
    """
    limits = [amount for amount in (allocatable, pod_limits(pod).get("memory", 0), size_limit) if amount > 0]
    return min(limits, default=0)


def page_size_option(medium: str, pod: Object) -> str:
    """hugetlbfs' mount option for a medium "HugePages" or "HugePages-<size>". Raises VolumeError.

    Worked case: a pod that asks for hugepages-2Mi and hugepages-1Gi may mount "HugePages-1Gi", not "HugePages".
    """
    asked = _page_sizes(pod)
    if medium != HUGE_PAGES:
        wanted = parse_quantity(medium.removeprefix(HUGE_PAGES + "-"))
        asked = {size: text for size, text in asked.items() if size == wanted.value()}
    elif len(asked) > 1:
        raise VolumeError(f"medium: {medium} can't be used if container requests multiple huge page sizes")
    if not asked:
        raise VolumeError(
            f"medium {medium}: hugePages storage requested, but there is no resource request for huge pages"
        )
    return f"pagesize={next(iter(asked.values()))}"


def _page_sizes(pod: Object) -> dict[int, str]:
    """The huge page sizes that a pod requests: bytes and as it is written."""
    spec = pod["spec"]
    holders = [spec, *(spec.get("containers") or ()), *(spec.get("initContainers") or ())]
    found = {}
    for holder in holders:
        for name in dig(holder, "resources", "requests", default={}):
            if name.startswith("hugepages-"):
                text = name.removeprefix("hugepages-")
                found[parse_quantity(text).value()] = text
    return found
