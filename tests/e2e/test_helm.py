"""Helm's life of a release with a definition, an object of it, hooks and a test, by each `helm` that KONE_TEST_HELM
names (programs, parted by ":"), else by the one on the PATH; CI has none, and building one takes minutes:

    GOBIN=/var/tmp/helm3 go install helm.sh/helm/v3/cmd/helm@latest   # and v4
    KONE_TEST_HELM=/var/tmp/helm3/helm:/var/tmp/helm4/helm make test
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import Place
from tests.e2e.node_process import eventually, run

CHART = Path(__file__).parent / "chart"
HELMS = [helm for helm in os.environ.get("KONE_TEST_HELM", shutil.which("helm") or "").split(":") if helm]
pytestmark = [pytest.mark.ring4, pytest.mark.skipif(not HELMS, reason="no helm on the PATH nor in KONE_TEST_HELM")]

Helm = Callable[..., str]


@pytest.fixture(params=HELMS or ["helm"])
def helm(request: pytest.FixtureRequest, place: Place) -> Helm:
    """helm in the test's namespace, with the chart's image."""

    def call(*words: str, check: bool = True) -> str:
        where = ("--kubeconfig", str(place.node.kubeconfig), "--namespace", place.namespace)
        return run(request.param, *where, *words, check=check)

    return call


def installed(place: Place, helm: Helm, *words: str, verb: str = "install", check: bool = True) -> str:
    image = ("--set", f"image={place.image}")
    return helm(verb, "web", str(CHART), *image, "--wait", "--timeout", "60s", *words, check=check)


def revisions(helm: Helm) -> list[tuple[int, str]]:
    return [(each["revision"], each["status"]) for each in json.loads(helm("history", "web", "-o", "json"))]


def greeting(place: Place) -> str:
    return place.kubectl("get", "greeting", "web", "-o", "jsonpath={.spec.text}")


def test_a_release_is_installed_upgraded_rolled_back_and_removed(place: Place, helm: Helm) -> None:
    assert "STATUS: deployed" in installed(place, helm)
    assert greeting(place) == "hello"
    assert place.kubectl("logs", "job/web-pre-install") == "pre-install\n"
    assert "Succeeded" in helm("test", "web", "--logs")

    installed(place, helm, "--set", "greeting=servus", verb="upgrade")
    assert greeting(place) == "servus"
    assert place.kubectl("logs", "job/web-post-upgrade") == "post-upgrade\n"

    helm("rollback", "web", "1", "--wait")
    assert greeting(place) == "hello"
    assert revisions(helm) == [(1, "superseded"), (2, "superseded"), (3, "deployed")]
    assert [each["name"] for each in json.loads(helm("list", "-o", "json"))] == ["web"]
    assert "kind: Greeting" in helm("get", "manifest", "web")
    assert "servus" in helm("get", "values", "web", "--revision", "2")

    helm("uninstall", "web", "--wait")
    gone = ("get", "deployment,service,configmap,greeting", "-l", "app!=x", "-o", "name")
    eventually(lambda: "web" not in place.kubectl(*gone))


def test_what_cannot_be_is_refused_or_rolled_back(place: Place, helm: Helm) -> None:
    installed(place, helm)
    long = installed(place, helm, "--set", "greeting=" + "long" * 9, verb="upgrade", check=False)
    assert "spec.text: Too long: may not be more than 20 bytes" in long
    safely = "--atomic" if "v3." in helm("version", "--template", "{{.Version}}") else "--rollback-on-failure"
    failed = installed(place, helm, "--set", "prepare=false", safely, "--timeout", "5s", verb="upgrade", check=False)
    assert "has been rolled back" in failed
    assert [status for _, status in revisions(helm)] == ["superseded", "failed", "failed", "deployed"]
    helm("uninstall", "web")


def test_what_helm_renders_is_applied_by_kubectl(place: Place, helm: Helm) -> None:
    rendered = helm("template", "web", str(CHART), "--include-crds", "--no-hooks", "--set", f"image={place.image}")
    definition, _, rest = rendered.partition("---\n# Source: greeter/templates/")
    place.apply(definition)
    place.kubectl("wait", "--for=condition=Established", "crd/greetings.chart.kone.dev", "--timeout=20s")
    place.apply("---\n# Source: greeter/templates/" + rest)
    place.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
    assert greeting(place) == "hello"
