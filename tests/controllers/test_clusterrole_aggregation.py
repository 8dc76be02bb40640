"""ClusterRoles that gather the rules of others."""

from kone.apimachinery.kinds import CLUSTERROLES
from kone.apimachinery.objects import Object
from kone.controllers.clusterrole_aggregation import CLUSTERROLE_AGGREGATION_CONTROLLER
from tests.controllers.world import World

READ = {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}
LIST = {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}
WRITE = {"apiGroups": [""], "resources": ["pods"], "verbs": ["create"]}


def role(name: str, rules: list[Object], **labels: str) -> Object:
    return {"kind": "ClusterRole", "metadata": {"name": name, "labels": labels}, "rules": rules}


def gathering(name: str, *selectors: Object, **labels: str) -> Object:
    rule = {"clusterRoleSelectors": [{"matchLabels": selector} for selector in selectors]}
    return {**role(name, [], **labels), "aggregationRule": rule}


def rules_of(world: World, made: Object) -> list[Object]:
    return list(world.client.look(CLUSTERROLES, made)["rules"])


async def test_gathers_in_the_order_of_names_each_rule_once(world: World) -> None:
    async with world.running(CLUSTERROLE_AGGREGATION_CONTROLLER):
        await world.put(CLUSTERROLES, role("b", [LIST], to="view"))
        await world.put(CLUSTERROLES, role("a", [READ, LIST], to="view"))
        await world.put(CLUSTERROLES, role("c", [WRITE], to="edit"))
        view = await world.put(CLUSTERROLES, gathering("view", {"to": "view"}))
        assert rules_of(world, view) == [READ, LIST]


async def test_follows_roles_that_come_change_and_go(world: World) -> None:
    async with world.running(CLUSTERROLE_AGGREGATION_CONTROLLER):
        view = await world.put(CLUSTERROLES, gathering("view", {"to": "view"}))
        made = await world.put(CLUSTERROLES, role("a", [READ], to="view"))
        assert rules_of(world, view) == [READ]
        await world.edit(CLUSTERROLES, made, "rules", value=[WRITE])
        assert rules_of(world, view) == [WRITE]
        await world.client.delete(CLUSTERROLES, "a")
        await world.settle()
        assert rules_of(world, view) == []


async def test_gathers_what_others_gather_but_not_itself(world: World) -> None:
    async with world.running(CLUSTERROLE_AGGREGATION_CONTROLLER):
        edit = await world.put(CLUSTERROLES, gathering("edit", {"to": "edit"}, to="edit"))
        await world.put(CLUSTERROLES, gathering("view", {"to": "view"}, to="edit"))
        await world.put(CLUSTERROLES, role("a", [READ], to="view"))
        await world.put(CLUSTERROLES, role("b", [WRITE], to="edit"))
        assert rules_of(world, edit) == [WRITE, READ]
