"""What CDI specifications say of devices, in the words that Docker takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kone.runtime.cdi import Allotment, CdiError, allotment
from kone.runtime.runtime import Device, Mount


def put(folder: Path, name: str, kind: str, devices: dict[str, Any], common: dict[str, Any] | None = None) -> None:
    folder.mkdir(exist_ok=True)
    content = {
        "cdiVersion": "0.6.0",
        "kind": kind,
        "containerEdits": common or {},
        "devices": [{"name": device, "containerEdits": edits} for device, edits in devices.items()],
    }
    (folder / name).write_text(json.dumps(content))


EDITS = {
    "env": ["A=1", "B=x=y"],
    "deviceNodes": [{"path": "/dev/a"}, {"path": "/dev/b", "hostPath": "/dev/null", "permissions": "r"}],
    "mounts": [{"hostPath": "/h", "containerPath": "/c", "options": ["ro", "bind"]}],
    "additionalGids": [7],
}


def test_edits_become_devices_mounts_variables_and_groups(tmp_path: Path) -> None:
    put(tmp_path / "a", "v.json", "v.com/gpu", {"0": EDITS}, {"env": ["A=0", "ALL=1"]})
    assert allotment(["v.com/gpu=0"], [tmp_path / "a"]) == Allotment(
        (Device("/dev/a", "/dev/a"), Device("/dev/null", "/dev/b", "r")),
        (Mount("/c", "/h", read_only=True),),
        (("A", "1"), ("ALL", "1"), ("B", "x=y")),
        (7,),
    )


def test_a_specification_may_be_yaml_and_a_later_folder_wins(tmp_path: Path) -> None:
    put(tmp_path / "a", "v.json", "v.com/gpu", {"0": {"env": ["A=old"]}, "1": {"env": ["B=1"]}})
    put(tmp_path / "b", "v.yaml", "v.com/gpu", {"0": {"env": ["A=new"]}})
    found = allotment(["v.com/gpu=0", "v.com/gpu=1"], [tmp_path / "a", tmp_path / "b", tmp_path / "nowhere"])
    assert dict(found.env) == {"A": "new", "B": "1"}


def test_nothing_is_read_for_nothing(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("no json")
    assert allotment([], [tmp_path]) == Allotment()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("v.com/gpu=9", "unresolvable CDI devices v.com/gpu=9"),
        ("gpu", "unresolvable CDI devices gpu"),
        ("v.com/gpu=hooked", "CDI device v.com/gpu=hooked needs OCI hooks, which Docker's API does not take"),
    ],
)
def test_what_cannot_be_had_says_why(tmp_path: Path, name: str, why: str) -> None:
    hook = {"hooks": [{"hookName": "createContainer", "path": "/bin/x"}]}
    put(tmp_path / "a", "v.json", "v.com/gpu", {"0": {}, "hooked": hook})
    with pytest.raises(CdiError) as error:
        allotment([name], [tmp_path / "a"])
    assert str(error.value) == why


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("no json")
    with pytest.raises(CdiError, match=r"CDI specification .*/bad\.json cannot be read"):
        allotment(["v.com/gpu=0"], [tmp_path])
