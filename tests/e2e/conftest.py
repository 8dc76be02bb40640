"""The whole node that ring 4 shares, the image its pods run, and a namespace for each test."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.node_process import BIN, NodeProcess, eventually, run

IMAGE = "kone-test/busybox:4"
INSTANCE = "e2e"
MANIFESTS = "manifests"  # of static pods, beside the node's data
INGRESS_PORT, INGRESS_TLS_PORT = 18476, 18477


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What looks for traces runs first: what the shared node does meanwhile would look like one."""
    items.sort(key=lambda item: not item.path.name.startswith("test_no_traces"))


@pytest.fixture(scope="session")
def image() -> str:
    """An image of Debian's static busybox with all its applets: no registry is needed."""
    if run("docker", "image", "ls", "--quiet", IMAGE):
        return IMAGE
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in ("bin", "etc", "tmp"):
            (root / name).mkdir()
        shutil.copy("/bin/busybox", root / "bin")
        for applet in run("/bin/busybox", "--list").split():
            if applet != "busybox":
                (root / "bin" / applet).symlink_to("busybox")
        # Debian's static busybox crashes in wget without this file: its C library looks for plug-ins.
        (root / "etc" / "nsswitch.conf").write_text("hosts: files\n")
        (root / "tmp").chmod(0o1777)
        changes = ("--change", "ENV PATH=/bin", "--change", 'CMD ["/bin/sh"]')
        run("tar", "-C", root, "-cf", root / "image.tar", "bin", "etc", "tmp")
        run("docker", "import", *changes, root / "image.tar", IMAGE)
    return IMAGE


def cleaned_up(process: NodeProcess, *flags: str) -> None:
    """Stop a node and remove every trace of it."""
    process.stop()
    run(BIN / "kone", "cleanup", "--data-dir", process.data, *flags)


@pytest.fixture(scope="session")
def whole_node(image: str) -> Iterator[NodeProcess]:
    """One whole node, Ready, as instance "e2e": its bridge, chains and containers are apart from any other's."""
    folder = Path(tempfile.mkdtemp(prefix="kone-e2e-"))
    ingress = ("--ingress-http-port", str(INGRESS_PORT), "--ingress-https-port", str(INGRESS_TLS_PORT))
    (folder / MANIFESTS).mkdir()
    manifests = ("--pod-manifest-path", str(folder / MANIFESTS))
    process = NodeProcess(
        folder / "data", "--secure-port", "0", "--instance", INSTANCE, "--log-level", "info", *ingress, *manifests
    )
    try:
        process.start()
        eventually(
            lambda: (
                subprocess.run(
                    [BIN / "kone", "status", "--data-dir", process.data], capture_output=True, check=False
                ).returncode
                == 0
            )
        )
        yield process
    finally:
        cleaned_up(process, "--instance", INSTANCE)
        shutil.rmtree(folder)


@dataclass
class Place:
    """A namespace of a test's own on the shared node."""

    node: NodeProcess
    namespace: str
    image: str

    def kubectl(self, *words: str, check: bool = True, input: str | None = None, timeout_s: float = 120) -> str:
        return self.node.kubectl("-n", self.namespace, *words, check=check, input=input, timeout_s=timeout_s)

    def get(self, *words: str) -> dict[str, object]:
        return self.node.get("-n", self.namespace, *words)  # type: ignore[no-any-return]

    def apply(self, manifest: str) -> str:
        return self.kubectl("apply", "-f", "-", input=manifest)

    def events(self, name: str) -> list[tuple[str, str]]:
        """(reason, message) of the events about the object of that name."""
        listed = self.node.get("-n", self.namespace, "events", "--field-selector", f"involvedObject.name={name}")
        return [(e["reason"], e["message"]) for e in listed["items"]]


@pytest.fixture
def place(whole_node: NodeProcess, image: str) -> Iterator[Place]:
    namespace = f"t-{uuid.uuid4().hex[:8]}"
    whole_node.kubectl("create", "namespace", namespace)
    yield Place(whole_node, namespace, image)
    whole_node.kubectl("delete", "namespace", namespace, "--wait=false")
