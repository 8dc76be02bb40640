"""The documents say what the program has: every setting, and the counts that CI holds it to."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from kone.config import Settings
from tests import replay

DOCS = Path(__file__).parent.parent / "docs"


def test_every_setting_is_documented() -> None:
    text = (DOCS / "configuration.md").read_text()
    for setting in dataclasses.fields(Settings):
        for name in (
            f"`--{setting.name.replace('_', '-')}`",
            f"`KONE_{setting.name.upper()}`",
            f"`{setting.name.replace('_', '-')}`",
        ):
            assert name in text, name


def test_the_counts_of_held_conversations_can_be_read_back() -> None:
    counts = replay.recorded()
    assert counts["core.json"] > 0
    assert len(counts) == 8
