"""What a ControllerRevision keeps of its owner."""

import json

from kone.controllers.history import snapshot, template_of


def test_a_snapshot_is_a_patch_with_its_keys_in_order() -> None:
    owner = {"spec": {"template": {"spec": {"b": [{"z": 1, "a": 2}], "a": {}}, "metadata": {"labels": {"x": "y"}}}}}
    kept = snapshot(owner)
    assert json.dumps(kept, separators=(",", ":")) == (
        '{"spec":{"template":{"$patch":"replace","metadata":{"labels":{"x":"y"}},"spec":{"a":{},"b":[{"a":2,"z":1}]}}}}'
    )
    assert template_of({"data": kept}) == owner["spec"]["template"]
