"""JSONPath in Kubernetes' dialect."""

from typing import Any

import pytest

from kone.apimachinery.json_path import JsonPathError, compile_path, shown, simple_path

OBJ = {
    "metadata": {"labels": {"x.y/z": "lab"}},
    "spec": {
        "s": "text",
        "l": ["p", "q", "r"],
        "lo": [{"n": "a", "v": 1}, {"n": "b", "v": 2}, {"n": "b", "v": 3}],
        "o": {"k": 1, "j": [True, None]},
    },
}


@pytest.mark.parametrize(
    ("path", "found"),
    [
        (".spec.s", ["text"]),
        ("{.spec.s}", ["text"]),
        ("$.spec['s']", ["text"]),
        (".spec.zz", []),
        (r".metadata.labels.x\.y/z", ["lab"]),
        (".spec.l[0]", ["p"]),
        (".spec.l[-1]", ["r"]),
        (".spec.l[9]", []),
        (".spec.l[0:2]", ["p", "q"]),
        (".spec.l[*]", ["p", "q", "r"]),
        ('.spec.lo[?(@.n=="b")].v', [2, 3]),
        (".spec.lo[?(@.v>1)].v", [2, 3]),
        (".spec.lo[?(@.nope)].v", []),
        ("..v", [1, 2, 3]),
    ],
)
def test_what_a_path_finds(path: str, found: list[Any]) -> None:
    assert compile_path(path).find(OBJ) == found


def test_what_is_no_path() -> None:
    with pytest.raises(JsonPathError):
        compile_path(".spec[")


def test_values_are_shown_in_one_line() -> None:
    assert shown(["a", 1, True, 2.0, {"k": 1, "j": [True, None]}]) == 'a 1 true 2 {"j":[true,null],"k":1}'


def test_paths_of_plain_fields() -> None:
    assert simple_path(r".spec.a\.b.c") == ("spec", "a.b", "c")
