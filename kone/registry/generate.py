"""Writes data/internal_types.json: the names and order of the fields of upstream's internal types.

Upstream's field errors print structures as its *internal* Go types, whose fields have no JSON names: a taint is
`{"Key":"a","Value":"","Effect":"NoSchedule","TimeAdded":null}`, and a refused pod update carries a diff of two such
texts. What the fields are called and how they follow each other are facts of the Go sources, read here from the module
cache (`go mod download k8s.io/kubernetes@v1.37.2`); nothing but names, types and order is taken.

Run as `python -m kone.registry.generate`; the result is checked in.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

KUBERNETES, STAGING = "v1.37.2", "v0.37.2"
TARGET = Path(__file__).parent / "data" / "internal_types.json"

_GROUPS = {
    "core": "core/v1",
    "apps": "apps/v1",
    "batch": "batch/v1",
    "policy": "policy/v1",
    "networking": "networking/v1",
    "rbac": "rbac/v1",
    "autoscaling": "autoscaling/v2",
    "scheduling": "scheduling/v1",
    "storage": "storage/v1",
    "flowcontrol": "flowcontrol/v1",
    "certificates": "certificates/v1",
    "coordination": "coordination/v1",
    "discovery": "discovery/v1",
    "admissionregistration": "admissionregistration/v1",
    "resource": "resource/v1",
    "node": "node/v1",
    "authorization": "authorization/v1",
    "authentication": "authentication/v1",
}
_STRUCT = re.compile(r"^type (\w+) struct \{\n(.*?)^\}", re.M | re.S)
_NAMED = re.compile(r"^type (\w+) (?:= )?(?!struct|interface)(\S.*?)(?:\s*//.*)?$", re.M)
_BLOCK_COMMENT = re.compile(r"/\*.*?\*/", re.S)
_FIELD = re.compile(r"^(\w+(?:, \w+)*)\s+([^`/]+?)\s*(?:`([^`]*)`)?(?:\s*//.*)?$")
_EMBEDDED = re.compile(r"^([\w.]+)(?:\s*`([^`]*)`)?(?:\s*//.*)?$")
_JSON_TAG = re.compile(r'json:"([^"]*)"')
_SCALARS = {
    "string": "s",
    "bool": "b",
    "float64": "i",
    "byte": "i",
    "rune": "i",
    "resource.Quantity": "q",
    "apiresource.Quantity": "q",
    "intstr.IntOrString": "o",
    "metav1.Time": "t",
    "metav1.MicroTime": "t",
    "metav1.Duration": "s",
    "types.UID": "s",
    "types.NodeName": "s",
}
_SCALARS |= {f"{sign}int{bits}": "i" for sign in ("", "u") for bits in ("", "8", "16", "32", "64")}

Field = tuple[str, str, str]
"""(printed name, JSON name, type); the printed name of an embedded struct is "", of an optional one ends in "?"."""


class _Package:
    """The types of one Go package, by name."""

    def __init__(self, group: str, sources: list[Path]) -> None:
        self.group = group
        text = _BLOCK_COMMENT.sub("", "\n".join(path.read_text() for path in sources))
        self.structs = {m[1]: m[2] for m in _STRUCT.finditer(text)}
        self.named = {m[1]: m[2].strip() for m in _NAMED.finditer(text)}

    def fields(self, struct: str) -> list[tuple[str, str, str]]:
        """(Go name or "" when embedded, Go type, JSON tag) of each field."""
        found = []
        for line in self.structs[struct].splitlines():
            line = line.strip()
            if not line or line.startswith("//"):
                continue
            if embedded := _EMBEDDED.match(line):
                tag = _JSON_TAG.search(embedded[2] or "")
                found.append(("", embedded[1], tag[1] if tag else ""))
            elif field := _FIELD.match(line):
                tag = _JSON_TAG.search(field[3] or "")
                found.extend((name, field[2], tag[1] if tag else "") for name in field[1].split(", "))
        return found


class _Generator:
    def __init__(self, modules: Path) -> None:
        internal, api = modules / f"kubernetes@{KUBERNETES}" / "pkg/apis", modules / f"api@{STAGING}"
        meta = modules / f"apimachinery@{STAGING}" / "pkg/apis/meta/v1"
        extensions = modules / f"apiextensions-apiserver@{STAGING}" / "pkg/apis/apiextensions"
        self.packages = {"metav1": _Package("metav1", [meta / "types.go"])}
        self.external: dict[str, _Package] = {}
        for group, path in _GROUPS.items():
            self.packages[group] = _Package(group, sorted((internal / group).glob("types*.go")))
            self.external[group] = _Package(group, sorted((api / path).glob("types*.go")))
        self.packages["apiextensions"] = _Package("apiextensions", sorted(extensions.glob("types*.go")))
        self.external["apiextensions"] = _Package("apiextensions", sorted((extensions / "v1").glob("types*.go")))
        self.table: dict[str, list[Field]] = {}

    def run(self) -> None:
        for group, package in self.packages.items():
            for struct in package.structs:
                if group == "metav1" or not struct.endswith("List"):
                    self.table[f"{group}.{struct}"] = self.struct(package, struct)

    def struct(self, package: _Package, struct: str) -> list[Field]:
        external = self.external.get(package.group)
        names: dict[str, str] = {}
        if external is not None and struct in external.structs:
            names = {name: tag.partition(",")[0] for name, _, tag in external.fields(struct) if name}
        fields: list[Field] = []
        for name, go_type, tag in package.fields(struct):
            if go_type in ("metav1.TypeMeta", "TypeMeta"):
                continue
            kind = self.kind(package, go_type)
            json_name, _, options = tag.partition(",")
            if not name:
                fields.append(("", "", kind) if not json_name else (json_name + "?", json_name, kind))
            elif json_name:
                fields.append((json_name + ("?" if "omit" in options else ""), json_name, kind))
            else:
                fields.append((name, names.get(name) or name[0].lower() + name[1:], kind))
        return fields

    def kind(self, package: _Package, go_type: str) -> str:
        """The type in the table's notation: see internal.py."""
        if go_type.startswith("*"):
            return "*" + self.kind(package, go_type[1:])
        if go_type == "[]byte":
            return "y"
        if go_type.startswith("[]"):
            return "[" + self.kind(package, go_type[2:])
        if go_type.startswith("map["):
            return "{" + self.kind(package, go_type.partition("]")[2])
        qualifier, _, name = go_type.rpartition(".")
        if package.group == "metav1" and not qualifier and go_type in ("Time", "MicroTime"):
            return "t"
        if go_type in _SCALARS:
            return _SCALARS[go_type]
        home = {"": package, "api": self.packages["core"]}.get(qualifier) or self.packages.get(qualifier)
        if home is not None and name in home.structs:
            return f"#{home.group}.{name}"
        if home is not None and name in home.named:
            return self.kind(home, home.named[name])
        return "?"


def main() -> int:
    cache = subprocess.run(["go", "env", "GOMODCACHE"], check=True, capture_output=True, text=True).stdout.strip()
    generator = _Generator(Path(cache) / "k8s.io")
    generator.run()
    TARGET.write_text(json.dumps(generator.table, separators=(",", ":"), sort_keys=True) + "\n")
    print(f"{TARGET}: {len(generator.table)} types, {TARGET.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
