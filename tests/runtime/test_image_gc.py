"""Images on a disk that fills up: which go, which stay, and what is said when that is not enough."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from kone.aio.clock import FakeClock
from kone.apimachinery.objects import Object
from kone.runtime.disk_usage import FileSystem
from kone.runtime.image_gc import ImageGc, ImageRecords
from kone.runtime.images import ImageManager
from kone.runtime.pull_records import Policy, PullRecords
from kone.runtime.runtime import ContainerState, ContainerStatus, Image, PodMeta, RuntimeFault
from tests.fakes_runtime import FakeRuntime
from tests.runtime.kubelet_world import make_container, make_pod

GIBI = 1 << 30
NODE: Object = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "uid": "n1"}}


class Runtime(FakeRuntime):
    """`held` are images that somebody else's container uses: they cannot be removed."""

    held: frozenset[str] = frozenset()

    async def remove_image(self, image_id: str) -> None:
        if image_id in self.held:
            raise RuntimeFault("conflict: unable to delete (must be forced)")
        await super().remove_image(image_id)


class World:
    """A disk of 100 GiB, `used` of it by images and other things."""

    def __init__(self, path: Path) -> None:
        self.clock = FakeClock()
        self.path = path / "images.json"
        self.runtime = Runtime(self.clock)
        self.runtime.known_images = {}
        self.records = ImageRecords(self.path, self.clock)
        self.used_gib = 10.0
        self.in_use: set[str] = set()
        self.told: list[tuple[str, str]] = []
        self.gc = self.make()

    def make(self) -> ImageGc:
        return ImageGc(self, self.runtime, self.records, self, self.clock, NODE, self.disk)  # type: ignore[arg-type]

    def add(self, name: str, *, pulled: bool = True, size_gib: float = 1) -> None:
        image = Image(name, (name,), size_bytes=int(size_gib * GIBI))
        self.runtime.known_images[name] = image
        if pulled:
            self.records.pulled(image)

    def here(self) -> set[str]:
        return set(self.runtime.known_images)

    def disk(self) -> FileSystem:
        free = int((100 - self.used_gib) * GIBI)
        return FileSystem(1, 100 * GIBI, free, 100 * GIBI - free, 0, 0)

    def pods(self) -> list[Object]:
        return [{"metadata": {"uid": name}} for name in self.in_use]

    def containers(self, pod_uid: str) -> list[ContainerStatus]:
        status = ContainerStatus("i", "s", PodMeta("p", "n", "u"), "c", ContainerState.RUNNING, 0.0)
        return [replace(status, image_id=pod_uid)]

    def event(self, about: Object, kind: str, reason: str, message: str) -> None:
        self.told.append((reason, message))


async def test_below_the_high_threshold_all_stay(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.add("old")
    world.used_gib = 84
    await world.clock.advance(1000)
    await world.gc.look()
    assert world.here() == {"old"}


async def test_the_least_recently_used_go_until_the_low_threshold(tmp_path: Path) -> None:
    world = World(tmp_path)
    for name in ("first", "second", "third", "fourth"):
        world.add(name, size_gib=3)
        await world.clock.advance(200)
    world.in_use = {"first"}
    await world.gc.look()  # "first" is used: it is the youngest now
    world.in_use = set()
    await world.clock.advance(200)
    world.used_gib = 85
    await world.gc.look()  # 5 GiB are to be freed
    assert world.here() == {"fourth", "first"}
    assert world.told == []


async def test_what_is_used_foreign_or_fresh_stays(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.add("foreign", pulled=False)
    world.add("used")
    world.add("held")
    world.runtime.held = frozenset({"held"})
    await world.clock.advance(1000)
    world.add("fresh")
    world.in_use = {"used"}
    world.used_gib = 90
    await world.gc.look()
    assert world.here() == {"foreign", "used", "held", "fresh"}
    message = (
        "Insufficient free disk space on the node's image filesystem (90% of 100.0 GiB used). "
        "Failed to free sufficient space by deleting unused images (freed 0 bytes). "
        "Investigate disk usage, as it could be used by active images, logs, volumes, or other data."
    )
    assert world.told == [("FreeDiskSpaceFailed", message)]


async def test_under_pressure_all_unused_go(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.add("a")
    world.add("b")
    await world.clock.advance(1000)
    assert await world.gc.remove_unused() == 2 * GIBI
    assert world.here() == set()


async def test_looks_every_five_minutes(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.add("a")
    world.used_gib = 99
    await world.gc.start()
    await world.clock.advance(299)
    assert world.here() == {"a"}
    await world.clock.advance(1)
    assert world.here() == set()
    await world.gc.stop()


async def test_what_was_pulled_is_known_after_a_restart(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.add("pulled")
    world.add("foreign", pulled=False)
    await world.clock.advance(1000)
    world.records = ImageRecords(world.path, world.clock)
    world.gc = world.make()
    await world.gc.remove_unused()
    assert world.here() == {"foreign"}


async def test_a_record_that_cannot_be_read_removes_nothing(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.add("a")
    world.path.write_text("{broken")
    world.records = ImageRecords(world.path, world.clock)
    world.gc = world.make()
    await world.clock.advance(1000)
    assert await world.gc.remove_unused() == 0
    assert world.here() == {"a"}


async def test_an_image_that_went_and_came_back_by_other_hands_is_not_ours(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.add("a")
    world.runtime.known_images.clear()
    await world.gc.look()
    world.add("a", pulled=False)
    await world.clock.advance(1000)
    await world.gc.remove_unused()
    assert world.here() == {"a"}


async def test_only_a_pull_that_brought_something_counts(tmp_path: Path) -> None:
    runtime = FakeRuntime(FakeClock())
    new, old = Image("sha256:new", ("docker.io/library/new:1",)), runtime.known_images["busybox:test"]
    runtime.registry = {"docker.io/library/new:1": new, "docker.io/library/busybox:test": old}
    pulled: list[Any] = []
    records = PullRecords(tmp_path, runtime.clock, Policy())
    records.load([])
    manager = ImageManager(runtime, runtime.clock, records, on_pull=pulled.append)
    for name in ("new:1", "busybox:test"):
        container = make_container(image=name, imagePullPolicy="Always")
        await manager.ensure(make_pod("p"), container, (), lambda kind, reason, message: None)
    assert pulled == [new]
