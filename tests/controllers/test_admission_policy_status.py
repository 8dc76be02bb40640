"""The status of ValidatingAdmissionPolicies."""

from __future__ import annotations

from kone.controllers.admission_policy_status import ADMISSION_POLICY_STATUS_CONTROLLER, POLICIES
from tests.controllers.world import World


async def test_a_policy_is_looked_at_once_for_each_generation(world: World) -> None:
    async with world.running(ADMISSION_POLICY_STATUS_CONTROLLER):
        policy = await world.put(POLICIES, {"metadata": {"name": "p", "generation": 1}, "spec": {}})
        await world.settle()
        status = {"observedGeneration": 1, "typeChecking": {}}
        assert world.client.look(POLICIES, policy)["status"] == status
        await world.edit(POLICIES, policy, "spec", value={"failurePolicy": "Ignore"})
        await world.settle()
        assert world.client.look(POLICIES, policy)["status"]["observedGeneration"] == 2
