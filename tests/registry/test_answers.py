"""Kinds answer as upstream's own code did: defaults, every text of every rule, warnings.

answers/ holds what Kubernetes v1.37.2 answered to made-up bodies: one case
for each thing it says. An object is compared without what is empty and what the clock says.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.registry.pipeline import answer, findings_of, timeless

ANSWERS = sorted((Path(__file__).parent / "answers").glob("*.json"))


@pytest.mark.parametrize("recorded", ANSWERS, ids=lambda path: str(path.stem))
def test_answers_as_upstream(recorded: Path) -> None:
    cases: list[dict[str, Any]] = json.loads(recorded.read_text())
    assert cases
    for case in cases:
        said = answer(case["new"], case.get("old"), case.get("subresource", ""))
        assert findings_of(said.error) == findings_of(case.get("error", "")), case
        assert sorted(said.warnings) == sorted(case.get("warnings", [])), case
        if "object" in case:
            assert timeless(said.object) == case["object"], case
