"""What upstream's CEL gives for some thousand expressions, and what each costs.

cel_facts.json was written by k8s.io/apiserver v0.37.2's own environment of v1.37, fed with the expressions of the
tables that test its libraries (pkg/cel/library, cel-go's ext) and with some of ours. An entry has what the expression
gives ("value", as JSON) or how it fails ("error"), and its "cost"; or why it is "refused" when it is compiled.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from kone.apimachinery.cel import DYN, CelError, CelSyntaxError, Environment
from kone.apimachinery.cel_values import Optional

FACTS: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "cel_facts.json").read_text())
OBJECT = {
    "metadata": {"name": "web", "labels": {"a": "b"}},
    "spec": {"replicas": 3, "ratio": 0.5, "flag": True, "list": [1, 2, 3], "text": "abc"},
}
ENVIRONMENT = Environment({"object": DYN})


def as_json(value: Any) -> Any:
    if isinstance(value, Optional):
        return as_json(value.value) if value.present else None
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, list):
        return [as_json(each) for each in value]
    if isinstance(value, dict):
        return {str(key): as_json(each) for key, each in value.items()}
    return value if isinstance(value, str | int | float | None) else str(value)


def outcome(expression: str, expected: dict[str, Any]) -> dict[str, Any]:
    try:
        program = ENVIRONMENT.compile(expression)
    except CelSyntaxError as error:
        return {"refused": str(error)}
    try:
        result = program.evaluate({"object": OBJECT})
    except CelError as error:
        return {"error": str(error), "cost": expected.get("cost")}
    if "value" not in expected:
        return {"cost": result.cost}
    return {"value": as_json(result.value), "cost": result.cost}


@pytest.mark.parametrize("kind", ["value", "error", "refused", "cost"])
def test_expressions_give_what_upstream_gives(kind: str) -> None:
    """`cost`: of those whose value has no JSON, only what it costs is compared."""
    chosen = {text: fact for text, fact in FACTS.items() if next(iter(fact)) == kind}
    assert chosen
    found = {text: outcome(text, fact) for text, fact in chosen.items()}
    assert found == chosen
