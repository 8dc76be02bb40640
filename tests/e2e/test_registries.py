"""Private images from a real registry: Debian's docker-registry with TLS and htpasswd; Docker trusts it by its CA."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import ssl
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.e2e.conftest import Place, cleaned_up
from tests.e2e.node_process import NodeProcess, eventually, run

pytestmark = pytest.mark.ring4

HOST = "registry.kone.test"  # Docker asks 127.0.0.1 and localhost without TLS where it must
PORT = 18478
USER, PASSWORD = "puller", "s3cret"
AUDIENCE = "pull.kone.test"


@dataclass(frozen=True)
class Registry:
    """`address` is as images name it."""

    address: str
    folder: Path
    pushed: list[str] = field(default_factory=list)

    def push(self, image: str) -> str:
        """The name of a fresh private copy of an image, which is not on the node any more."""
        name = f"{self.address}/team-{uuid.uuid4().hex[:6]}/app:1"
        # An image of its own: what was pulled is on record by its id, and the shared one is everybody's.
        run("docker", "build", "-q", "--label", f"copy={name}", "-t", name, "-", input=f"FROM {image}\n")
        run("docker", "--config", self.folder / "docker", "push", "--quiet", name)
        run("docker", "image", "rm", name)
        self.pushed.append(name)
        return name

    def remove(self) -> None:
        """What pods have pulled."""
        for name in self.pushed:
            run("docker", "image", "rm", name, check=False)

    def secret(self, name: str, password: str, kind: str = "dockerconfigjson") -> str:
        auth = {self.address: {"auth": base64.b64encode(f"{USER}:{password}".encode()).decode()}}
        content = {"auths": auth} if kind == "dockerconfigjson" else auth
        data = {f".{kind}": base64.b64encode(json.dumps(content).encode()).decode()}
        return json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": name},
                "type": f"kubernetes.io/{kind}",
                "data": data,
            }
        )


@pytest.fixture(scope="module")
def registry() -> Iterator[Registry]:
    folder = Path(tempfile.mkdtemp(prefix="kone-registry-"))
    trusted, hosts = Path(f"/etc/docker/certs.d/{HOST}:{PORT}"), Path("/etc/hosts")
    names_before = hosts.read_text()
    run(
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
        *("-days", "2", "-subj", f"/CN={HOST}", "-addext", f"subjectAltName=DNS:{HOST}"),
        *("-keyout", folder / "key.pem", "-out", folder / "cert.pem"),
    )
    (folder / "htpasswd").write_text(run("htpasswd", "-Bbn", USER, PASSWORD))
    (folder / "config.yml").write_text(
        f"""
version: 0.1
log: {{level: warn}}
storage: {{filesystem: {{rootdirectory: {folder}/data}}}}
http:
  addr: 127.0.0.1:{PORT}
  tls: {{certificate: {folder}/cert.pem, key: {folder}/key.pem}}
auth: {{htpasswd: {{realm: kone, path: {folder}/htpasswd}}}}
"""
    )
    trusted.mkdir(parents=True, exist_ok=True)
    shutil.copy(folder / "cert.pem", trusted / "ca.crt")
    hosts.write_text(f"{names_before.rstrip()}\n127.0.0.1 {HOST}\n")
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(["docker-registry", "serve", folder / "config.yml"], stdout=log, stderr=log)
    try:
        eventually(lambda: answers(folder / "cert.pem"))
        found = Registry(f"{HOST}:{PORT}", folder)
        login = ("docker", "--config", folder / "docker", "login", "--username", USER, "--password-stdin")
        # dockerd looks at /etc/hosts again after some seconds only
        eventually(lambda: "Login Succeeded" in run(*login, found.address, check=False, input=PASSWORD))
        try:
            yield found
        finally:
            found.remove()
    finally:
        process.terminate()
        process.wait(30)
        hosts.write_text(names_before)
        shutil.rmtree(trusted)
        shutil.rmtree(folder)


def answers(certificate: Path) -> bool:
    context = ssl.create_default_context(cafile=str(certificate))
    try:
        with (
            socket.create_connection(("127.0.0.1", PORT), 5) as plain,
            context.wrap_socket(plain, server_hostname=HOST),
        ):
            return True
    except OSError:
        return False


def pod(name: str, image: str, policy: str = "IfNotPresent", **spec: object) -> str:
    container = {"name": "c", "image": image, "imagePullPolicy": policy, "command": ["sleep", "1000"]}
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name},
            "spec": {"containers": [container], "terminationGracePeriodSeconds": 0, **spec},
        }
    )


def becomes_ready(place: Place, name: str) -> None:
    place.kubectl("wait", "--for=condition=Ready", f"pod/{name}", "--timeout=60s")


def waits_because(place: Place, name: str, *reasons: str) -> None:
    def reason() -> bool:
        statuses = place.get("pod", name)["status"].get("containerStatuses") or [{}]  # type: ignore[attr-defined]
        return statuses[0].get("state", {}).get("waiting", {}).get("reason") in reasons

    eventually(reason)


NOT_PULLED = ("ErrImagePull", "ImagePullBackOff")


def test_a_private_image_runs_for_those_who_have_the_secret_and_for_nobody_else(
    registry: Registry, place: Place, image: str
) -> None:
    private = registry.push(image)
    place.apply(registry.secret("right", PASSWORD))
    place.apply(registry.secret("old", PASSWORD, "dockercfg"))
    place.apply(registry.secret("wrong", "guess"))
    place.apply(pod("without", private))
    place.apply(pod("guesser", private, imagePullSecrets=[{"name": "wrong"}]))
    waits_because(place, "without", *NOT_PULLED)
    waits_because(place, "guesser", *NOT_PULLED)
    place.apply(pod("owner", private, imagePullSecrets=[{"name": "wrong"}, {"name": "right"}]))
    becomes_ready(place, "owner")
    told = place.events("owner")
    assert ("Pulling", f'Pulling image "{private}"') in told
    assert any(
        reason == "Pulled"
        and text.startswith(f'Successfully pulled image "{private}" in ')
        and " including waiting). Image size: " in text
        for reason, text in told
    )
    # It is on the node now: whoever has the same password may use it, whoever has none may not.
    place.apply(pod("friend", private, "Never", imagePullSecrets=[{"name": "old"}]))
    becomes_ready(place, "friend")
    place.apply(pod("thief", private, "Never"))
    waits_because(place, "thief", "ErrImageNeverPull")
    waits_because(place, "without", *NOT_PULLED)


def test_a_service_account_brings_its_pods_the_secret(registry: Registry, place: Place, image: str) -> None:
    private = registry.push(image)
    place.apply(registry.secret("right", PASSWORD))
    eventually(lambda: "default" in place.kubectl("get", "serviceaccounts", "-o", "name", check=False))
    place.kubectl("patch", "serviceaccount", "default", "-p", '{"imagePullSecrets": [{"name": "right"}]}')
    place.apply(pod("p", private, "Always"))
    becomes_ready(place, "p")


def granted(audience: str) -> dict[str, object]:
    """The node may have tokens of an audience that no pod's volume names."""
    rbac = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "pull-tokens"}}
    rules = [{"apiGroups": [""], "resources": [audience], "verbs": ["request-serviceaccounts-token-audience"]}]
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "pull-tokens"}
    nodes = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:nodes"}
    items = [
        {**rbac, "kind": "ClusterRole", "rules": rules},
        {**rbac, "kind": "ClusterRoleBinding", "roleRef": role, "subjects": [nodes]},
    ]
    return {"apiVersion": "v1", "kind": "List", "items": items}


def test_a_program_gives_the_credentials_by_the_pods_service_account(
    registry: Registry, image: str, tmp_path: Path
) -> None:
    private = registry.push(image)
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    said = {
        "kind": "CredentialProviderResponse",
        "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
        "cacheKeyType": "Registry",
        "auth": {registry.address: {"username": USER, "password": PASSWORD}},
    }
    (bin_dir / "giver").write_text(f"#!/bin/sh\ncat > {tmp_path}/asked\ncat <<'END'\n{json.dumps(said)}\nEND\n")
    (bin_dir / "giver").chmod(0o755)
    config = {
        "kind": "CredentialProviderConfig",
        "apiVersion": "kubelet.config.k8s.io/v1",
        "providers": [
            {
                "name": "giver",
                "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
                "matchImages": [f"*.kone.test:{registry.address.rpartition(':')[2]}"],
                "defaultCacheDuration": "1h",
                "tokenAttributes": {
                    "serviceAccountTokenAudience": AUDIENCE,
                    "requireServiceAccount": True,
                    "requiredServiceAccountAnnotationKeys": ["kone.test/role"],
                    "cacheType": "ServiceAccount",
                },
            }
        ],
    }
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    node = NodeProcess(
        *(tmp_path / "data", "--secure-port", "0", "--bind-address", "127.0.0.1", "--instance", "regplug"),
        *("--disable", "ingress,loadbalancer,dns,proxy"),
        *("--image-credential-provider-config", str(tmp_path / "config.yaml")),
        *("--image-credential-provider-bin-dir", str(bin_dir)),
    )
    try:
        node.start()
        place = Place(node, "default", image)
        for name in ("robot", "nobody"):
            place.kubectl("create", "serviceaccount", name)
        place.kubectl("annotate", "serviceaccount", "robot", "kone.test/role=puller")
        place.apply(json.dumps(granted(AUDIENCE)))
        place.apply(pod("p", private, serviceAccountName="robot"))
        becomes_ready(place, "p")
        asked = json.loads((tmp_path / "asked").read_text())
        assert asked["image"] == private.rpartition(":")[0]
        assert asked["serviceAccountAnnotations"] == {"kone.test/role": "puller"}
        assert asked["serviceAccountToken"].count(".") == 2
        place.apply(pod("other", private, "Never", serviceAccountName="nobody"))
        waits_because(place, "other", "ErrImageNeverPull")
        place.kubectl("delete", "pods", "--all", "--grace-period=0", "--force")
    finally:
        cleaned_up(node, "--instance", "regplug")
