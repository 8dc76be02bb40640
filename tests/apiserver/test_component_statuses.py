"""ComponentStatuses: what runs answers, and what does not is not reached."""

from __future__ import annotations

import pytest

from kone.apimachinery.errors import StatusError
from kone.apiserver.component_statuses import COMPONENTSTATUSES, ComponentStatuses


async def test_parts_are_healthy_where_they_run() -> None:
    statuses = ComponentStatuses()
    statuses.running.add("scheduler")
    found = {obj["metadata"]["name"]: obj["conditions"] for obj in await statuses.list(COMPONENTSTATUSES, "")}
    ok = [{"type": "Healthy", "status": "True", "message": "ok"}]
    assert found["etcd-0"] == found["scheduler"] == ok
    why = 'Get "https://127.0.0.1:10257/healthz": dial tcp 127.0.0.1:10257: connect: connection refused'
    assert found["controller-manager"] == [{"type": "Healthy", "status": "False", "message": why}]
    assert (await statuses.get(COMPONENTSTATUSES, "scheduler", ""))["conditions"] == ok
    with pytest.raises(StatusError) as refused:
        await statuses.get(COMPONENTSTATUSES, "kubelet", "")
    assert refused.value.message == 'componentstatuses "kubelet" not found'
