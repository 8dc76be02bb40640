"""Asks upstream's own code and kone the same questions, and prints where they answer differently.

    python -m tests.registry.upstream.differences Pod Service     # every field with every value, one at a time
    … Pod --random 20000 --seed 3                                 # several at a time
    … Pod --updates 5000 --subresource status                     # changes of what is stored
    … --record                                                    # writes ../answers/*.json anew

What Go does in the order of a map comes in any order; those answers are compared as sets.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kone.apimachinery.objects import Object, deep_copy
from tests.registry.pipeline import Answer, answer, put
from tests.registry.upstream.bodies import BODIES, change, enumerations, fields_of, values_of
from tests.registry.upstream.oracle import STAGING, VERSION, Oracle, Told, _go

ANSWERS = Path(__file__).parent.parent / "answers"
_TITLES = "Required|Invalid|Duplicate|Unsupported|Forbidden|Too long|Too many|Not found|Internal error"
_ITEMS = re.compile(rf", (?=\S+: (?:{_TITLES}))")
_VOLATILE = re.compile(r'"[^"]*"|\d+')
_WITH_STATUS = (
    *("Service", "Node", "ReplicationController", "ResourceQuota", "PersistentVolume", "PersistentVolumeClaim"),
    *("Deployment", "ReplicaSet", "DaemonSet", "StatefulSet", "Job", "CronJob", "Ingress", "PodDisruptionBudget"),
    *("CSINode", "VolumeAttachment", "FlowSchema", "PriorityLevelConfiguration", "HorizontalPodAutoscaler"),
)
_IN_TEMPLATES = re.compile(r"(?i)template\.spec\.\w+\.")
"""What pods' own fields ask about already."""
_SUBRESOURCES = {
    "Pod": ("status", "resize", "ephemeralcontainers"),
    "Namespace": ("status", "finalize"),
    **dict.fromkeys(_WITH_STATUS, ("status",)),
}
_LONGEST = 1300
Question = tuple[str, Object, Object | None]
"""(what is asked in words, the body, what is stored)"""


def difference(told: Told, own: Answer) -> str:
    """What differs; "" for nothing, or for what only decoding could tell apart (empty and missing)."""
    if told.error.startswith("panic") or (told.error and " is invalid: " not in told.error):
        return "" if own.error else f"upstream refuses: {told.error}"
    if findings_of(told.error) != findings_of(own.error):
        missing, extra = (
            findings_of(told.error) - findings_of(own.error),
            findings_of(own.error) - findings_of(told.error),
        )
        return f"missing {sorted(missing)}, too many {sorted(extra)}"
    if own.error:
        return ""
    if sorted(told.warnings) != sorted(own.warnings):
        return f"warnings {told.warnings}, not {own.warnings}"
    return "" if timeless(told.object) == timeless(own.object) else "stored differently"


def findings_of(error: str) -> set[str]:
    head, _, rest = error.partition(" is invalid: ")
    return {head, *_ITEMS.split(re.sub(r"\[\](?![.:])|\{\}", "null", rest.removeprefix("[").removesuffix("]")))}


def timeless(value: Any) -> Any:
    """Without what is empty, and without what the clock says."""
    if isinstance(value, dict):
        kept = (key for key in value if not key.endswith(("Timestamp", "TransitionTime")))
        return {key: inner for key in kept if (inner := timeless(value[key])) not in (None, [], {})}
    return [timeless(inner) for inner in value] if isinstance(value, list) else value


def _choices(body: Object) -> list[tuple[str, list[Any]]]:
    api = Path(_go("mod", "download", "-json", f"k8s.io/api@{STAGING}", field="Dir"))
    known = enumerations(api)
    return [
        (path, values)
        for path, kind in fields_of(body)
        if not _IN_TEMPLATES.search(path) and (values := values_of(path.split(".")[-1], kind, known))
    ]


def _one_by_one(kind: str) -> Iterator[Question]:
    smallest = BODIES[kind][0]
    for path, values in _choices(smallest):
        for value in values:
            made: Object = deep_copy(smallest)
            put(made, path, value)
            yield f"{path} = {json.dumps(value)[:80]}", made, None


def _several(kind: str, count: int, rng: random.Random) -> Iterator[Question]:
    choices = _choices(BODIES[kind][0])
    for _ in range(count):
        made = rng.choice(BODIES[kind])
        path = rng.choice(choices)[0]
        near = [each for each in choices if each[0].startswith(path.rpartition(".")[0])]
        for _ in range(rng.randint(1, 4)):
            made = change(made, near if rng.random() < 0.8 else choices, rng)
        yield json.dumps(made), made, None


def _updates(kind: str, count: int, rng: random.Random, upstream: Oracle) -> Iterator[Question]:
    choices = _choices(BODIES[kind][0])
    for _ in range(count):
        stored = upstream.ask(change(rng.choice(BODIES[kind]), choices, rng)).object
        if stored is None:
            continue
        made = stored
        for _ in range(rng.randint(1, 3)):
            made = change(made, choices, rng)
        if made["metadata"].get("name") == stored["metadata"]["name"]:
            yield f"{json.dumps(stored)} -> {json.dumps(made)}", made, stored


def compare(kinds: list[str], options: argparse.Namespace) -> None:
    with Oracle() as upstream:
        for kind in kinds:
            rng, asked, found = random.Random(options.seed), 0, 0
            questions = (
                _updates(kind, options.updates, rng, upstream)
                if options.updates
                else _several(kind, options.random, rng)
                if options.random
                else _one_by_one(kind)
            )
            for shown, made, stored in questions:
                told, own = upstream.ask(made, stored, options.subresource), answer(made, stored, options.subresource)
                asked += 1
                differs = difference(told, own)
                if differs:
                    found += 1
                    print(f"{shown}\n    {differs}")
            print(f"{kind}: {found} of {asked} answers differ")


def record(kinds: list[str]) -> None:
    """One case for each thing that upstream says, told apart by its words and fields, not by values."""
    ANSWERS.mkdir(exist_ok=True)
    with Oracle() as upstream:
        for kind in kinds:
            cases = [*_first_of_each(upstream, kind)]
            text = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
            (ANSWERS / f"{kind.lower()}.json").write_text(f"[\n{text}\n]\n")
            print(f"{kind}: {len(cases)} answers of Kubernetes {VERSION}")


def _first_of_each(upstream: Oracle, kind: str) -> Iterator[dict[str, Any]]:
    seen: set[str] = set()
    for body in BODIES[kind]:
        told = upstream.ask(body)
        yield {"new": body, "warnings": told.warnings, "object": timeless(told.object)}
    rng = random.Random(1)
    questions: list[tuple[str, Iterator[Question]]] = [
        ("", _one_by_one(kind)),
        ("", _several(kind, 1500, rng)),
        *((sub, _updates(kind, 1500, rng, upstream)) for sub in ("", *_SUBRESOURCES.get(kind, ()))),
    ]
    for subresource, asked in questions:
        for _, made, stored in asked:
            told = upstream.ask(made, stored, subresource)
            if difference(told, answer(made, stored, subresource)):
                continue
            new = _shapes(told) - seen
            if new and len(json.dumps(made)) + len(told.error) < _LONGEST:
                seen |= new
                case = {"new": made, "old": stored, "subresource": subresource}
                yield {key: value for key, value in case.items() if value} | {
                    key: value for key, value in (("error", told.error), ("warnings", told.warnings)) if value
                }


def _shapes(told: Told) -> set[str]:
    """Its findings and warnings without the values in them."""
    _, _, rest = told.error.partition(" is invalid: ")
    texts = [*_ITEMS.split(rest.removeprefix("[").removesuffix("]")), *told.warnings]
    found = set()
    for text in filter(None, texts):
        parts = _VOLATILE.sub("#", text.partition("\n")[0]).split(": ")
        field = re.sub("(init|ephemeral)Containers", "containers", parts[0])
        found.add(f"{field}: {parts[1:2]}: {parts[-1]}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", default=list(BODIES))
    parser.add_argument("--random", type=int, default=0, metavar="COUNT")
    parser.add_argument("--updates", type=int, default=0, metavar="COUNT")
    parser.add_argument("--subresource", default="")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    if options.record:
        record(options.kinds)
    else:
        compare(options.kinds, options)


if __name__ == "__main__":
    main()
