"""A container's environment, value by value."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import pytest

from kone.apimachinery.objects import Object
from kone.runtime.environment import (
    ConfigError,
    PodFacts,
    Reference,
    env_file_value,
    environment,
    expand,
    expand_sub_path,
    field_value,
    needs_pod_ip,
    references,
    resource_value,
    service_environment,
)
from tests.runtime.kubelet_world import make_container, make_pod

FACTS = PodFacts("n1", ("192.0.2.1", "2001:db8::1"), ("10.244.0.7", "fd00::7"), {"cpu": 2000, "memory": 4 << 30})


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("$(A)", "1"),
        ("$$(A)", "$(A)"),
        ("$(NOPE)", "$(NOPE)"),
        ("$$$(A)", "$1"),
        ("$$$$(A)", "$$(A)"),
        ("$(A", "$(A"),
        ("$()", "$()"),
        ("$(A)$(B)", "112"),
        ("$A", "$A"),
        ("end$", "end$"),
        ("", ""),
    ],
)
def test_expansion(text: str, expanded: str) -> None:
    assert expand(text, {"A": "1", "B": "12"}.get) == expanded


def test_a_sub_path_needs_all_its_variables() -> None:
    assert expand_sub_path("$(A)/x", {"A": "1"}) == "1/x"
    with pytest.raises(ConfigError, match=r"^missing value for B, C$"):
        expand_sub_path("$(C)/$(B)/$(A)", {"A": "1", "B": ""})


def env_of(env: list[Object], *, found: dict[Reference, Object | None] | None = None, **more: Any) -> dict[str, str]:
    container = make_container(env=env, **more)
    return environment(make_pod("p", container), container, facts=FACTS, found=found or {}, services=[])


def test_a_value_may_use_what_stands_above_it() -> None:
    env = [{"name": "A", "value": "1"}, {"name": "B", "value": "$(A)2"}, {"name": "C", "value": "$(D)"}]
    assert env_of(env) == {"A": "1", "B": "12", "C": "$(D)"}


def test_a_variable_without_a_value_is_empty() -> None:
    assert env_of([{"name": "A"}]) == {"A": ""}


CONFIGMAP = {"kind": "ConfigMap", "metadata": {"name": "cm"}, "data": {"a": "ca", "k.dot": "cd"}}
SECRET = {"kind": "Secret", "metadata": {"name": "se"}, "data": {"z": base64.b64encode(b"sz").decode()}}
FOUND: dict[Reference, Object | None] = {Reference("configmap", "cm"): CONFIGMAP, Reference("secret", "se"): SECRET}


def key_of(kind: str, name: str, key: str, **more: Any) -> Object:
    return {"name": "V", "valueFrom": {f"{kind}KeyRef": {"name": name, "key": key, **more}}}


def test_keys_of_configmaps_and_secrets() -> None:
    assert env_of([key_of("configMap", "cm", "a")], found=FOUND) == {"V": "ca"}
    assert env_of([key_of("secret", "se", "z")], found=FOUND) == {"V": "sz"}


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        (key_of("configMap", "nope", "a"), 'configmap "nope" not found'),
        (key_of("secret", "nope", "a"), 'secret "nope" not found'),
        (key_of("configMap", "cm", "x"), "couldn't find key x in ConfigMap default/cm"),
        (key_of("secret", "se", "x"), "couldn't find key x in Secret default/se"),
    ],
)
def test_what_is_missing_is_named(variable: Object, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        env_of([variable], found=FOUND)
    assert str(error.value) == message


def test_what_is_optional_may_be_missing() -> None:
    assert env_of([key_of("configMap", "nope", "a", optional=True)], found=FOUND) == {}
    assert env_of([key_of("secret", "se", "x", optional=True)], found=FOUND) == {}
    assert env_of([], envFrom=[{"secretRef": {"name": "nope", "optional": True}}]) == {}


def test_whole_configmaps_with_a_prefix() -> None:
    sources = [{"prefix": "P_", "configMapRef": {"name": "cm"}}, {"secretRef": {"name": "se"}}]
    assert env_of([], found=FOUND, envFrom=sources) == {"P_a": "ca", "P_k.dot": "cd", "z": "sz"}
    assert references(make_container(envFrom=sources)) == [Reference("configmap", "cm"), Reference("secret", "se")]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("metadata.name", "p"),
        ("metadata.namespace", "default"),
        ("metadata.uid", "u1"),
        ("metadata.labels['app']", "web"),
        ("metadata.labels['none']", ""),
        ("metadata.labels", 'app="web"\nz="q\\"uote"'),
        ("metadata.annotations['a.b/c']", "x"),
        ("spec.nodeName", "n1"),
        ("spec.serviceAccountName", "sa"),
        ("status.hostIP", "192.0.2.1"),
        ("status.hostIPs", "192.0.2.1,2001:db8::1"),
        ("status.podIP", "10.244.0.7"),
        ("status.podIPs", "10.244.0.7,fd00::7"),
    ],
)
def test_fields_of_the_pod(path: str, value: str) -> None:
    pod = make_pod("p", serviceAccountName="sa")
    pod["metadata"] |= {"uid": "u1", "labels": {"z": 'q"uote', "app": "web"}, "annotations": {"a.b/c": "x"}}
    assert field_value(pod, path, FACTS) == value


def test_a_pod_on_the_hosts_network_has_the_hosts_addresses() -> None:
    assert field_value(make_pod("p", hostNetwork=True), "status.podIP", FACTS) == "192.0.2.1"


def test_only_some_environments_must_wait_for_the_address() -> None:
    by_ip = {"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
    by_name = {"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
    assert needs_pod_ip(make_container(env=[by_ip]))
    assert not needs_pod_ip(make_container(env=[by_name]))


@pytest.mark.parametrize(
    ("resource", "divisor", "value"),
    [
        ("limits.cpu", "1", "1"),  # 500m, rounded up
        ("limits.cpu", "1m", "500"),
        ("requests.cpu", "1", "1"),
        ("limits.memory", "1Mi", "64"),
        ("limits.memory", None, str(64 << 20)),
        ("requests.memory", "1", "0"),
        ("limits.ephemeral-storage", "1", "0"),
    ],
)
def test_resources(resource: str, divisor: str | None, value: str) -> None:
    container = make_container(resources={"limits": {"cpu": "500m", "memory": "64Mi"}, "requests": {"cpu": "250m"}})
    assert resource_value(container, {"resource": resource, "divisor": divisor}, FACTS.allocatable) == value


def test_a_limit_that_is_not_set_is_the_whole_node() -> None:
    assert resource_value(make_container(), {"resource": "limits.cpu"}, FACTS.allocatable) == "2"
    assert resource_value(make_container(), {"resource": "limits.memory", "divisor": "1Gi"}, FACTS.allocatable) == "4"


def service(name: str, namespace: str, address: str, *ports: Object) -> Object:
    return {"metadata": {"name": name, "namespace": namespace}, "spec": {"clusterIP": address, "ports": list(ports)}}


SERVICES = [
    service("kubernetes", "default", "10.96.0.1", {"name": "https", "port": 443, "protocol": "TCP"}),
    service(
        "my-db", "other", "10.96.0.5", {"port": 5432, "protocol": "TCP"}, {"name": "m", "port": 53, "protocol": "UDP"}
    ),
    service("headless", "other", "None", {"port": 1}),
    service("else", "third", "10.96.0.9", {"port": 1}),
]


def test_services_of_the_namespace_and_the_api() -> None:
    pod = make_pod("p")
    pod["metadata"]["namespace"] = "other"
    env = service_environment(pod, SERVICES)
    assert env["KUBERNETES_SERVICE_HOST"] == "10.96.0.1"
    assert env["KUBERNETES_SERVICE_PORT"] == env["KUBERNETES_SERVICE_PORT_HTTPS"] == "443"
    assert env["KUBERNETES_PORT_443_TCP"] == env["KUBERNETES_PORT"] == "tcp://10.96.0.1:443"
    assert env["KUBERNETES_PORT_443_TCP_PROTO"] == "tcp"
    assert env["MY_DB_SERVICE_PORT"] == "5432"
    assert env["MY_DB_SERVICE_PORT_M"] == "53"
    assert env["MY_DB_PORT_53_UDP_ADDR"] == "10.96.0.5"
    assert {name.split("_")[0] for name in env} == {"KUBERNETES", "MY"}


def test_without_service_links_only_the_api_is_seen() -> None:
    pod = make_pod("p", enableServiceLinks=False)
    pod["metadata"]["namespace"] = "other"
    assert {name.split("_")[0] for name in service_environment(pod, SERVICES)} == {"KUBERNETES"}


def test_what_the_container_names_itself_wins_over_a_service() -> None:
    container = make_container(
        env=[{"name": "KUBERNETES_SERVICE_HOST", "value": "me"}, {"name": "P", "value": "$(KUBERNETES_PORT)"}]
    )
    env = environment(make_pod("p", container), container, facts=FACTS, found={}, services=SERVICES)
    assert env["KUBERNETES_SERVICE_HOST"] == "me"
    assert env["P"] == "tcp://10.96.0.1:443"


ENV_FILE = """
# written by an init container
PLAIN='value one'
  INDENTED='x' # and a comment
LINES='first
second'
EMPTY= 'never'
"""


@pytest.mark.parametrize(
    ("key", "value"),
    [("PLAIN", "value one"), ("INDENTED", "x"), ("LINES", "first\nsecond"), ("EMPTY", ""), ("MISSING", "")],
)
def test_a_file_of_variables_has_values_in_single_quotes(key: str, value: str) -> None:
    assert env_file_value(ENV_FILE, key) == value


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("A", "at line 1: missing '='"),
        ("='x'", "at line 1: empty variable name"),
        ("\nA ='x'", "at line 2: whitespace before '=' is not allowed"),
        ('A="x"', "at line 1: value must be enclosed in single quotes"),
        ("A=x", "at line 1: value must be enclosed in single quotes"),
        ("A=", "at line 1: value must be enclosed in single quotes"),
        ("A='x' y", "at line 1: unexpected content after closing quote"),
        ("\nA='x\ny", "starting at line 2: unclosed single quote"),
    ],
)
def test_a_file_of_variables_is_read_strictly(text: str, why: str) -> None:
    with pytest.raises(ValueError) as error:
        env_file_value(text, "B")
    assert str(error.value) == f"invalid environment variable format {why}"


def from_file(read: Callable[[str, str], str], **ref: Any) -> dict[str, str]:
    source = {"fileKeyRef": {"volumeName": "v", "path": "dir/env", "key": "A", **ref}}
    container = {"name": "c", "env": [{"name": "X", "valueFrom": source}, {"name": "Y", "value": "$(X)!"}]}
    pod = {"metadata": {"name": "p", "namespace": "n"}, "spec": {"enableServiceLinks": False, "containers": []}}
    facts = PodFacts("n1", (), (), {})
    return environment(pod, container, facts=facts, found={}, services=(), read_file=read)


def test_a_variable_may_be_read_from_a_file_of_a_volume() -> None:
    asked = []

    def read(volume: str, path: str) -> str:
        asked.append((volume, path))
        return "A='1'"

    assert from_file(read) == {"X": "1", "Y": "1!"}
    assert asked == [("v", "dir/env")]
    assert from_file(lambda volume, path: "", optional=True) == {"Y": "$(X)!"}
    for content, why in (
        ("", 'environment variable key "A" not found in file "dir/env"'),
        ("A", "couldn't parse env file"),
    ):
        with pytest.raises(ConfigError) as error:
            from_file(lambda volume, path, content=content: content)  # type: ignore[misc]
        assert str(error.value) == why
