"""Values as upstream's errors print them: internal names, every field, and diffs of two of them."""

from __future__ import annotations

import json

from kone.registry.equality import same
from kone.registry.internal import internal, internal_diff


def test_a_struct_shows_all_its_fields_by_their_go_names() -> None:
    assert json.dumps(internal("#core.Taint", {"key": "a", "effect": "NoSchedule"})) == (
        '{"Key": "a", "Value": "", "Effect": "NoSchedule", "TimeAdded": null}'
    )


def test_types_of_apimachinery_keep_their_json_names() -> None:
    selector = {"matchLabels": {"b": "2", "a": "1"}}
    assert json.dumps(internal("#metav1.LabelSelector", selector)) == '{"matchLabels": {"a": "1", "b": "2"}}'


def test_lists_maps_and_quantities() -> None:
    assert internal("[#core.PodIP", [{"ip": "1.2.3.4"}]) == [{"IP": "1.2.3.4"}]
    assert internal("{q", {"cpu": "1000m"}) == {"cpu": "1"}
    assert internal("[#core.PodIP", None) is None


def test_a_diff_shows_three_lines_around_and_no_file_names() -> None:
    old, new = ({"key": "a", "effect": effect} for effect in ("NoSchedule", "NoExecute"))
    assert internal_diff("#core.Taint", old, new) == (
        '@@ -1,6 +1,6 @@\n {\n  "Key": "a",\n  "Value": "",\n'
        '- "Effect": "NoSchedule",\n+ "Effect": "NoExecute",\n  "TimeAdded": null\n }\n'
    )


def test_equality_is_that_of_values() -> None:
    assert same({"a": None}, {})
    assert same({"resources": {"limits": {"cpu": "1000m"}}}, {"resources": {"limits": {"cpu": "1"}}})
    assert not same({"emptyDir": {}}, {})
    assert not same([{"name": "a"}], [{"name": "a"}, {"name": "b"}])
