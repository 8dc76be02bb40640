"""Who tolerates which taint, and for how long."""

from __future__ import annotations

import pytest

from kone.apimachinery.objects import Object
from kone.apimachinery.taints import keeps_away, tolerated_for_s, tolerates

TAINT = {"key": "k", "value": "v", "effect": "NoExecute"}


@pytest.mark.parametrize(
    ("toleration", "covers"),
    [
        ({"operator": "Exists"}, True),
        ({"operator": "Exists", "effect": "NoSchedule"}, False),
        ({"key": "k", "operator": "Exists"}, True),
        ({"key": "k", "operator": "Exists", "effect": "NoExecute"}, True),
        ({"key": "k", "operator": "Exists", "effect": "NoSchedule"}, False),
        ({"key": "other", "operator": "Exists"}, False),
        ({"key": "k", "value": "v"}, True),
        ({"key": "k", "operator": "Equal", "value": "w"}, False),
        ({"key": "k", "operator": "Gt", "value": "1"}, False),  # behind a feature gate that is off
    ],
)
def test_a_toleration_covers_a_taint_by_key_operator_value_and_effect(toleration: Object, covers: bool) -> None:
    assert tolerates(toleration, TAINT) is covers


def test_a_taint_without_a_value_equals_a_toleration_without_one() -> None:
    assert tolerates({"key": "k"}, {"key": "k", "effect": "NoSchedule"})


def test_only_taints_with_the_effects_noschedule_and_noexecute_keep_away() -> None:
    assert keeps_away([TAINT], [])
    assert not keeps_away([{**TAINT, "effect": "PreferNoSchedule"}], [])
    assert not keeps_away([TAINT], [{"key": "k", "operator": "Exists"}])


def test_the_shortest_toleration_that_matters_counts() -> None:
    taints = [{"key": "out", "effect": "NoExecute"}, {"key": "b", "effect": "NoExecute"}]
    both = [{"key": "out", "operator": "Exists", "tolerationSeconds": 30}, {"key": "b", "operator": "Exists"}]
    assert tolerated_for_s(both, taints) == 30
    assert tolerated_for_s(both[:1], taints) == 0
    assert tolerated_for_s(both, taints[1:]) == float("inf")
