"""The arithmetic of rollouts: each case is worked by hand."""

from typing import Any

import pytest

from kone.apimachinery.objects import Object
from kone.controllers import rollout
from kone.controllers.int_or_percent import scaled_value
from kone.controllers.pod_template import compute_hash, equal_ignoring_hash, safe_encode
from kone.controllers.rollout import Scale

NOW = 1_700_000_000.0


def deployment(replicas: int, surge: Any = 0, unavailable: Any = 0, **spec: object) -> Object:
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}
    return {
        "metadata": {"name": "web", "generation": 1},
        "spec": {"replicas": replicas, "strategy": strategy, "template": {"spec": "new"}, **spec},
        "status": {},
    }


def replica_set(name: str, replicas: int, available: int = 0, *, born: str = "1", **annotations: str) -> Object:
    notes = {f"deployment.kubernetes.io/{key.replace('_', '-')}": value for key, value in annotations.items()}
    return {
        "metadata": {"name": name, "uid": name, "creationTimestamp": born, "annotations": notes, "generation": 1},
        "spec": {"replicas": replicas, "template": {"spec": name}},
        "status": {"availableReplicas": available, "replicas": replicas, "observedGeneration": 1},
    }


@pytest.mark.parametrize(
    ("value", "total", "round_up", "expected"),
    [(3, 10, True, 3), ("25%", 10, True, 3), ("25%", 10, False, 2), ("0%", 10, True, 0), ("100%", 7, False, 7)],
)
def test_a_percentage_is_of_the_total(value: Any, total: int, round_up: bool, expected: int) -> None:
    assert scaled_value(value, total, round_up=round_up) == expected


@pytest.mark.parametrize(
    ("surge", "unavailable", "replicas", "expected"),
    [
        pytest.param("0%", "1%", 2, (0, 1), id="both round to 0: one may be unavailable"),
        pytest.param("1%", "25%", 1, (1, 0), id="1 desired: surge 1, unavailable 0"),
        pytest.param("25%", "25%", 10, (3, 2), id="surge rounds up, unavailable down"),
    ],
)
def test_fenceposts(surge: Any, unavailable: Any, replicas: int, expected: tuple[int, int]) -> None:
    assert rollout.fenceposts(surge, unavailable, replicas) == expected


def test_the_new_set_is_the_oldest_with_the_template() -> None:
    sets = [replica_set("b", 1, born="2"), replica_set("old", 1), replica_set("a", 1, born="3")]
    for rs in (sets[0], sets[2]):
        rs["spec"]["template"] = {"spec": "new", "metadata": {"labels": {"pod-template-hash": "x"}}}
    new, old = rollout.split(deployment(1), sets)
    assert new is not None
    assert new["metadata"]["name"] == "b"
    assert [rs["metadata"]["name"] for rs in old] == ["old", "a"]


@pytest.mark.parametrize(
    ("new", "old", "expected"),
    [
        pytest.param(0, 10, [Scale("new", 3)], id="first step: surge 3"),
        pytest.param(3, 8, [Scale("new", 5)], id="old at 8: new to 5"),
        pytest.param(5, 8, [], id="13 pods: full"),
        pytest.param(12, 0, [Scale("new", 10)], id="too large: shrinks"),
        pytest.param(10, 0, [], id="done"),
    ],
)
def test_10_replicas_surge_3_unavailable_2_growing(new: int, old: int, expected: list[Scale]) -> None:
    sets = [replica_set("old", old, old)]
    assert rollout.plan_up(deployment(10, 3, 2), replica_set("new", new), sets) == expected


@pytest.mark.parametrize(
    ("new", "new_available", "old", "old_available", "expected"),
    [
        pytest.param(3, 0, 10, 10, [Scale("old", 8)], id="10 available, 8 needed: 2 may go"),
        pytest.param(5, 0, 8, 8, [], id="13 - 8 - 5 = 0 may go"),
        pytest.param(5, 0, 8, 7, [], id="an old pod fails: still none may go"),
        pytest.param(8, 7, 5, 0, [Scale("old", 1)], id="rolled back: 13 - 8 - 1 = 4 unhealthy may go"),
        pytest.param(5, 2, 8, 8, [Scale("old", 6)], id="2 new ones available: 2 more may go"),
        pytest.param(
            5, 5, 8, 6, [Scale("old", 6), Scale("old", 3)], id="first the 2 unhealthy, then 3 by availability"
        ),
    ],
)
def test_10_replicas_surge_3_unavailable_2_shrinking(
    new: int, new_available: int, old: int, old_available: int, expected: list[Scale]
) -> None:
    steps = rollout.plan_down(
        deployment(10, 3, 2), replica_set("new", new, new_available), [replica_set("old", old, old_available)]
    )
    assert steps == expected


def test_with_several_old_sets_the_oldest_shrinks_first() -> None:
    sets = [replica_set("b", 2, 2, born="2"), replica_set("a", 3, 3, born="1")]
    steps = rollout.plan_down(deployment(5, 0, 1), replica_set("new", 1, 1), sets)
    assert steps == [Scale("a", 1)]


@pytest.mark.parametrize(
    ("replicas", "new", "old", "expected"),
    [
        pytest.param(20, (5, "10"), (5, "10"), {"new": 10, "old": 10}, id="10 to 20, halves"),
        pytest.param(20, (2, "10"), (8, "10"), {"old": 16, "new": 4}, id="10 to 20, a fifth and four fifths"),
        pytest.param(3, (5, "10"), (5, "10"), {"old": 1, "new": 2}, id="10 to 3: halves round up, so the older pays"),
        pytest.param(0, (5, "10"), (5, "10"), {"old": 0, "new": 0}, id="to 0"),
        pytest.param(10, (5, "10"), (5, "10"), {"old": 5, "new": 5}, id="no change: only annotations"),
    ],
)
def test_proportional_scaling(
    replicas: int, new: tuple[int, str], old: tuple[int, str], expected: dict[str, int]
) -> None:
    sets = [
        replica_set("new", new[0], born="2", max_replicas=new[1]),
        replica_set("old", old[0], born="1", max_replicas=old[1]),
    ]
    steps = rollout.plan_scaling(deployment(replicas), sets[0], sets[1:])
    assert {step.name: step.replicas for step in steps} == expected
    assert all(step.always for step in steps)


def test_scaling_with_one_active_set_gives_it_all() -> None:
    new, old = replica_set("new", 0), replica_set("old", 2)
    assert rollout.plan_scaling(deployment(5, 1, 1), new, [old]) == [Scale("old", 5)]


def test_scaling_with_no_active_set_grows_the_new_one() -> None:
    assert rollout.plan_scaling(deployment(5), replica_set("new", 0), [replica_set("old", 0)]) == [Scale("new", 5)]


def test_scaling_of_a_saturated_new_set_empties_the_old_ones() -> None:
    new = replica_set("new", 3, 3, desired_replicas="3")
    assert rollout.plan_scaling(deployment(3), new, [replica_set("old", 2)]) == [Scale("old", 0)]


def test_history_keeps_the_newest_revisions_and_what_is_not_empty() -> None:
    sets = [replica_set(f"r{n}", 0, born=str(n), revision=str(n)) for n in range(1, 5)]
    sets[0]["spec"]["replicas"] = 1
    doomed = rollout.plan_history(deployment(1, revisionHistoryLimit=1), sets)
    assert [rs["metadata"]["name"] for rs in doomed] == ["r2", "r3"]


def test_a_set_rolled_back_to_remembers_its_revisions() -> None:
    rs = replica_set("r", 0, revision="1")
    annotations = rollout.set_annotations(deployment(2, 1), rs, 3, exists=True)
    assert annotations == {
        "deployment.kubernetes.io/revision": "3",
        "deployment.kubernetes.io/revision-history": "1",
    }
    rs["metadata"]["annotations"] = annotations
    again = rollout.set_annotations(deployment(2, 1), rs, 5, exists=True)
    assert again["deployment.kubernetes.io/revision-history"] == "1,3"


def test_a_new_set_gets_the_deployments_annotations_and_its_share() -> None:
    web = deployment(2, "50%")
    web["metadata"]["annotations"] = {
        "kubernetes.io/change-cause": "edit",
        "kubectl.kubernetes.io/last-applied-configuration": "{}",
    }
    assert rollout.set_annotations(web, {}, 1, exists=False) == {
        "kubernetes.io/change-cause": "edit",
        "deployment.kubernetes.io/revision": "1",
        "deployment.kubernetes.io/desired-replicas": "2",
        "deployment.kubernetes.io/max-replicas": "3",
    }


def test_templates_are_equal_but_for_hash_and_empty_values() -> None:
    a = {"metadata": {"labels": {"app": "x", "pod-template-hash": "1"}, "creationTimestamp": None}, "spec": {"v": []}}
    b = {"metadata": {"labels": {"app": "x"}}, "spec": {}}
    assert equal_ignoring_hash(a, b)
    assert not equal_ignoring_hash(a, {"metadata": {"labels": {"app": "y"}}, "spec": {}})


def test_hash_is_stable_name_safe_and_differs_by_collision_count() -> None:
    assert compute_hash({"b": 1, "a": 2}) == compute_hash({"a": 2, "b": 1})
    assert compute_hash({"a": 1}) != compute_hash({"a": 1}, 1)
    assert set(compute_hash({"a": 1})) <= set("bcdfghjklmnpqrstvwxz2456789")
    assert safe_encode("0123456789") == "66bcdf5457" or len(safe_encode("0123456789")) == 10


# Conditions


def progressed(deploy: Object, before: Object, new: Object, now: float = NOW) -> Object:
    return rollout.with_progress({**deploy, "status": {**deploy["status"]}}, before, new, [], now)


def test_the_deadline_passes_only_after_the_last_second() -> None:
    web = deployment(1, progressDeadlineSeconds=60)
    web = rollout.set_condition(web, "Progressing", "True", "NewReplicaSetCreated", "m", NOW)
    new = replica_set("new", 1)
    counted = rollout.with_counts(web, new, [], NOW)
    before = counted["status"]
    at = {c["type"]: c["reason"] for c in progressed(counted, before, new, NOW + 60)["status"]["conditions"]}
    after = {c["type"]: c for c in progressed(counted, before, new, NOW + 60.5)["status"]["conditions"]}
    assert at["Progressing"] == "NewReplicaSetCreated"
    assert after["Progressing"]["reason"] == "ProgressDeadlineExceeded"
    assert after["Progressing"]["message"] == 'ReplicaSet "new" has timed out progressing.'
    assert rollout.deadline_in_s(counted, NOW + 20) == pytest.approx(40.01)


def test_without_a_deadline_there_is_no_progressing() -> None:
    web = deployment(1, progressDeadlineSeconds=2**31 - 1)
    counted = rollout.with_counts(web, replica_set("new", 1), [], NOW)
    conditions = progressed(counted, {}, replica_set("new", 1))["status"]["conditions"]
    assert [c["type"] for c in conditions] == ["Available"]
    assert rollout.deadline_in_s(counted, NOW) is None


def test_a_sets_failure_is_the_deployments() -> None:
    failure = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "m"}
    failed = replica_set("new", 1)
    failed["status"]["conditions"] = [{**failure, "lastTransitionTime": "t"}]
    counted = rollout.with_counts(deployment(1), failed, [], NOW)
    conditions = progressed(counted, {}, failed)["status"]["conditions"]
    assert conditions[-1] == {**failure, "lastTransitionTime": "t", "lastUpdateTime": "t"}


def test_unknown_terminating_counts_stay_unknown() -> None:
    known, unknown = replica_set("a", 1), replica_set("b", 1)
    known["status"]["terminatingReplicas"] = 2
    assert rollout.with_counts(deployment(1), known, [], NOW)["status"]["terminatingReplicas"] == 2
    assert "terminatingReplicas" not in rollout.with_counts(deployment(1), known, [unknown], NOW)["status"]
