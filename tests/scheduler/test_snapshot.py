"""What is kept as pods come and go equals what counting anew would say; what is remembered of a node is not stale."""

from __future__ import annotations

import random

import pytest

from kone.apimachinery.objects import Key, Object
from kone.scheduler.framework import Placement
from kone.scheduler.pod_info import PodInfo
from kone.scheduler.snapshot import Cluster, NodeInfo
from tests.scheduler.support import World, node, pod

NEAR_WEB: Object = {
    "podAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": [
            {"labelSelector": {"matchLabels": {"app": "web"}}, "topologyKey": "kubernetes.io/hostname"}
        ]
    }
}


def test_a_tally_follows_pods_that_come_and_go() -> None:
    info = NodeInfo("n")
    web, other = PodInfo(pod(labels={"app": "web"})), PodInfo(pod())
    info.add(web)

    def is_web(found: PodInfo) -> bool:
        return found.labels.get("app") == "web"

    assert info.tally("web", is_web) == 1
    info.add(other)
    info.add(PodInfo(pod(labels={"app": "web"})))
    assert info.tally("web", is_web) == 2
    info.remove(web.uid)
    assert info.tally("web", is_web) == 1


def test_a_clone_is_counted_apart() -> None:
    info = NodeInfo("n")
    info.add(PodInfo(pod(affinity=NEAR_WEB)))
    copy = info.clone()
    copy.add(PodInfo(pod(affinity=NEAR_WEB)))
    assert [group.size for group in info.affine.values()] == [1]
    assert [group.size for group in copy.affine.values()] == [2]


def test_pods_with_the_same_terms_are_one_group() -> None:
    cluster = Cluster()
    cluster.set_node(node("n1"))
    made = [PodInfo(pod(on="n1", affinity=NEAR_WEB)) for _ in range(3)]
    for info in (*made, PodInfo(pod(on="n1", namespace="other", affinity=NEAR_WEB)), PodInfo(pod(on="n1"))):
        cluster.set_pod(info)
    [(_, groups)] = cluster.affine_groups()
    assert sorted(group.size for group in groups) == [1, 3]
    for info in made:
        cluster.remove_pod(info.uid)
    [(_, groups)] = cluster.affine_groups()
    assert [group.size for group in groups] == [1]


def test_users_of_a_claim_are_counted_over_all_nodes() -> None:
    cluster = Cluster()
    cluster.set_node(node("n1"))
    cluster.set_node(node("n2"))
    volumes = [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]
    first, second = PodInfo(pod(on="n1", volumes=volumes)), PodInfo(pod(on="n2", volumes=volumes))
    cluster.set_pod(first)
    cluster.set_pod(second)
    assert cluster.claim_users == {Key("ns", "data"): 2}
    cluster.remove_pod(first.uid)
    cluster.remove_pod(second.uid)
    assert cluster.claim_users == {}


def test_a_pod_whose_status_changed_keeps_its_place_and_what_was_worked_out() -> None:
    cluster = Cluster()
    cluster.set_node(node("n1"))
    made = pod(on="n1", requests={"cpu": "1"})
    before = PodInfo(made)
    cluster.set_pod(before)
    after = PodInfo({**made, "status": {"phase": "Running"}})
    cluster.set_pod(after)
    assert cluster.pod(after.uid) is after
    assert after.requests is before.requests
    [info] = cluster.nodes()
    assert info.requested == {"cpu": 1000}


def test_a_pod_that_asks_for_less_is_counted_anew() -> None:
    cluster = Cluster()
    cluster.set_node(node("n1"))
    made = pod(on="n1", requests={"cpu": "2"})
    cluster.set_pod(PodInfo(made))
    smaller = {**made, "spec": {**made["spec"], "containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]}}
    cluster.set_pod(PodInfo(smaller))
    [info] = cluster.nodes()
    assert info.requested == {"cpu": 1000}


@pytest.mark.parametrize("seed", range(5))
def test_a_placement_is_the_same_whatever_is_remembered(seed: int) -> None:
    """Two hundred random pods: a framework that forgets after each pod chooses as one that remembers."""
    chance = random.Random(seed)
    remembering, forgetting = _random_nodes(seed), _random_nodes(seed)
    for _ in range(200):
        made = pod(
            requests={"cpu": chance.choice(("100m", "700m", "3")), "memory": chance.choice(("1Gi", "100Mi"))},
            labels={"app": chance.choice(("web", "db"))},
            tolerations=chance.choice(([], [{"key": "special", "operator": "Exists"}])),
            nodeSelector=chance.choice(({}, {"disk": "ssd"})),
            affinity=chance.choice(({}, {}, NEAR_WEB)),
        )
        answers = []
        for world in (remembering, forgetting):
            found = world.framework.place(PodInfo(made))
            if isinstance(found, Placement):
                answers.append(found.node.name)
                world.cluster.set_pod(PodInfo({**made, "spec": {**made["spec"], "nodeName": found.node.name}}))
            else:
                answers.append(found.diagnosis.message(found.node_count))
        assert answers[0] == answers[1]
        for info in forgetting.cluster.nodes():
            info.judged.clear()
            info.forget_tallies()


def _random_nodes(seed: int) -> World:
    chance = random.Random(seed)
    special = [{"key": "special", "effect": "NoSchedule"}]
    return World(
        *(
            node(
                f"n{number}",
                labels={"disk": chance.choice(("ssd", "hdd"))},
                taints=chance.choice(([], special)),
                cpu=chance.choice((4, 16)),
            )
            for number in range(20)
        )
    )
