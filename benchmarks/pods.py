"""Pods on a whole node: from creation to Ready, beside `docker run` of the same image."""

from __future__ import annotations

import json
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.api import BIN, cpu_s, idle_percent, resident_mb
from benchmarks.report import Figure
from kone.status import UnixConnection

IMAGE = "kone-bench/busybox:1"
INSTANCE = "bench"
ROUNDS = 5
FULL = 110  # pods that a node takes


def _run(*command: str | Path) -> str:
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True).stdout


def _make_image() -> None:
    with tempfile.TemporaryDirectory() as folder:
        _run("cp", "/bin/busybox", folder)
        Path(folder, "Dockerfile").write_text(
            'FROM scratch\nCOPY busybox /bin/busybox\nCMD ["/bin/busybox", "sleep", "9"]\n'
        )
        _run("docker", "build", "--quiet", "--tag", IMAGE, folder)


def docker_run_s(count: int, at_once: int) -> float:
    """Seconds until `count` containers run, so many of them started at once."""
    began = time.perf_counter()
    with ThreadPoolExecutor(at_once) as pool:
        ids = list(pool.map(lambda _: _run("docker", "run", "--detach", IMAGE).strip(), range(count)))
    took = time.perf_counter() - began
    _run("docker", "rm", "--force", *ids)
    return took


class Api:
    """The node's local door."""

    def __init__(self, data: Path) -> None:
        self._connection = UnixConnection(str(data / "kone.sock"))

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        headers = {"Content-Type": "application/json"}
        self._connection.request(method, path, json.dumps(body) if body is not None else None, headers)
        return json.loads(self._connection.getresponse().read())


class Pods:
    """Pods that are made together and seen by a watch."""

    PATH = "/api/v1/namespaces/default/pods"

    def __init__(self, data: Path, name: str, count: int) -> None:
        self._data, self._name = data, name
        self._names = [f"bench-{name}-{number}" for number in range(count)]

    def ready_s(self) -> float:
        """Seconds from the first creation until all are Ready."""
        api, watcher = Api(self._data), UnixConnection(str(self._data / "kone.sock"), timeout_s=60)
        watcher.request("GET", f"{self.PATH}?watch=1&labelSelector=bench%3D{self._name}")
        stream = watcher.getresponse()
        began = time.perf_counter()
        for name in self._names:
            container = {"name": "c", "image": IMAGE, "command": ["/bin/busybox", "sleep", "3600"]}
            metadata = {"name": name, "labels": {"bench": self._name}}
            spec = {"containers": [container], "terminationGracePeriodSeconds": 0}
            api.ask("POST", self.PATH, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
        waiting = set(self._names)
        while waiting:
            event = json.loads(stream.readline())
            conditions = event["object"].get("status", {}).get("conditions", ())
            if any(c["type"] == "Ready" and c["status"] == "True" for c in conditions):
                waiting.discard(event["object"]["metadata"]["name"])
        took = time.perf_counter() - began
        watcher.close()
        return took

    def delete(self) -> None:
        """Returns when none is left."""
        api = Api(self._data)
        for name in self._names:
            api.ask("DELETE", f"{self.PATH}/{name}?gracePeriodSeconds=0")
        while api.ask("GET", self.PATH)["items"]:
            time.sleep(0.1)


def pods_ready_s(data: Path, count: int, round_: int) -> float:
    """Seconds until `count` pods are Ready."""
    pods = Pods(data, f"r{round_}-{count}", count)
    took = pods.ready_s()
    pods.delete()
    return took


class Asking:
    """A client that asks the API something small, a hundred times a second at the most, while a block runs."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._over = threading.Event()
        self._times: list[float] = []
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> Asking:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _ask(self) -> None:
        api = Api(self._data)
        while not self._over.wait(0.01):
            began = time.perf_counter()
            api.ask("GET", "/api/v1/namespaces/default/services/kubernetes")
            self._times.append(time.perf_counter() - began)

    @property
    def p99_ms(self) -> float:
        return sorted(self._times)[len(self._times) * 99 // 100] * 1000


def full_node(data: Path, pid: int) -> Iterator[Figure]:
    """As many pods as a node takes, beside as many `docker run`s, eight at a time."""
    base = docker_run_s(FULL, 8)
    pods, before = Pods(data, "full", FULL), cpu_s(pid)
    with Asking(data) as client:
        took = pods.ready_s()
    yield Figure(f"{FULL} pods: created to Ready", took, "s", base * 1.3, "less", base, f"{FULL} x docker run")
    yield Figure(f"{FULL} pods: API p99 meanwhile", client.p99_ms, "ms", 100, "less")
    yield Figure(f"{FULL} pods: CPU for each", (cpu_s(pid) - before) / FULL * 1000, "ms")
    time.sleep(10)
    yield Figure(f"{FULL} pods: resident", resident_mb(pid), "MB", 200, "less")
    yield Figure(f"{FULL} pods: idle", idle_percent(pid, 20), "% of core", 3, "less")
    pods.delete()


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def measure() -> Iterator[Figure]:
    _make_image()
    with tempfile.TemporaryDirectory(prefix="kone-bench-") as folder:
        data = Path(folder) / "data"
        command = [str(BIN / "kone"), "server", "--data-dir", str(data), "--secure-port", "0", "--instance", INSTANCE]
        with open(Path(folder) / "log", "w") as log:
            began = time.perf_counter()
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert process.stdout is not None
            process.stdout.readline()
            while subprocess.run(
                [BIN / "kone", "status", "--data-dir", data], capture_output=True, check=False
            ).returncode:
                time.sleep(0.05)
            yield Figure("whole node: Ready (first start)", time.perf_counter() - began, "s", 5, "less")
            for count, ratio in ((1, 1.5), (10, 1.3)):
                runs = [docker_run_s(count, count) for _ in range(ROUNDS)]
                pods = [pods_ready_s(data, count, round_) for round_ in range(ROUNDS)]
                base = median(runs)
                name = f"{count} pod{'s' if count > 1 else ''}: created to Ready"
                yield Figure(name, median(pods), "s", base * ratio, "less", base, f"{count} x docker run")
            time.sleep(5)
            yield Figure("whole node: resident", resident_mb(process.pid), "MB", 120, "less")
            yield Figure("whole node: idle", idle_percent(process.pid, 30), "% of core", 0.5, "less")
            yield from full_node(data, process.pid)
        finally:
            process.terminate()
            process.wait(60)
            if process.stdout is not None:
                process.stdout.close()
            _run(BIN / "kone", "cleanup", "--data-dir", data, "--instance", INSTANCE)
