"""hostPath volumes: what is made, what is refused, and in which words."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from kone.runtime.host_path import prepare
from kone.runtime.parts import VolumeError


def test_directories_and_files_are_made_where_the_type_says_so(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        prepare(str(tmp_path / "a" / "d"), "DirectoryOrCreate")
        prepare(str(tmp_path / "f"), "FileOrCreate")
        prepare(str(tmp_path / "any"), "")
    finally:
        os.umask(before)
    assert (tmp_path / "a" / "d").stat().st_mode & 0o7777 == 0o755
    assert (tmp_path / "f").stat().st_mode & 0o7777 == 0o644
    assert (tmp_path / "any").is_dir()


def test_what_is_there_stays_as_it_is(tmp_path: Path) -> None:
    place = tmp_path / "f"
    place.write_text("mine")
    for kind in ("", "File", "FileOrCreate"):
        prepare(str(place), kind)
    assert place.read_text() == "mine"
    prepare(str(tmp_path), "Directory")
    prepare("/dev/null", "CharDevice")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        prepare(str(tmp_path / "s"), "Socket")


@pytest.mark.parametrize(
    ("path", "kind", "text"),
    [
        (
            "/no/such",
            "Directory",
            "hostPath type check failed, /no/such is not a directory, unable to determine its type: "
            'path "/no/such" does not exist',
        ),
        (
            "/no/such",
            "Socket",
            "hostPath type check failed, /no/such is not a socket file, unable to determine its type: "
            'path "/no/such" does not exist',
        ),
        ("/dev/null", "BlockDevice", "hostPath type check failed: /dev/null is not a block device, it's a CharDevice"),
        ("/dev/null", "FileOrCreate", "hostPath type check failed: /dev/null is not a file, it's a CharDevice"),
        ("/etc", "File", "hostPath type check failed: /etc is not a file, it's a Directory"),
        ("/etc/../x", "", "invalid HostPath `/etc/../x`: must not contain '..'"),
        ("/etc", "Door", "Door is an invalid volume type"),
    ],
)
def test_what_is_not_as_its_type_says_is_refused(path: str, kind: str, text: str) -> None:
    with pytest.raises(VolumeError) as caught:
        prepare(path, kind)
    assert str(caught.value) == text


def test_a_pipe_is_of_no_type(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p")
    with pytest.raises(VolumeError, match="only recognise file, directory, socket, block device and character device"):
        prepare(str(tmp_path / "p"), "File")
