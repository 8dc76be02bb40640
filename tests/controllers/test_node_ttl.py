"""The note of each node that tells how long what its kubelet reads may be kept."""

import pytest

from kone.apimachinery.kinds import NODES
from kone.apimachinery.objects import annotations_of
from kone.controllers.node_ttl import ANNOTATION, NODE_TTL_CONTROLLER, step_for
from tests.controllers.world import World
from tests.fakes import make_node


async def test_every_node_has_the_note_and_gets_it_back(world: World) -> None:
    async with world.running(NODE_TTL_CONTROLLER):
        node = await world.put(NODES, make_node("n1"))
        assert annotations_of(world.client.look(NODES, node)) == {ANNOTATION: "0"}
        await world.edit(NODES, node, "metadata", "annotations", value={"a": "b"})
        assert annotations_of(world.client.look(NODES, node)) == {"a": "b", ANNOTATION: "0"}


async def test_all_notes_change_with_the_size_of_the_cluster(world: World) -> None:
    async with world.running(NODE_TTL_CONTROLLER):
        for number in range(101):
            world.client.put(NODES, make_node(f"n{number}"))
        await world.settle()
        assert {annotations_of(node)[ANNOTATION] for node in world.client.of(NODES)} == {"15"}


@pytest.mark.parametrize(
    ("nodes", "before", "after"), [(100, 0, 0), (101, 0, 1), (95, 1, 1), (89, 1, 0), (3000, 0, 4), (5, 4, 0)]
)
def test_steps_overlap(nodes: int, before: int, after: int) -> None:
    assert step_for(nodes, before) == after
