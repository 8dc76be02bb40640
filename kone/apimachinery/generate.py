"""Writes kone/apimachinery/generated/schema.json: `python -m kone.apimachinery.generate`, which `make generate` runs.

Development only. Two sources of facts are joined, both without prose:
- the PyPI package kubernetes-validate (OpenAPI): which fields are required, how lists and maps merge in server-side
  apply;
- the Go modules of k8s.io (by generate.go, which needs the `go` command): Go types, omitempty, protobuf numbers,
  patch strategies. They decide what a body looks like after upstream has decoded and encoded it.

The table, one type a line: "core.v1.Container": [[name, type, flags, number, strategy, mergeKey, listType, mapKeys],
…], trailing empty columns cut off. `name` is "" where the type's fields stand in the parent's place. Flags: "o"
omitempty, "z" omitzero, "r" required, "a" a map that is atomic. Types are written as in Go: "*int32",
"[]core.v1.Container", "map[string]string"; a named type that is no struct carries what it is:
"core.v1.PullPolicy=string".
"""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

KUBERNETES = "1.37"
GO_MODULES_VERSION = "v0.37.2"
GO_MODULES = ("api", "apimachinery", "client-go", "apiextensions-apiserver", "kube-aggregator")

GROUP_VERSIONS = (
    "/v1",
    "admissionregistration.k8s.io/v1",
    "apiextensions.k8s.io/v1",
    "apiregistration.k8s.io/v1",
    "apps/v1",
    "authentication.k8s.io/v1",
    "authorization.k8s.io/v1",
    "autoscaling/v1",
    "autoscaling/v2",
    "batch/v1",
    "certificates.k8s.io/v1",
    "coordination.k8s.io/v1",
    "discovery.k8s.io/v1",
    "events.k8s.io/v1",
    "flowcontrol.apiserver.k8s.io/v1",
    "networking.k8s.io/v1",
    "node.k8s.io/v1",
    "policy/v1",
    "rbac.authorization.k8s.io/v1",
    "resource.k8s.io/v1",
    "scheduling.k8s.io/v1",
    "storage.k8s.io/v1",
    "storagemigration.k8s.io/v1",
)
"""What v1.37 serves by default: every group's GA versions."""

_PATHS = (
    ("k8s.io/apiextensions-apiserver/pkg/apis/", "", "io.k8s.apiextensions-apiserver.pkg.apis."),
    ("k8s.io/kube-aggregator/pkg/apis/", "", "io.k8s.kube-aggregator.pkg.apis."),
    ("k8s.io/apimachinery/pkg/apis/", "", "io.k8s.apimachinery.pkg.apis."),
    ("k8s.io/apimachinery/pkg/api/", "", "io.k8s.apimachinery.pkg.api."),
    ("k8s.io/apimachinery/pkg/util/", "", "io.k8s.apimachinery.pkg.util."),
    ("k8s.io/apimachinery/pkg/", "", "io.k8s.apimachinery.pkg."),
    ("k8s.io/api/", "", "io.k8s.api."),
    ("time.", "time.", "time."),
)
_SPECIAL = {"meta.v1.Time", "meta.v1.MicroTime", "meta.v1.Duration", "resource.Quantity"}
"""Structs in Go, but written by their own code: their fields say nothing."""
_IDENTIFIER = re.compile(r"(?:k8s\.io/[\w./-]+|time)\.[A-Z]\w*")


def go_facts() -> dict[str, Any]:
    """What generate.go prints, run in a throw-away module."""
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory, "main.go")
        source.write_text(Path(__file__).with_name("generate.go").read_text())
        wanted = [f"k8s.io/{name}@{GO_MODULES_VERSION}" for name in GO_MODULES]
        for command in (["mod", "init", "facts"], ["get", *wanted], ["mod", "tidy"]):
            subprocess.run(["go", *command], cwd=directory, check=True, capture_output=True)
        ran = subprocess.run(["go", "run", "."], cwd=directory, check=True, capture_output=True)
    facts: dict[str, Any] = json.loads(ran.stdout)
    return facts


def openapi_definitions() -> dict[str, Any]:
    """kubernetes-validate's definitions by OpenAPI name."""
    root = importlib.resources.files("kubernetes_validate") / "kubernetes-json-schema" / f"v{KUBERNETES}.0-local"
    definitions: dict[str, Any] = json.loads((root / "_definitions.json").read_text())["$defs"]
    return definitions


def short(identifier: str) -> str:
    """ "k8s.io/api/core/v1.Pod" -> "core.v1.Pod"."""
    for path, prefix, _ in _PATHS:
        if identifier.startswith(path):
            return prefix + identifier.removeprefix(path).replace("/", ".")
    raise ValueError(f"no rule for {identifier}")


def openapi_name(identifier: str) -> str:
    """ "k8s.io/api/core/v1.Pod" -> "io.k8s.api.core.v1.Pod"."""
    for path, _, prefix in _PATHS:
        if identifier.startswith(path):
            return prefix + identifier.removeprefix(path).replace("/", ".")
    raise ValueError(f"no rule for {identifier}")


def row(field: dict[str, Any], definition: dict[str, Any]) -> list[Any]:
    schema = definition.get("properties", {}).get(field["name"], {})
    flags = "o" * ("omitempty" in field["omit"]) + "z" * ("omitzero" in field["omit"])
    flags += "r" * (field["name"] in definition.get("required", ())) + "a" * (
        schema.get("x-kubernetes-map-type") == "atomic"
    )
    type_text = _IDENTIFIER.sub(lambda match: short(match[0]), field["type"])
    columns = [field["name"], type_text, flags, field["number"], field["strategy"], field["mergeKey"]]
    columns += [schema.get("x-kubernetes-list-type", ""), ",".join(schema.get("x-kubernetes-list-map-keys", ()))]
    while not columns[-1]:
        columns.pop()
    return columns


def table() -> dict[str, Any]:
    """The table: every kind of GROUP_VERSIONS and every type that these hold."""
    facts, definitions = go_facts(), openapi_definitions()
    kinds = {kind: name for kind, name in facts["kinds"].items() if kind.rpartition("/")[0] in GROUP_VERSIONS}
    reached: set[str] = set()
    waiting = list(kinds.values())
    while waiting:
        name = waiting.pop()
        if name in reached or name not in facts["types"] or short(name) in _SPECIAL:
            continue
        reached.add(name)
        for field in facts["types"][name]:
            waiting += _IDENTIFIER.findall(field["type"])
    types = {}
    atomic = []
    for name in sorted(reached):
        definition = definitions.get(openapi_name(name), {})
        types[short(name)] = [row(field, definition) for field in facts["types"][name]]
        if definition.get("x-kubernetes-map-type") == "atomic":
            atomic.append(short(name))
    return {"kinds": {kind: short(kinds[kind]) for kind in sorted(kinds)}, "atomic": atomic, "types": types}


def main() -> None:
    found = table()
    lines = [f'"{name}":{json.dumps(rows, separators=(",", ":"))}' for name, rows in found["types"].items()]
    text = '{"source":' + json.dumps(
        f"kubernetes-validate {importlib.metadata.version('kubernetes-validate')}, k8s.io modules {GO_MODULES_VERSION}"
    )
    text += ',\n"kinds":' + json.dumps(found["kinds"], indent=0, separators=(",", ":"))
    text += ',\n"atomic":' + json.dumps(found["atomic"]) + ',\n"types":{\n' + ",\n".join(lines) + "\n}}\n"
    target = Path(__file__).with_name("generated") / "schema.json"
    target.write_text(text)
    print(f"{target}: {len(found['kinds'])} kinds, {len(lines)} types, {len(text)} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
