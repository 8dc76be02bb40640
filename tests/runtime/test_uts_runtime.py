"""The OCI runtime in front of runc: what it changes in a container's configuration, and how dockerd learns of it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kone.runtime.uts_runtime import SCRIPT, RuntimeInstallError, install, remove


def config(*namespaces: dict[str, str]) -> dict[str, Any]:
    """As Docker writes it for runc, with quotes where they could be taken for structure."""
    return {
        "ociVersion": "1.0.2",
        "process": {"args": ["echo", '{"type":"uts"}', '"hostname":"x",'], "env": []},
        "hostname": "pod",
        "mounts": [],
        "linux": {"namespaces": [{"type": "mount"}, *namespaces, {"type": "uts"}]},
    }


def run(tmp_path: Path, content: dict[str, Any], *words: str) -> tuple[dict[str, Any], str]:
    """The configuration as runc finds it, and the words that it is given."""
    (tmp_path / "b").mkdir(exist_ok=True)
    path = tmp_path / "b/config.json"
    path.write_text(json.dumps(content, separators=(",", ":")))
    script = tmp_path / "kone-runc"
    script.write_text(SCRIPT.replace("@RUNC@", "/bin/echo"))
    words = tuple(word.replace("BUNDLE", str(tmp_path / "b")) for word in words)
    said = subprocess.run(["/bin/sh", script, *words], capture_output=True, text=True, check=True).stdout
    return json.loads(path.read_text()), said.strip()


IPC = {"type": "ipc", "path": "/proc/123/ns/ipc"}
CREATE = ("--root", "/run/create", "--log", "l", "create", "--bundle", "BUNDLE", "--pid-file", "p", "id")


@pytest.mark.parametrize("words", [CREATE, ("run", "--bundle=BUNDLE", "id"), ("create", "-b", "BUNDLE", "id")])
def test_who_joins_a_process_ipc_joins_its_host_name(tmp_path: Path, words: tuple[str, ...]) -> None:
    found, said = run(tmp_path, config(IPC), *words)
    assert found["linux"]["namespaces"][-1] == {"type": "uts", "path": "/proc/123/ns/uts"}
    assert "hostname" not in found  # runc would set it anew
    assert found["process"] == config()["process"]
    assert said.split()[0] == words[0]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (config({"type": "ipc"}), CREATE),
        (config(), CREATE),
        (config(IPC), ("start", "id")),
        (config(IPC), ("--root", "create", "state", "--bundle", "BUNDLE", "id")),
    ],
    ids=["an IPC namespace of its own", "the host's", "another command", "another command among other words"],
)
def test_nothing_else_is_changed(tmp_path: Path, content: dict[str, Any], words: tuple[str, ...]) -> None:
    assert run(tmp_path, content, *words)[0] == content


def test_dockerds_configuration_keeps_what_else_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: "/usr/sbin/runc")
    daemon, bin_dir = tmp_path / "docker/daemon.json", tmp_path / "bin"
    said = list(install(bin_dir, "tcp://elsewhere", daemon))
    assert said[-1] == "have dockerd read its configuration: systemctl reload docker"
    assert json.loads(daemon.read_text()) == {"runtimes": {"kone": {"path": f"{bin_dir}/kone-runc"}}}
    assert "exec /usr/sbin/runc" in (bin_dir / "kone-runc").read_text()
    assert (bin_dir / "kone-runc").stat().st_mode & 0o777 == 0o755
    daemon.write_text(json.dumps({"runtimes": {"other": {"path": "/x"}}, "debug": True}))
    list(install(bin_dir, "tcp://elsewhere", daemon))
    list(remove(bin_dir, "tcp://elsewhere", daemon))
    assert json.loads(daemon.read_text()) == {"runtimes": {"other": {"path": "/x"}}, "debug": True}
    assert not (bin_dir / "kone-runc").exists()
    daemon.write_text("no json")
    with pytest.raises(RuntimeInstallError):
        list(install(bin_dir, "tcp://elsewhere", daemon))
