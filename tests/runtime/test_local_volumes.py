"""Local volumes on real directories and loop devices: what each pod gets, and that nothing is left."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kone.apimachinery.objects import Object
from kone.runtime import loop_devices, mounts
from kone.runtime.local_volumes import LocalVolumes
from kone.runtime.parts import VolumeError

SIZE_BYTES = 4 << 20


class World:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.root = path / "kubelet"
        self.told: list[tuple[str, str]] = []
        self.volumes = LocalVolumes(self.root, lambda obj, reason, message: self.told.append((reason, message)))
        self.content = path / "content"
        self.content.mkdir()

    def volume(self, path: Path | str, **spec: Any) -> Object:
        return {"metadata": {"name": "pv"}, "spec": {"local": {"path": str(path)}, **spec}}

    async def mount(
        self, volume: Object, uid: str = "u1", *, read_only: bool = False, group: int | None = None
    ) -> Path:
        context = {} if group is None else {"securityContext": {"fsGroup": group}}
        pod = {"metadata": {"name": "p", "uid": uid}, "spec": context}
        return Path((await self.volumes.mount(pod, volume, read_only=False)).host_path)

    async def refusal(self, volume: Object) -> VolumeError:
        with pytest.raises(VolumeError) as refused:
            await self.mount(volume)
        return refused.value

    def disk(self) -> str:
        """A block device without anything on it."""
        file = self.path / "disk"
        file.touch()
        os.truncate(file, SIZE_BYTES)
        return loop_devices.attach(file)

    def left(self) -> list[str]:
        """Mounts, files and links; empty directories say nothing."""
        links = [str(path) for path in self.root.rglob("*") if not path.is_dir() or path.is_symlink()]
        return [*mounts.mounts_below(str(self.root)), *links]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    for point in mounts.mounts_below(str(tmp_path)):
        mounts.unmount(point)
    for file in (tmp_path / "disk", tmp_path / "file"):
        if file.exists() and (device := loop_devices.find(file)) is not None:
            loop_devices.detach(device)


async def test_each_pod_has_a_directory_mounted_for_itself(world: World) -> None:
    volume = world.volume(world.content)
    first, second = await world.mount(volume, "u1"), await world.mount(volume, "u2")
    assert first == world.root / "pods/u1/volumes/kubernetes.io~local-volume/pv"
    (first / "file").write_text("shared")
    assert (second / "file").read_text() == "shared"
    assert await world.mount(volume, "u1") == first, "asking again changes nothing"
    await world.volumes.unmount("u1")
    assert (second / "file").exists()
    await world.volumes.unmount("u2")
    assert world.left() == []
    assert (world.content / "file").read_text() == "shared"


async def test_a_link_leads_to_its_directory(world: World) -> None:
    link = world.path / "link"
    link.symlink_to(world.content)
    (await world.mount(world.volume(link)) / "file").touch()
    assert (world.content / "file").exists()


async def test_mount_options_hold(world: World) -> None:
    path = await world.mount(world.volume(world.content, mountOptions=["noexec"]))
    options = dict(_options())
    assert "noexec" in options[str(path)]


def _options() -> Iterator[tuple[str, list[str]]]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        words = line.split()
        yield words[4], words[5].split(",")


async def test_the_first_pod_says_whose_group_it_is(world: World) -> None:
    volume = world.volume(world.content)
    await world.mount(volume, "u1", group=4711)
    await world.mount(volume, "u2", group=4712)
    assert world.content.stat().st_gid == 4711
    text = "The requested fsGroup is 4712, but the volume pv has GID 4711. The volume may not be shareable."
    assert world.told == [("AlreadyMountedVolume", text)]


async def test_what_is_not_there_or_of_another_kind(world: World) -> None:
    error = await world.refusal(world.volume("/no-such"))
    failed = 'MountVolume.NewMounter initialization failed for volume "pv" :'
    assert str(error) == f'{failed} path "/no-such" does not exist'
    error = await world.refusal(world.volume("/etc/hostname"))
    failed = 'MountVolume.MountDevice failed for volume "pv" :'
    assert str(error) == f"{failed} only directory and block device are supported"
    error = await world.refusal(world.volume("/no-such", volumeMode="Block"))
    text = 'MapVolume.EvalHostSymlinks failed for volume "pv" : lstat /no-such: no such file or directory'
    assert (str(error), error.reason) == (text, "FailedMapVolume")


@pytest.mark.skipif(shutil.which("mkfs.ext4") is None, reason="the host has no mkfs.ext4")
@pytest.mark.ring3
async def test_a_device_gets_a_file_system_once_and_is_let_go_with_its_last_pod(world: World) -> None:
    volume = world.volume(world.disk())
    first = await world.mount(volume, "u1")
    (first / "file").write_text("kept")
    second = await world.mount(volume, "u2")
    await world.volumes.unmount("u1")
    assert (second / "file").read_text() == "kept"
    await world.volumes.unmount("u2")
    assert world.left() == []
    assert (await world.mount(volume, "u3") / "file").read_text() == "kept"
    await world.volumes.unmount("u3")
    error = await world.refusal(world.volume(world.disk(), mountOptions=["ro", "nonsense"]))
    failed = 'MountVolume.MountDevice failed for volume "pv" :'
    assert str(error).startswith(f"{failed} local: failed to mount device /dev/loop")
    assert "Mounting command: mount" in str(error)


@pytest.mark.ring3
async def test_a_device_is_given_as_it_is(world: World) -> None:
    device = world.disk()
    assert str(await world.mount(world.volume(device, volumeMode="Block"))) == device
    link = world.root / "pods/u1/volumeDevices/kubernetes.io~local-volume/pv"
    assert os.readlink(link) == device
    await world.volumes.unmount("u1")
    assert world.left() == []
    assert loop_devices.find(world.path / "disk") == device, "it is not kone's to take away"


@pytest.mark.ring3
async def test_a_file_becomes_a_device_for_as_long_as_it_has_pods(world: World) -> None:
    file = world.path / "file"
    file.touch()
    os.truncate(file, SIZE_BYTES)
    volume = world.volume(file, volumeMode="Block")
    device = await world.mount(volume, "u1")
    assert await world.mount(volume, "u2") == device
    assert device == Path(loop_devices.find(file) or "")
    device.write_bytes(b"x")
    os.truncate(file, 2 * SIZE_BYTES)
    world.volumes.grow(volume)
    assert int(Path("/sys/block", device.name, "size").read_text()) * 512 == 2 * SIZE_BYTES
    await world.volumes.unmount("u1")
    assert loop_devices.find(file) == str(device)
    await world.volumes.unmount("u2")
    assert loop_devices.find(file) is None
    assert file.read_bytes()[:1] == b"x"
    assert world.left() == []


@pytest.mark.ring3
async def test_a_file_that_is_gone_before_its_pod_leaves_no_device(world: World) -> None:
    file = world.path / "file"
    file.touch()
    os.truncate(file, SIZE_BYTES)
    device = await world.mount(world.volume(file, volumeMode="Block"))
    file.unlink()
    assert loop_devices.find(file) == str(device)
    await world.volumes.unmount("u1")
    assert loop_devices.find(file) is None
    assert world.left() == []
