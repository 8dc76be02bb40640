"""Upkeep of the flow control objects that every cluster has: those without which nothing is served are always as they
must be, the suggested ones as long as nobody has changed them or says that they are kept.

The annotation apf.kubernetes.io/autoupdate-spec says whether the server keeps an object's spec. Source:
kubernetes/pkg/registry/flowcontrol/ensurer.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from kone.apimachinery.objects import Object, annotations_of, metadata, name_of, replace_in

AUTO_UPDATE: Final = "apf.kubernetes.io/autoupdate-spec"
MANDATORY: Final = frozenset(("exempt", "catch-all"))
UPKEEP_EVERY_S: Final = 60.0
_BOOLEANS: Final = {
    **dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True),
    **dict.fromkeys(("0", "f", "F", "FALSE", "false", "False"), False),
}


def revised(stored: Object, expected: Object) -> Object | None:
    """`stored` as it has to be, None where it is."""
    said = _BOOLEANS.get(annotations_of(stored).get(AUTO_UPDATE, ""))
    if name_of(expected) in MANDATORY:
        keep = True
    elif said is not None:
        keep = said
    else:
        keep = metadata(stored).get("generation") == 1  # nobody has changed its spec
    found = stored
    if keep and not _same_spec(stored["spec"], expected["spec"]):
        found = {**found, "spec": expected["spec"]}
    if said is not keep:
        found = replace_in(
            found, ("metadata", "annotations"), {**annotations_of(found), AUTO_UPDATE: str(keep).lower()}
        )
    return None if found is stored else found


def _same_spec(have: Object, want: Object) -> bool:
    if want.get("type") == "Exempt" and have.get("exempt") is not None:
        want = {**want, "exempt": have["exempt"]}  # whose numbers are the administrator's
    return have == want


def unwanted(stored: Iterable[Object], expected: Iterable[Object]) -> list[str]:
    """Names of objects that an older version suggested."""
    names = {name_of(obj) for obj in expected}
    return [
        name_of(obj)
        for obj in stored
        if name_of(obj) not in names and _BOOLEANS.get(annotations_of(obj).get(AUTO_UPDATE, ""))
    ]
