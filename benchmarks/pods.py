"""Pods on a whole node: from creation to Ready, beside `docker run` of the same image."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.api import BIN, idle_percent, resident_mb
from benchmarks.report import Figure
from kone.status import UnixConnection

IMAGE = "kone-bench/busybox:1"
INSTANCE = "bench"
ROUNDS = 5


def _run(*command: str | Path) -> str:
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True).stdout


def _make_image() -> None:
    with tempfile.TemporaryDirectory() as folder:
        _run("cp", "/bin/busybox", folder)
        Path(folder, "Dockerfile").write_text(
            'FROM scratch\nCOPY busybox /bin/busybox\nCMD ["/bin/busybox", "sleep", "9"]\n'
        )
        _run("docker", "build", "--quiet", "--tag", IMAGE, folder)


def docker_run_s(count: int) -> float:
    """Seconds until `count` containers, started together, run."""
    began = time.perf_counter()
    with ThreadPoolExecutor(count) as pool:
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


def pods_ready_s(data: Path, count: int, round_: int) -> float:
    """Seconds from the first creation until `count` pods are Ready, seen by a watch."""
    api, watcher = Api(data), UnixConnection(str(data / "kone.sock"))
    path = "/api/v1/namespaces/default/pods"
    names = {f"bench-{round_}-{count}-{number}" for number in range(count)}
    watcher.request("GET", f"{path}?watch=1&labelSelector=bench%3Dr{round_}-{count}")
    stream = watcher.getresponse()
    began = time.perf_counter()
    for name in sorted(names):
        container = {"name": "c", "image": IMAGE}
        metadata = {"name": name, "labels": {"bench": f"r{round_}-{count}"}}
        spec = {"containers": [container], "terminationGracePeriodSeconds": 0}
        api.ask("POST", path, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    waiting = set(names)
    while waiting:
        event = json.loads(stream.readline())
        conditions = event["object"].get("status", {}).get("conditions", ())
        if any(c["type"] == "Ready" and c["status"] == "True" for c in conditions):
            waiting.discard(event["object"]["metadata"]["name"])
    took = time.perf_counter() - began
    watcher.close()
    for name in names:
        api.ask("DELETE", f"{path}/{name}?gracePeriodSeconds=0")
    while api.ask("GET", path)["items"]:
        time.sleep(0.1)
    return took


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
                runs = [docker_run_s(count) for _ in range(ROUNDS)]
                pods = [pods_ready_s(data, count, round_) for round_ in range(ROUNDS)]
                base = median(runs)
                name = f"{count} pod{'s' if count > 1 else ''}: created to Ready"
                yield Figure(name, median(pods), "s", base * ratio, "less", base, f"{count} x docker run")
            time.sleep(5)
            yield Figure("whole node: resident", resident_mb(process.pid), "MB", 120, "less")
            yield Figure("whole node: idle", idle_percent(process.pid, 30), "% of core", 0.5, "less")
        finally:
            process.terminate()
            process.wait(60)
            if process.stdout is not None:
                process.stdout.close()
            _run(BIN / "kone", "cleanup", "--data-dir", data, "--instance", INSTANCE)
