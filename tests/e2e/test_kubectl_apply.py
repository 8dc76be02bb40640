"""kubectl's ways to change an object, against an API that has no node: apply from either side, diff, replace, edit."""

from __future__ import annotations

import pytest

from kone.testing import Cluster
from tests.e2e.kubectl_shell import Shell

pytestmark = pytest.mark.ring4


def manifest(value: str) -> str:
    return f"{{apiVersion: v1, kind: ConfigMap, metadata: {{name: a}}, data: {{k: '{value}'}}}}\n"


async def test_server_side_apply_with_and_without_force() -> None:
    async with Cluster(controllers=False, scheduler=False) as cluster:
        kubectl = Shell(cluster).run
        made = await kubectl("apply", "--server-side", "-f", "-", stdin=manifest("1"))
        assert made.out == "configmap/a serverside-applied\n"
        refused = await kubectl("apply", "--server-side", "--field-manager=other", "-f", "-", stdin=manifest("2"))
        assert refused.code == 1
        assert 'conflict with "kubectl": .data.k' in refused.err
        forced = await kubectl(
            *("apply", "--server-side", "--force-conflicts", "--field-manager=other", "-f", "-"), stdin=manifest("2")
        )
        assert forced.code == 0
        assert (await kubectl("get", "configmap", "a", "-o", "jsonpath={.data.k}")).out == "2"
        assert "managedFields" not in (await kubectl("get", "configmap", "a", "-o", "yaml")).out
        shown = (await kubectl("get", "configmap", "a", "-o", "yaml", "--show-managed-fields")).out
        assert "manager: other" in shown


async def test_client_side_apply_moves_to_the_server() -> None:
    async with Cluster(controllers=False, scheduler=False) as cluster:
        kubectl = Shell(cluster).run
        assert (await kubectl("apply", "-f", "-", stdin=manifest("1"))).out == "configmap/a created\n"
        assert 'k: "1"' in (await kubectl("apply", "view-last-applied", "configmap", "a")).out
        moved = await kubectl("apply", "--server-side", "-f", "-", stdin=manifest("2"))
        assert (moved.code, moved.out) == (0, "configmap/a serverside-applied\n"), moved.err
        assert 'k: "2"' in (await kubectl("apply", "view-last-applied", "configmap", "a")).out


async def test_diff_replace_and_edit() -> None:
    async with Cluster(controllers=False, scheduler=False) as cluster:
        kubectl = Shell(cluster).run
        await kubectl("apply", "-f", "-", stdin=manifest("1"))
        for side in ((), ("--server-side", "--force-conflicts")):
            found = await kubectl("diff", *side, "-f", "-", stdin=manifest("2"))
            assert found.code == 1, found.err
            assert '+  k: "2"' in found.out
        assert (await kubectl("diff", "-f", "-", stdin=manifest("1"))).code == 0
        assert (await kubectl("replace", "-f", "-", stdin=manifest("three"))).out == "configmap/a replaced\n"
        edited = await kubectl("edit", "configmap", "a", KUBE_EDITOR="sed -i s/three/four/")
        assert edited.out == "configmap/a edited\n", edited.err
        assert (await kubectl("get", "configmap", "a", "-o", "jsonpath={.data.k}")).out == "four"
        shown = (await kubectl("get", "configmap", "a", "-o", "yaml", "--show-managed-fields")).out
        assert "manager: kubectl-edit" in shown
