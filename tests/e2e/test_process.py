"""`kone server` as a process among others: systemd, signals, the local door, settings from outside, and databases."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from cryptography import x509

from tests.contracts.postgres import postgres_server
from tests.e2e.node_process import API_ONLY, BARE_API, BIN, NodeProcess, eventually, node, run

pytestmark = pytest.mark.ring4


@contextmanager
def systemd(folder: Path) -> Iterator[socket.socket]:
    """What listens where NOTIFY_SOCKET points."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(folder / "notify"))
        listener.settimeout(10)
        yield listener


def told(listener: socket.socket, wanted: str) -> str:
    """The first message with that assignment, after those before it."""
    while True:
        message = listener.recv(4096).decode()
        if wanted in message.splitlines():
            return message


def served_serial(server: NodeProcess) -> int:
    host, port = server.ready_line.split("https://")[1].split()[0].split(":")
    return x509.load_pem_x509_certificate(ssl.get_server_certificate((host, int(port))).encode()).serial_number


def whoami(*command: str | Path) -> dict[str, object]:
    """Who the API takes a program for that comes through the local door."""
    body = '{"apiVersion":"authentication.k8s.io/v1","kind":"SelfSubjectReview"}'
    url = "http://kone/apis/authentication.k8s.io/v1/selfsubjectreviews"
    said = run(*command, "-H", "Content-Type: application/json", "-d", body, url)
    return json.loads(said)["status"]["userInfo"]  # type: ignore[no-any-return]


def test_systemd_hears_of_every_stage_and_of_the_watchdog(tmp_path: Path) -> None:
    env = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"}
    flags = ("--bind-address", "127.0.0.1", "--secure-port", "0", "--disable", BARE_API)
    server = NodeProcess(tmp_path / "data", *flags, env=env)
    with systemd(tmp_path) as listener:
        try:
            server.start()
            assert listener.recv(4096) == b"STATUS=starting"
            assert "STATUS=serving https://127.0.0.1:" in told(listener, "READY=1")
            assert told(listener, "WATCHDOG=1")
            assert server.process is not None
            server.process.send_signal(signal.SIGHUP)
            reloading = listener.recv(4096).decode()
            while reloading == "WATCHDOG=1":
                reloading = listener.recv(4096).decode()
            assert reloading.startswith("RELOADING=1\nMONOTONIC_USEC=")
            told(listener, "READY=1")
        finally:
            assert server.stop() == 0
        assert "STATUS=stopping" in told(listener, "STOPPING=1")


def test_sighup_serves_new_certificates_and_takes_the_log_level_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "kone.yaml"
    file.write_text("log-level: warning\n")
    with node("--disable", BARE_API, "--config", str(file)) as server:
        before = served_serial(server)
        watch = subprocess.Popen(
            [BIN / "kubectl", "--kubeconfig", server.kubeconfig, "get", "namespaces", "-w", "-o", "name"],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert watch.stdout is not None
        assert watch.stdout.readline() == "namespace/default\n"
        (server.data / "pki" / "apiserver.crt").unlink()
        file.write_text("log-level: debug\n")
        assert server.process is not None
        server.process.send_signal(signal.SIGHUP)
        eventually(lambda: served_serial(server) != before, within_s=10)
        eventually(lambda: "certificates and log level reloaded" in server.log.read_text(), within_s=10)
        server.kubectl("create", "namespace", "after")
        assert any(line == "namespace/after\n" for line in watch.stdout), "who was connected stays so"
        watch.terminate()
        watch.wait()
        watch.stdout.close()


def test_the_local_door_knows_who_comes(tmp_path: Path) -> None:
    with node("--disable", BARE_API) as server:
        curl = ("curl", "-sS", "--unix-socket", str(server.data / "kone.sock"))
        root = whoami(*curl)
        assert "system:masters" in root["groups"]  # type: ignore[operator]
        # The file's mode is the first lock; where somebody opened it, the peer's own user id counts.
        for part in (server.data, server.data.parent):
            part.chmod(0o755)
        as_nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
        refused = subprocess.run(
            [*as_nobody, *curl, "http://kone/version"], capture_output=True, text=True, check=False
        )
        assert refused.returncode == 7
        (server.data / "kone.sock").chmod(0o666)
        answer = run(*as_nobody, *curl, "-o", "/dev/null", "-w", "%{http_code}", "http://kone/api/v1/secrets")
        assert answer in ("401", "403")


def test_settings_come_from_the_environment_and_a_file(tmp_path: Path) -> None:
    file = tmp_path / "kone.yaml"
    file.write_text("service-cidr: 10.77.0.0/16\nsecure-port: 1\n")
    env = {"KONE_CONFIG": str(file), "KONE_SECURE_PORT": "0", "KONE_DISABLE": API_ONLY}
    server = NodeProcess(tmp_path / "data", "--bind-address", "127.0.0.1", env=env)
    try:
        server.start()
        eventually(lambda: "10.77.0.1" in server.kubectl("get", "service", "kubernetes", check=False))
        host = server.ready_line.split("https://127.0.0.1:")[1].split()[0]
        assert int(host) > 1024
    finally:
        server.stop()


def test_postgresql_by_url_keeps_what_was_written(tmp_path: Path) -> None:
    with postgres_server() as database:
        flags = ("--bind-address", "127.0.0.1", "--secure-port", "0", "--disable", API_ONLY)
        for data in ("one", "two"):
            server = NodeProcess(tmp_path / data, *flags, "--datastore", database.url)
            try:
                server.start()
                server.kubectl("create", "configmap", data, "--from-literal=a=b")
                names = server.kubectl("get", "configmaps", "-o", "name").split()
                assert not list((tmp_path / data).glob("*.db"))
            finally:
                server.stop()
        assert {"configmap/one", "configmap/two"} <= set(names)


def test_a_database_of_a_newer_kone_is_refused_in_one_line(tmp_path: Path) -> None:
    flags = ("--bind-address", "127.0.0.1", "--secure-port", "0", "--disable", BARE_API)
    server = NodeProcess(tmp_path / "data", *flags)
    server.start()
    server.stop()
    (database,) = (tmp_path / "data").glob("*.db")
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("update kone_marks set value = 1000 where name = 'schema'")
    refused = subprocess.run(
        [BIN / "kone", "server", "--data-dir", tmp_path / "data", *flags], capture_output=True, text=True, check=False
    )
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert "run the newer kone, or restore a backup from before it" in refused.stderr


def test_a_user_without_root_runs_the_api_controllers_and_scheduler(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents:
        if parent.stat().st_uid == 0 and not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o011)
    command = [BIN / "kone", "server", "--data-dir", tmp_path / "data", "--bind-address", "127.0.0.1"]
    command += ["--secure-port", "0", "--disable", API_ONLY]
    server = subprocess.Popen(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"HOME": str(tmp_path)},
    )
    assert server.stdout is not None
    try:
        assert server.stdout.readline().startswith("kone is ready: ")
        curl = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "curl", "-sS")
        user = whoami(*curl, "--unix-socket", str(tmp_path / "data" / "kone.sock"))
        assert "system:masters" in user["groups"], "who started it is its administrator"  # type: ignore[operator]
    finally:
        server.terminate()
        server.communicate(timeout=60)
    assert server.returncode == 0
