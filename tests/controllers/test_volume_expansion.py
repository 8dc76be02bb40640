"""Claims that ask for more than they have."""

from kone.apimachinery.kinds import PERSISTENTVOLUMECLAIMS, PERSISTENTVOLUMES
from kone.apimachinery.objects import Object, uid_of
from kone.controllers.volume_expansion import VOLUME_EXPANSION_CONTROLLER
from tests.controllers.world import World


def claim(asked: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "c", "namespace": "shop"},
        "spec": {"volumeName": "v", "resources": {"requests": {"storage": asked}}},
        "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}},
    }


async def test_who_expands_is_told_once_a_claim_asks_for_more(world: World) -> None:
    async with world.running(VOLUME_EXPANSION_CONTROLLER):
        pvc = await world.put(PERSISTENTVOLUMECLAIMS, claim("1Gi"))
        reference = {"namespace": "shop", "name": "c", "uid": uid_of(pvc)}
        volume = {"kind": "PersistentVolume", "metadata": {"name": "v"}, "spec": {"claimRef": reference}}
        await world.put(PERSISTENTVOLUMES, volume)
        assert await world.events() == []
        await world.edit(PERSISTENTVOLUMECLAIMS, pvc, "spec", "resources", value={"requests": {"storage": "2Gi"}})
        message = "waiting for an external controller to expand this PVC"
        assert await world.events() == [("Normal", "ExternalExpanding", message)]
