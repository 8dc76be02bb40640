"""/statusz and /flagz: as text, or as an object for those who name it."""

from __future__ import annotations

import pytest

from kone.apimachinery.errors import StatusError
from kone.runtime import zpages


@pytest.mark.parametrize(
    ("accept", "wants"),
    [
        ("", False),
        ("text/plain", False),
        ("*/*", False),
        ("application/json;as=Statusz;v=v1beta1;g=config.k8s.io", True),
        ("application/json, text/plain", False),
    ],
)
def test_what_is_answered_is_what_is_asked_for(accept: str, wants: bool) -> None:
    assert zpages.wants_object(accept, "Statusz") is wants


@pytest.mark.parametrize("accept", ["application/json", "application/json;as=Flagz;v=v1beta1;g=config.k8s.io"])
def test_an_object_must_be_asked_for_by_its_name(accept: str) -> None:
    with pytest.raises(StatusError) as error:
        zpages.wants_object(accept, "Statusz")
    assert error.value.code == 406


def test_the_object_and_the_text_say_the_same() -> None:
    found = zpages.statusz(1_700_000_000, 1_700_003_661, "python3.11", "1.37.2", ["/healthz", "/pods"])
    assert (found["startTime"], found["uptimeSeconds"]) == ("2023-11-14T22:13:20Z", 3661)
    text = zpages.statusz_text(found, 1_700_000_000)
    assert "Started: Tue Nov 14 22:13:20 UTC 2023\nUp: 1h1m1s\nGo version: python3.11\n" in text
    assert text.endswith("Paths: /healthz /pods\n")
    assert zpages.flagz({"a": "1"})["flags"] == {"a": "1"}
    assert zpages.flagz_text({"b": "2", "a": "1"}).endswith("a=1\nb=2\n")
