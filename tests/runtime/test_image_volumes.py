"""Image volumes: layers over each other, read-only, gone with the pod."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from kone.runtime import mounts
from kone.runtime.docker_translate import layers_from_inspect
from kone.runtime.image_volumes import ImageVolumeFailed, ImageVolumes
from kone.runtime.runtime import Image

POD = {"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": {}}
IMAGE = Image("sha256:1")


class Runtime:
    def __init__(self) -> None:
        self.layers: Sequence[str] = ()

    async def image_layers(self, image_id: str) -> Sequence[str]:
        return self.layers


class World:
    def __init__(self, path: Path) -> None:
        self.path, self.runtime = path, Runtime()
        self.volumes = ImageVolumes(self.runtime, path / "pods")  # type: ignore[arg-type]

    def layer(self, name: str, **files: str) -> str:
        folder = self.path / name
        folder.mkdir()
        for file, text in files.items():
            (folder / file).write_text(text)
        return str(folder)

    async def mount(self) -> Path:
        return Path((await self.volumes.mount(POD, "v", IMAGE)).host_path)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    yield World(tmp_path)
    for point in mounts.mounts_below(str(tmp_path)):
        mounts.unmount(point)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
async def test_one_layer_is_shown_read_only(world: World) -> None:
    world.runtime.layers = [world.layer("a", file="one")]
    path = await world.mount()
    assert (path / "file").read_text() == "one"
    with pytest.raises(OSError, match="Read-only"):
        (path / "new").write_text("x")
    assert await world.mount() == path
    assert len(mounts.mounts_below(str(world.path))) == 1
    assert world.volumes.in_use() == {"sha256:1"}
    another = ImageVolumes(world.runtime, world.path / "pods")  # type: ignore[arg-type]
    assert another.in_use() == {"sha256:1"}


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
async def test_a_newer_image_is_beside_the_one_that_runs(world: World) -> None:
    world.runtime.layers = [world.layer("a", file="one")]
    before = await world.mount()
    world.runtime.layers = [world.layer("b", file="two")]
    after = Path((await world.volumes.mount(POD, "v", Image("sha256:2"))).host_path)
    assert ((before / "file").read_text(), (after / "file").read_text()) == ("one", "two")


@pytest.mark.parametrize(
    ("layers", "why"),
    [
        ((), "the runtime does not keep this image as directories of this host (overlay2)"),
        (("/nowhere/at/all",), "the runtime does not keep this image as directories of this host (overlay2)"),
    ],
)
async def test_what_cannot_be_mounted(world: World, layers: Sequence[str], why: str) -> None:
    world.runtime.layers = layers
    with pytest.raises(ImageVolumeFailed) as told:
        await world.mount()
    assert str(told.value) == f"ImageVolumeMountFailed: {why}"


def test_docker_tells_where_layers_are() -> None:
    data = {"UpperDir": "/d/c/diff", "LowerDir": "/d/b/diff:/d/a/diff"}
    assert layers_from_inspect({"GraphDriver": {"Name": "overlay2", "Data": data}}) == (
        "/d/c/diff",
        "/d/b/diff",
        "/d/a/diff",
    )
    assert layers_from_inspect({"GraphDriver": {"Name": "overlay2", "Data": {"UpperDir": "/d/a/diff"}}}) == (
        "/d/a/diff",
    )
    assert layers_from_inspect({"GraphDriver": {"Name": "vfs", "Data": None}}) == ()
    assert layers_from_inspect({}) == ()
