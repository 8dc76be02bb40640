"""A container's environment: plain values, $(VAR) expansion, fields of the pod, resources, configMaps, secrets, files
of its volumes, services. Pure.

What has to be read from the API first is named by `references`; the reader hands the objects in, and a way to files.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from kone.apimachinery.objects import Object, annotations_of, dig, labels_of, name_of, namespace_of, uid_of
from kone.apimachinery.pod_resources import Amounts, amounts
from kone.apimachinery.quantity import parse_quantity
from kone.runtime.pod_spec import find_container, is_host_network

ENV_LINKS_ALWAYS = ("default", "kubernetes")  # the master service is seen in every namespace


class ConfigError(Exception):
    """A container cannot be made as its pod asks: CreateContainerConfigError with this message."""


class Reference(NamedTuple):
    """An object of the pod's namespace that an environment is made from."""

    kind: Literal["configmap", "secret"]
    name: str


class PodFacts(NamedTuple):
    """What of a pod's surroundings can be asked by fieldRef and resourceFieldRef."""

    node_name: str
    host_ips: Sequence[str]
    pod_ips: Sequence[str]
    allocatable: Amounts  # of the node: stands for a limit that is not set; cpu in thousandths


Found = Mapping[Reference, Object | None]
ReadFile = Callable[[str, str], str]
"""The text of a file, by the name of the pod's volume and the path in it. Raises ConfigError."""


def no_files(volume: str, path: str) -> str:
    raise ConfigError(f'cannot find the volume "{volume}" referenced by FileKeyRef')


def expand(text: str, lookup: Callable[[str], str | None]) -> str:
    """Replace $(NAME) where `lookup` knows NAME; $$ is a dollar sign that expands nothing.

    Worked case, with A=1: "$(A)" -> "1", "$$(A)" -> "$(A)", "$(B)" -> "$(B)", "$(A" -> "$(A", "$A" -> "$A".
    """
    out: list[str] = []
    position = 0
    while (dollar := text.find("$", position)) >= 0 and dollar + 1 < len(text):
        out.append(text[position:dollar])
        following = text[dollar + 1]
        closing = text.find(")", dollar + 2) if following == "(" else -1
        if following == "$":
            out.append("$")
            position = dollar + 2
        elif closing >= 0:
            name = text[dollar + 2 : closing]
            value = lookup(name)
            out.append(f"$({name})" if value is None else value)
            position = closing + 1
        else:
            out.append(text[dollar : dollar + 2])
            position = dollar + 2
    out.append(text[position:])
    return "".join(out)


def expand_sub_path(expression: str, env: Mapping[str, str]) -> str:
    """A volume mount's subPathExpr. Raises ConfigError where a variable is missing or empty."""
    missing: set[str] = set()

    def lookup(name: str) -> str | None:
        if not env.get(name):
            missing.add(name)
        return env.get(name)

    path = expand(expression, lookup)
    if missing:
        raise ConfigError(f"missing value for {', '.join(sorted(missing))}")
    return path


def references(container: Object) -> list[Reference]:
    """Which configMaps and secrets the environment needs."""
    found: list[Reference] = []
    for source in container.get("envFrom") or ():
        if ref := source.get("configMapRef"):
            found.append(Reference("configmap", ref["name"]))
        if ref := source.get("secretRef"):
            found.append(Reference("secret", ref["name"]))
    for variable in container.get("env") or ():
        source = variable.get("valueFrom") or {}
        if ref := source.get("configMapKeyRef"):
            found.append(Reference("configmap", ref["name"]))
        if ref := source.get("secretKeyRef"):
            found.append(Reference("secret", ref["name"]))
    return list(dict.fromkeys(found))


def needs_files(container: Object) -> bool:
    """Whether the environment is read from files of the pod's volumes."""
    return any(dig(v, "valueFrom", "fileKeyRef") is not None for v in container.get("env") or ())


def needs_pod_ip(container: Object) -> bool:
    """Whether the environment can only be made once the pod has its address."""
    paths = (dig(v, "valueFrom", "fieldRef", "fieldPath") for v in container.get("env") or ())
    return any(path in ("status.podIP", "status.podIPs") for path in paths)


def environment(
    pod: Object,
    container: Object,
    *,
    facts: PodFacts,
    found: Found,
    services: Iterable[Object],
    read_file: ReadFile = no_files,
) -> dict[str, str]:
    """The variables, in order: what the container names, then the services it does not name itself. Raises
    ConfigError.
    """
    service_env = service_environment(pod, services)
    env: dict[str, str] = {}
    for source in container.get("envFrom") or ():
        prefix = source.get("prefix", "")
        kind: Literal["configmap", "secret"]
        for kind, field in (("configmap", "configMapRef"), ("secret", "secretRef")):
            if ref := source.get(field):
                obj = _required(found, Reference(kind, ref["name"]), optional=bool(ref.get("optional")))
                for key, value in sorted(_data(obj).items()):
                    env[prefix + key] = value
    for variable in container.get("env") or ():
        name = variable["name"]
        source = variable.get("valueFrom")
        if not source:

            def lookup(key: str) -> str | None:
                return env[key] if key in env else service_env.get(key)

            env[name] = expand(variable.get("value", ""), lookup)
            continue
        given = _value_from(pod, container, source, facts, found, read_file)
        if given is not None:
            env[name] = given
    return env | {name: value for name, value in service_env.items() if name not in env}


def _value_from(
    pod: Object, container: Object, source: Object, facts: PodFacts, found: Found, read_file: ReadFile
) -> str | None:
    """The value, None where something optional is missing."""
    if ref := source.get("fieldRef"):
        try:
            return field_value(pod, ref.get("fieldPath", ""), facts)
        except ValueError as error:
            raise ConfigError(str(error)) from error
    if ref := source.get("resourceFieldRef"):
        holder = find_container(pod, ref["containerName"]) if ref.get("containerName") else container
        if holder is None:
            raise ConfigError(f"container {ref['containerName']} not found")
        try:
            return resource_value(holder, ref, facts.allocatable)
        except ValueError as error:
            raise ConfigError(str(error)) from error
    if ref := source.get("configMapKeyRef"):
        return _key_of(pod, found, Reference("configmap", ref["name"]), ref, "ConfigMap")
    if ref := source.get("secretKeyRef"):
        return _key_of(pod, found, Reference("secret", ref["name"]), ref, "Secret")
    if ref := source.get("fileKeyRef"):
        text = read_file(ref["volumeName"], ref["path"])
        try:
            value = env_file_value(text, ref["key"])
        except ValueError as error:
            raise ConfigError("couldn't parse env file") from error
        if not value and not ref.get("optional"):
            raise ConfigError(f'environment variable key "{ref["key"]}" not found in file "{ref["path"]}"')
        return value or None
    return None


def env_file_value(text: str, key: str) -> str:
    """The value of a key in a file of lines such as NAME='value', "" where it has none.

    A value is in single quotes, as it is, over several lines where it must; comments begin with #, also after a value.
    `NAME= 'value'` gives nothing, as a shell would. Raises ValueError with the number of the line.
    """
    what = "invalid environment variable format"
    lines = iter(enumerate(text.splitlines(), 1))
    for number, line in lines:
        line = line.lstrip(" \t")
        if not line or line.startswith("#"):
            continue
        name, equals, value = line.partition("=")
        if not equals:
            raise ValueError(f"{what} at line {number}: missing '='")
        if not name.strip(" \t"):
            raise ValueError(f"{what} at line {number}: empty variable name")
        if name != name.rstrip(" \t"):
            raise ValueError(f"{what} at line {number}: whitespace before '=' is not allowed")
        if value.startswith((" ", "\t")) or not value:
            if not value:
                raise ValueError(f"{what} at line {number}: value must be enclosed in single quotes")
            if name == key:
                return ""
            continue
        if not value.startswith("'"):
            raise ValueError(f"{what} at line {number}: value must be enclosed in single quotes")
        whole = value[1:]
        while "'" not in whole:
            following = next(lines, None)
            if following is None:
                raise ValueError(f"{what} starting at line {number}: unclosed single quote")
            whole = f"{whole}\n{following[1]}"
        inside, _, after = whole.partition("'")
        after = after.lstrip(" \t")
        if after and not after.startswith("#"):
            raise ValueError(f"{what} at line {number}: unexpected content after closing quote")
        if name == key:
            return inside
    return ""


def _required(found: Found, ref: Reference, *, optional: bool) -> Object:
    obj = found.get(ref)
    if obj is None and not optional:
        raise ConfigError(f'{ref.kind} "{ref.name}" not found')
    return obj or {}


def _key_of(pod: Object, found: Found, ref: Reference, source: Object, kind: str) -> str | None:
    optional = bool(source.get("optional"))
    data = _data(_required(found, ref, optional=optional))
    if source["key"] in data:
        return data[source["key"]]
    if optional:
        return None
    raise ConfigError(f"couldn't find key {source['key']} in {kind} {namespace_of(pod)}/{ref.name}")


def _data(obj: Object) -> dict[str, str]:
    if obj.get("kind") == "Secret" or "type" in obj:
        return {k: base64.b64decode(v).decode(errors="surrogateescape") for k, v in (obj.get("data") or {}).items()}
    return dict(obj.get("data") or {})


def field_value(pod: Object, path: str, facts: PodFacts) -> str:
    """The text of a fieldRef, in environments and downwardAPI volumes alike. Raises ValueError."""
    if path.startswith("metadata."):
        base, _, subscript = path.partition("['")
        key = subscript.removesuffix("']")
        if base in ("metadata.labels", "metadata.annotations"):
            values = labels_of(pod) if base == "metadata.labels" else annotations_of(pod)
            if subscript:
                return values.get(key, "")
            return "\n".join(f'{name}="{_escaped(value)}"' for name, value in sorted(values.items()))
    match path:
        case "metadata.name":
            return name_of(pod)
        case "metadata.namespace":
            return namespace_of(pod)
        case "metadata.uid":
            return uid_of(pod)
        case "spec.nodeName":
            return facts.node_name
        case "spec.serviceAccountName":
            return str(dig(pod, "spec", "serviceAccountName", default=""))
        case "status.hostIP":
            return next(iter(facts.host_ips), "")
        case "status.hostIPs":
            return ",".join(facts.host_ips)
        case "status.podIP":
            return next(iter(_pod_ips(pod, facts)), "")
        case "status.podIPs":
            return ",".join(_pod_ips(pod, facts))
        case _:
            raise ValueError(f"unsupported fieldPath: {path}")


def _pod_ips(pod: Object, facts: PodFacts) -> Sequence[str]:
    return facts.host_ips if is_host_network(pod) else facts.pod_ips


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t").replace('"', '\\"')


def resource_value(container: Object, ref: Object, allocatable: Amounts) -> str:
    """A request or limit over the divisor, rounded up; what has no limit has the node's whole. Raises ValueError."""
    side, _, resource = ref["resource"].partition(".")
    if side not in ("limits", "requests"):
        raise ValueError(f"unsupported container resource : {ref['resource']}")
    found = amounts(dig(container, "resources", side)).get(resource)
    if found is None and side == "limits":
        found = allocatable.get(resource, 0)
    divisor = parse_quantity(ref.get("divisor") or "1")
    if divisor.is_zero:
        divisor = parse_quantity("1")
    by = divisor.milli() if resource == "cpu" else divisor.value()
    return str(-(-(found or 0) // by))


def service_environment(pod: Object, services: Iterable[Object]) -> dict[str, str]:
    """NAME_SERVICE_HOST and its like, of the pod's own namespace and of the API's service (docs, Discovering
    services).
    """
    links = dig(pod, "spec", "enableServiceLinks", default=True)
    env: dict[str, str] = {}
    chosen: dict[str, Object] = {}
    for service in services:
        where = (namespace_of(service), name_of(service))
        own = links and where[0] == namespace_of(pod)
        if own or (where == ENV_LINKS_ALWAYS and where[1] not in chosen):
            chosen[where[1]] = service
    for name, service in sorted(chosen.items()):
        address = dig(service, "spec", "clusterIP", default="")
        ports = dig(service, "spec", "ports", default=[])
        if not address or address == "None" or not ports:
            continue
        prefix = name.upper().replace("-", "_")
        env[f"{prefix}_SERVICE_HOST"] = address
        env[f"{prefix}_SERVICE_PORT"] = str(ports[0]["port"])
        for port in ports:
            if port.get("name"):
                env[f"{prefix}_SERVICE_PORT_{port['name'].upper().replace('-', '_')}"] = str(port["port"])
        for index, port in enumerate(ports):
            protocol = port.get("protocol", "TCP")
            host = f"[{address}]" if ":" in address else address
            url = f"{protocol.lower()}://{host}:{port['port']}"
            if index == 0:
                env[f"{prefix}_PORT"] = url
            link = f"{prefix}_PORT_{port['port']}_{protocol}"
            env[link] = url
            env[f"{link}_PROTO"] = protocol.lower()
            env[f"{link}_PORT"] = str(port["port"])
            env[f"{link}_ADDR"] = address
    return env
