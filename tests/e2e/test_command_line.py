"""`kone server` as other tools rely on it: its one line, its files, its refusals."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
from pathlib import Path

import pytest

from tests.e2e.node_process import API_ONLY, BARE_API, BIN, NodeProcess, node, run

pytestmark = pytest.mark.ring4


def refusal(*flags: str | Path) -> tuple[int, str]:
    done = subprocess.run(
        [BIN / "kone", "server", *map(str, flags)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == ""
    return done.returncode, done.stderr


def test_an_api_only_server_says_that_it_is_ready_and_stops_on_sigterm() -> None:
    with node("--disable", API_ONLY) as server:
        assert server.ready_line.startswith("kone is ready: https://127.0.0.1:")
        assert stat.S_IMODE(server.kubeconfig.stat().st_mode) == 0o600
        assert stat.S_IMODE((server.data / "kone.sock").stat().st_mode) == 0o600
        assert server.kubectl("create", "namespace", "a") == "namespace/a created\n"
        assert "default" in server.kubectl("get", "serviceaccount", "-n", "kube-system")
        assert run(BIN / "kone", "kubeconfig", "--data-dir", server.data) == server.kubeconfig.read_text()
        assert "kone is ready" in run(BIN / "kone", "status", "--data-dir", server.data)
        unix = ["curl", "-sS", "--unix-socket", server.data / "kone.sock"]
        assert '"kind":"Namespace"' in run(*unix, "http://kone/api/v1/namespaces/a").replace(": ", ":")
        assert server.stop() == 0


def test_a_second_server_on_the_same_data_is_refused() -> None:
    with node("--disable", BARE_API) as server:
        code, said = refusal("--data-dir", server.data, "--disable", BARE_API, "--secure-port", "0")
        assert code == 1
        assert said.count("\n") == 1
        assert str(server.data) in said


def test_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        code, said = refusal(
            "--data-dir", tmp_path / "d", "--disable", BARE_API, "--bind-address", "127.0.0.1", "--secure-port", port
        )
    assert code == 1
    assert said.splitlines()[-1].startswith("kone: ")
    assert port in said
    assert "Traceback" not in said


def test_a_data_directory_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    code, said = refusal("--data-dir", file / "below", "--disable", BARE_API, "--secure-port", "0")
    assert code == 1
    assert said.count("\n") == 1
    assert str(file) in said


def test_a_wrong_flag_is_one_line(tmp_path: Path) -> None:
    assert refusal("--no-such-flag") == (
        2,
        "kone server: unrecognized arguments: --no-such-flag; see kone server --help\n",
    ) or refusal("--no-such-flag") == (2, "kone: unrecognized arguments: --no-such-flag; see kone --help\n")
    code, said = refusal("--cluster-dns", "1.1.1.1", "--data-dir", tmp_path)
    assert (code, said.count("\n")) == (2, 1)


def test_sighup_keeps_serving() -> None:
    with node("--disable", BARE_API) as server:
        assert server.process is not None
        os.kill(server.process.pid, 1)
        assert server.kubectl("get", "namespaces", "-o", "name").count("namespace/") == 4


def test_state_survives_a_restart_and_the_port_is_kept_by_flag(tmp_path: Path) -> None:
    server = NodeProcess(tmp_path / "data", "--bind-address", "127.0.0.1", "--secure-port", "0", "--disable", BARE_API)
    try:
        server.start()
        server.kubectl("create", "configmap", "kept", "--from-literal=a=b")
        server.stop()
        server.start()
        assert server.get("configmap", "kept")["data"] == {"a": "b"}
    finally:
        server.stop()
