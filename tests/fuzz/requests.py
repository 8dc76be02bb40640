"""Requests of the operations that OpenAPI documents list: paths, parameters, bodies of every content type."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final
from urllib.parse import quote, urlencode

from tests.fuzz.values import NAMES, NUMBERS, WORDS, WRONG, Values

NAMESPACE: Final = "fuzz"
KEPT_DRY: Final = (
    "/apis/admissionregistration.k8s.io/",
    "/apis/apiregistration.k8s.io/",
    "/apis/flowcontrol.apiserver.k8s.io/",
    "/apis/networking.k8s.io/v1/servicecidrs",
)
"""What decides over everyone's requests: writes of it are judged and not kept."""
TUNNELS: Final = ("exec", "attach", "portforward", "proxy", "log")
_ACCEPTS: Final = (
    *("application/json", "application/yaml", "application/vnd.kubernetes.protobuf", "*/*", "text/html", ";;q=x"),
    *("application/json;as=Table;v=v1;g=meta.k8s.io", "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io"),
    "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io,application/json",
)
_CONTENT_TYPES: Final = (
    "application/json",
    "application/yaml",
    "application/vnd.kubernetes.protobuf",
    "text/plain",
    "",
)
_PARAMETERS: Final[Mapping[str, tuple[str, ...]]] = {
    "dryRun": ("All", "", "None"),
    "fieldManager": ("a", "", "x" * 200, "\u0000"),
    "fieldValidation": ("Strict", "Warn", "Ignore", "Other"),
    "force": ("true", "false", "x"),
    "labelSelector": ("a=b", "a in (b,c)", "!a", "a!=b", "=", "a in (", "x" * 300, ","),
    "fieldSelector": ("metadata.name=a", "metadata.namespace!=b", "status.phase=Running", "a", "=", "x.y=z"),
    "limit": ("0", "1", "500", "-1", "x", "9223372036854775808"),
    "continue": ("", "x", "eyJ2IjoibWV0YS5rOHMuaW8vdjEifQ", "e30"),
    "resourceVersion": ("", "0", "1", "-1", "x", "99999999999999999999"),
    "resourceVersionMatch": ("Exact", "NotOlderThan", "x"),
    "sendInitialEvents": ("true", "false", "x"),
    "allowWatchBookmarks": ("true", "false", "x"),
    "timeoutSeconds": ("1", "0", "-1", "x"),
    "watch": ("0", "false"),
    "gracePeriodSeconds": ("0", "1", "-1", "x"),
    "orphanDependents": ("true", "false", "x"),
    "propagationPolicy": ("Orphan", "Background", "Foreground", "x"),
    "pretty": ("true", "x"),
}


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path, as a document has it."""

    method: str
    path: str
    details: Mapping[str, Any]
    api_version: str
    kind: str


@dataclass(slots=True)
class Request:
    method: str
    target: str
    """The path as it is sent, and the query."""
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def tunnelled(self) -> bool:
        """Whether another server answers it, or the lack of one."""
        return any(f"/{name}" in self.target for name in TUNNELS)

    def __str__(self) -> str:
        shown = self.body if len(self.body) < 2000 else self.body[:2000] + b"..."
        return f"{self.method} {self.target} {self.headers} {shown!r}"


def operations(document: Mapping[str, Any]) -> list[Operation]:
    """Every operation of one group-version's document."""
    found = []
    for path, item in document["paths"].items():
        for method, details in item.items():
            if method == "parameters":
                continue
            gvk = details.get("x-kubernetes-group-version-kind") or {"group": "", "version": "", "kind": ""}
            api_version = f"{gvk['group']}/{gvk['version']}" if gvk["group"] else gvk["version"]
            found.append(Operation(method.upper(), path, details, api_version, gvk["kind"]))
    return found


class Requests:
    """An endless sequence of requests for the operations of some documents."""

    def __init__(self, random: Random, documents: Mapping[str, Mapping[str, Any]]) -> None:
        self._random = random
        self._all: list[tuple[Operation, Values]] = []
        for _, document in sorted(documents.items()):
            values = Values(random, document["components"]["schemas"])
            self._all += [(operation, values) for operation in operations(document)]

    def __iter__(self) -> Iterator[Request]:
        while True:
            yield self._request(*self._random.choice(self._all))

    def _request(self, operation: Operation, values: Values) -> Request:
        random = self._random
        name = random.choice(NAMES[:3] if random.random() < 0.8 else NAMES)
        namespace = NAMESPACE if random.random() < 0.95 else random.choice(NAMES)
        path = operation.path.replace("{name}", quote(name)).replace("{namespace}", quote(namespace))
        query = [
            (each["name"], self._parameter(each["name"]))
            for each in operation.details.get("parameters", ())
            if random.random() < 0.08
        ]
        dry = operation.method != "GET" and operation.path.startswith(KEPT_DRY)
        if dry:
            query = [pair for pair in query if pair[0] != "dryRun"] + [("dryRun", "All")]
        made = Request(operation.method, path + ("?" + urlencode(query) if query else ""))
        if random.random() < 0.2:
            made.headers["Accept"] = random.choice(_ACCEPTS)
        if not dry or operation.method != "DELETE":  # whose body would have the last word
            self._add_body(made, operation, values, name, namespace)
        return made

    def _parameter(self, name: str) -> str:
        return self._random.choice(_PARAMETERS.get(name, WORDS))

    def _add_body(self, made: Request, operation: Operation, values: Values, name: str, namespace: str) -> None:
        content: Mapping[str, Any] = operation.details.get("requestBody", {}).get("content", {})
        if not content:
            return
        random = self._random
        kind = random.choice(list(content))
        if operation.method == "PATCH":
            if random.random() < 0.25:
                kind = "application/apply-patch+yaml"
                made.target += ("&" if "?" in made.target else "?") + "fieldManager=a&force=true"
            body: Any = self._patch(kind, operation, values, name)
        elif operation.method == "DELETE":
            body = values.of(content[kind]["schema"])
        else:
            body = self._object(operation, content[kind]["schema"], values, name, namespace)
        text = json.dumps(body).encode()
        if operation.method != "PATCH":
            kind = "application/json" if random.random() < 0.93 else random.choice(_CONTENT_TYPES)
        made.headers["Content-Type"] = kind
        chance = random.random()
        if chance < 0.01:
            text = text[: random.randrange(len(text) + 1)]
        elif chance < 0.02:
            made.headers["Content-Encoding"] = "gzip"
            text = gzip.compress(text)[: random.choice((None, -4))]
        elif chance < 0.03:
            at = random.randrange(len(text) + 1)
            text = text[:at] + random.randbytes(3) + text[at:]
        made.body = text

    def _object(self, operation: Operation, schema: Any, values: Values, name: str, namespace: str) -> Any:
        random = self._random
        body = values.of(schema)
        if not isinstance(body, dict) or random.random() < 0.01:
            return body
        meta: dict[str, Any] = {"name": name}
        if "{namespace}" in operation.path and random.random() < 0.5:
            meta["namespace"] = namespace
        if random.random() < 0.1:
            meta["generateName"] = random.choice(NAMES)
        for key in ("labels", "annotations"):
            if random.random() < 0.2:
                meta[key] = {random.choice(WORDS): random.choice(WORDS)}
        if random.random() < 0.1:
            made = values.of({"$ref": "#/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"})
            if isinstance(made, dict):
                made.pop("finalizers", None)  # or nothing would ever go
                meta = {**made, **meta}
        return {"apiVersion": operation.api_version, "kind": operation.kind, "metadata": meta, **body}

    def _patch(self, kind: str, operation: Operation, values: Values, name: str) -> Any:
        random = self._random
        if kind == "application/json-patch+json":
            return (
                [self._step() for _ in range(random.randrange(4))] if random.random() < 0.97 else random.choice(WRONG)
            )
        answer = operation.details["responses"]["200"]["content"]["application/json"]["schema"]
        body = values.of(answer)
        if not isinstance(body, dict):
            return body
        body = {"metadata": {"labels": {random.choice(WORDS): random.choice(WORDS)}}, **body}
        if kind == "application/apply-patch+yaml":
            head = {"apiVersion": operation.api_version, "kind": operation.kind}
            return {**head, **body, "metadata": {**body["metadata"], "name": name}}
        if kind == "application/strategic-merge-patch+json" and random.random() < 0.2:
            body["spec"] = random.choice(
                ({"$patch": "replace"}, {"$patch": "delete"}, {"$retainKeys": ["a"]}, {"$patch": 1})
            )
        return body

    def _step(self) -> Any:
        random = self._random
        step: dict[str, Any] = {
            "op": random.choice(("add", "replace", "remove", "test", "move", "copy", "x")),
            "path": random.choice(
                (
                    "",
                    "/",
                    "/spec",
                    "/metadata/labels/a",
                    "/spec/replicas",
                    "/spec/a/0",
                    "/metadata/name",
                    "/a~1b",
                    "/~2",
                    "x",
                )
            ),
        }
        if random.random() < 0.8:
            step["value"] = random.choice((*WRONG, *NUMBERS))
        if random.random() < 0.3:
            step["from"] = random.choice(("/spec", "/metadata", "", "x"))
        return step if random.random() < 0.97 else random.choice(WRONG)
