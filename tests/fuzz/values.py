"""Values of OpenAPI schemas: most of them as the schema says, so that they get deep into validation, some not."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any, Final

Schema = Mapping[str, Any]

WRONG: Final[tuple[Any, ...]] = (
    *(None, "", 0, -1, 1.5, True, [], {}, [[]], [None], {"": None}, {"a": {"b": {"c": []}}}),
    *(2**31, -(2**31) - 1, 2**63, -(2**63) - 1, 2**64, 1e308, "x" * 300, "\u0000", "\U0001f600", "-", " ", "a b"),
)
"""What some field cannot be."""
NAMES: Final = (
    "a",
    "b",
    "c",
    "default",
    "kube-system",
    "a.b",
    "a-b",
    "A",
    "a_b",
    "-a",
    "a" * 64,
    "system:x",
    "..",
    "ü",
)
WORDS: Final = (
    *("", "a", "b", "*", "x/y", "a.example.com", "a.example.com/b", "kubernetes.io/x", "/a/b", "../b", "$(A)", "{{a}}"),
    *("0", "1", "-1", "100m", "1Gi", "1e3", "1.5", "5%", "150%", "1h", "1h5m3s", "1ns", "2001-01-01T00:00:00Z"),
    *("127.0.0.1", "10.0.0.0/8", "10.96.0.10", "::1", "fd00::/64", "300.1.1.1", "http", "80", "TCP", "UDP", "SCTP"),
    *("Always", "Never", "IfNotPresent", "OnFailure", "ClusterIP", "None", "NodePort", "LoadBalancer", "ExternalName"),
    *("RollingUpdate", "Recreate", "OnDelete", "Parallel", "Indexed", "Forbid", "Allow", "Retain", "Delete", "Fail"),
    *("ReadWriteOnce", "Block", "Filesystem", "Immediate", "WaitForFirstConsumer", "Exists", "In", "NotIn", "Gt"),
    *("NoSchedule", "NoExecute", "User", "Group", "ServiceAccount", "Role", "ClusterRole", "Deployment", "Pod"),
    *("v1", "apps/v1", "rbac.authorization.k8s.io", "get", "list", "pods", "cpu", "memory", "Utilization", "Resource"),
    *("object.spec.replicas <= 5", "self.a == oldSelf.a", "1 +", "true", "[1,2].all(x, x > 0)", "* * * * *", "@daily"),
    *("IPv4", "IPv6", "SingleStack", "PreferDualStack", "Cluster", "Local", "Prefix", "Exact", "True", "Unknown"),
    *("object", "string", "integer", "array", "boolean", "Namespaced", "X", "xs", ".spec.x", "https://a.example.com"),
    *("kubernetes.io/tls", "Opaque", "kubernetes.io/service-account-token", "client auth", "digital signature"),
)
"""What fields of Kubernetes hold, so that one value leads to the next rule; and what they must not."""
NUMBERS: Final = (0, 1, 2, 3, 5, 10, 80, 100, 255, 443, 1000, 30000, 65535, 65536, 2**31 - 1, 2**63 - 1, -1, -5)
_KEPT: Final = ("apiVersion", "kind", "metadata")


class Values:
    """Makes values of one document's schemas."""

    def __init__(self, random: Random, schemas: Mapping[str, Schema], wrong: float = 0.02) -> None:
        self._random = random
        self._schemas = schemas
        self._wrong = wrong

    def of(self, schema: Schema, depth: int = 0, name: str = "") -> Any:
        """A value of a schema; with the chance `wrong`, and at every depth, anything else."""
        random = self._random
        if random.random() < self._wrong:
            return random.choice(WRONG)
        schema = self._resolved(schema)
        kind = schema.get("type")
        if kind == "object" or "properties" in schema or "additionalProperties" in schema:
            return self._object(schema, depth)
        if kind == "array":
            most = 3 if depth < 8 else 1
            return [self.of(schema["items"], depth + 1, name) for _ in range(random.randrange(most + 1))]
        if kind == "integer":
            return random.choice(NUMBERS)
        if kind == "number":
            return random.choice((*NUMBERS, 0.5))
        if kind == "boolean":
            return random.random() < 0.5
        if kind == "string":
            return self._string(schema, name)
        return random.choice(WRONG) if random.random() < 0.3 else random.choice(WORDS)

    def _resolved(self, schema: Schema) -> Schema:
        while True:
            if (ref := schema.get("$ref")) is not None:
                schema = self._schemas[ref.rpartition("/")[2]]
            elif schema.get("allOf"):
                schema = schema["allOf"][0]
            elif schema.get("oneOf"):
                schema = self._random.choice(schema["oneOf"])
            else:
                return schema

    def _object(self, schema: Schema, depth: int) -> Any:
        random = self._random
        properties: Mapping[str, Schema] = schema.get("properties") or {}
        required = schema.get("required") or ()
        chance = 0.6 / (1 + depth) if len(properties) > 4 else 0.8 / (1 + depth / 2)
        made = {}
        for name, each in properties.items():
            if name in _KEPT and depth == 0:
                continue
            if random.random() < (0.96 if name in required else chance):
                made[name] = self.of(each, depth + 1, name)
        more = schema.get("additionalProperties")
        if isinstance(more, Mapping) and depth < 12:
            for _ in range(random.randrange(3)):
                made[random.choice(WORDS) if random.random() < 0.5 else random.choice(NAMES)] = self.of(more, depth + 1)
        elif not properties and depth < 12 and random.random() < 0.3:
            made[random.choice(WORDS)] = random.choice(WRONG)
        if random.random() < self._wrong:
            made[random.choice(WORDS)] = random.choice(WRONG)
        return made

    def _string(self, schema: Schema, name: str) -> str:
        random = self._random
        if enum := schema.get("enum"):
            return random.choice(enum)  # type: ignore[no-any-return]
        if schema.get("format") == "date-time":
            return random.choice(
                ("2026-01-02T03:04:05Z", "2026-01-02T03:04:05.000001Z", "0001-01-01T00:00:00Z", "soon")
            )
        if schema.get("format") == "byte":
            return random.choice(("", "YQ==", "YQ", "!", "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tCg=="))
        if name.lower().endswith("name") or name in ("namespace", "key"):
            return random.choice(NAMES)
        return random.choice(WORDS)
