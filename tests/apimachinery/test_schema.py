"""Decoding by the schema: what upstream would store of a body, what it does not know, and its words for wrong types."""

from typing import Any

import pytest

from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import GVK
from kone.apimachinery.schema import DecodeError, decode, definition, definition_of, kinds, strict_decode

POD = GVK("", "v1", "Pod")
CONFIG_MAP = GVK("", "v1", "ConfigMap")
DEPLOYMENT = GVK("apps", "v1", "Deployment")


def pod(**spec: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": {"containers": [], **spec}}


def config_map(**fields: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, **fields}


def test_unknown_fields_are_dropped_and_named_by_their_path() -> None:
    body = pod(containers=[{"name": "c", "securityContext": {"nope": 1}}], colour="red")
    decoded, findings = strict_decode(body, POD)
    assert findings == ['unknown field "spec.containers[0].securityContext.nope"', 'unknown field "spec.colour"']
    assert "colour" not in decoded["spec"]
    assert decoded["spec"]["containers"][0]["securityContext"] == {}


def test_names_are_case_sensitive() -> None:
    assert strict_decode(config_map(Data={}), CONFIG_MAP)[1] == ['unknown field "Data"']


def test_structs_are_written_even_where_the_body_says_nothing() -> None:
    decoded, _ = decode(pod(containers=[{"name": "c"}]), POD)
    assert decoded["status"] == {}
    assert decoded["spec"]["containers"] == [{"name": "c", "resources": {}}]


def test_null_and_empty_omitempty_values_are_dropped() -> None:
    decoded, _ = decode(pod(nodeName="", hostNetwork=False, tolerations=[], nodeSelector={}, priority=None), POD)
    assert decoded["spec"] == {"containers": None}


def test_an_empty_list_that_go_writes_is_null_once_stored() -> None:
    role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "rules": []}
    assert decode(role, GVK("rbac.authorization.k8s.io", "v1", "Role"))[0]["rules"] is None


def test_pointers_keep_their_zero() -> None:
    body = {"spec": {"replicas": 0, "paused": False, "template": {"spec": {"automountServiceAccountToken": False}}}}
    spec = decode(body, DEPLOYMENT)[0]["spec"]
    assert spec["replicas"] == 0
    assert "paused" not in spec
    assert spec["template"]["spec"]["automountServiceAccountToken"] is False


def test_required_values_that_are_missing_are_written_as_go_writes_them() -> None:
    decoded, _ = decode({"apiVersion": "apps/v1", "kind": "Deployment"}, DEPLOYMENT)
    assert decoded == {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {},
        "spec": {"selector": None, "template": {"metadata": {}, "spec": {"containers": None}}, "strategy": {}},
        "status": {},
    }


def test_an_empty_pointer_to_a_struct_is_kept() -> None:
    assert decode(pod(volumes=[{"name": "v", "emptyDir": {}}]), POD)[0]["spec"]["volumes"] == [
        {"name": "v", "emptyDir": {}}
    ]


@pytest.mark.parametrize(
    ("value", "stored"), [("1000m", "1"), (2, "2"), (0.5, "500m"), ("1024Ki", "1Mi"), (None, "0"), (" 1 ", "1")]
)
def test_quantities_become_canonical(value: Any, stored: str) -> None:
    body = pod(containers=[{"name": "c", "resources": {"limits": {"cpu": value}}}])
    assert decode(body, POD)[0]["spec"]["containers"][0]["resources"]["limits"] == {"cpu": stored}


@pytest.mark.parametrize(
    ("value", "stored"),
    [("2026-01-02T03:04:05Z", "2026-01-02T03:04:05Z"), ("2026-01-02T03:04:05.9+01:00", "2026-01-02T02:04:05Z")],
)
def test_times_become_utc_with_whole_seconds(value: str, stored: str) -> None:
    body = config_map(metadata={"creationTimestamp": value})
    assert decode(body, CONFIG_MAP)[0]["metadata"] == {"creationTimestamp": stored}


def test_labels_that_are_null_are_empty_text() -> None:
    assert decode(config_map(data={"k": None}), CONFIG_MAP)[0]["data"] == {"k": ""}


def test_the_result_shares_nothing_with_the_body() -> None:
    body = pod(containers=[{"name": "c", "args": ["x"]}])
    decoded, _ = decode(body, POD)
    decoded["spec"]["containers"][0]["args"].append("y")
    assert body["spec"]["containers"][0]["args"] == ["x"]


@pytest.mark.parametrize(
    ("body", "gvk", "text"),
    [
        (config_map(metadata="x"), CONFIG_MAP, "string into Go struct field ConfigMap.metadata of type v1.ObjectMeta"),
        (
            config_map(metadata={"name": 1}),
            CONFIG_MAP,
            "number into Go struct field ObjectMeta.metadata.name of type string",
        ),
        (config_map(data=[]), CONFIG_MAP, "array into Go struct field ConfigMap.data of type map[string]string"),
        (config_map(data={"a": True}), CONFIG_MAP, "bool into Go struct field ConfigMap.data of type string"),
        (
            config_map(binaryData={"a": 1}),
            CONFIG_MAP,
            "number into Go struct field ConfigMap.binaryData of type []uint8",
        ),
        (pod(containers={}), POD, "object into Go struct field PodSpec.spec.containers of type []v1.Container"),
        (
            pod(containers=[{"ports": [{"containerPort": "80"}]}]),
            POD,
            "string into Go struct field ContainerPort.spec.containers.ports.containerPort of type int32",
        ),
        (
            pod(containers=[{"imagePullPolicy": 1}]),
            POD,
            "number into Go struct field Container.spec.containers.imagePullPolicy of type v1.PullPolicy",
        ),
        (
            pod(containers=[{"livenessProbe": {"httpGet": {"port": 1.5}}}]),
            POD,
            "number 1.5 into Go struct field HTTPGetAction.spec.containers.livenessProbe.httpGet.port of type int32",
        ),
        (
            {"spec": {"replicas": 99999999999}},
            DEPLOYMENT,
            "number 99999999999 into Go struct field DeploymentSpec.spec.replicas of type int32",
        ),
        (
            {"spec": {"selector": []}},
            DEPLOYMENT,
            "array into Go struct field DeploymentSpec.spec.selector of type v1.LabelSelector",
        ),
    ],
)
def test_wrong_types(body: dict[str, Any], gvk: GVK, text: str) -> None:
    with pytest.raises(DecodeError) as caught:
        decode(body, gvk)
    assert str(caught.value) == f"json: cannot unmarshal {text}"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (
            pod(containers=[{"resources": {"limits": {"cpu": "x"}}}]),
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
        ),
        (
            {"metadata": {"creationTimestamp": "soon"}},
            'parsing time "soon" as "2006-01-02T15:04:05Z07:00": cannot parse "soon" as "2006"',
        ),
        (
            {"metadata": {"creationTimestamp": 3}},
            "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.creationTimestamp of type string",
        ),
    ],
)
def test_values_that_read_themselves_have_their_own_words(body: dict[str, Any], text: str) -> None:
    with pytest.raises(DecodeError) as caught:
        decode(body, POD)
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("text", "at"),
    [("a", 0), ("abcda", 4), ("ab=", 3), ("a===", 1), ("ab?=", 2), ("YWJj=", 4), ("YQ==YQ==", 4), ("abc=\nx", 5)],
)
def test_where_base64_breaks(text: str, at: int) -> None:
    with pytest.raises(DecodeError) as caught:
        decode(config_map(binaryData={"k": text}), CONFIG_MAP)
    assert str(caught.value) == f"illegal base64 data at input byte {at}"


def test_a_wrong_type_is_a_bad_request() -> None:
    with pytest.raises(StatusError) as caught:
        strict_decode({"spec": {"replicas": "x"}}, DEPLOYMENT)
    assert (caught.value.code, caught.value.message) == (
        400,
        'Deployment in version "v1" cannot be handled as a Deployment: json: cannot unmarshal string into Go struct '
        "field DeploymentSpec.spec.replicas of type int32",
    )


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (3, "cannot restore struct from: int64"),
        ({"replicas": "x"}, "unrecognized type: int32"),
        ({"template": {"spec": {"containers": {}}}}, "cannot restore slice from map"),
    ],
)
def test_the_converter_of_strategic_merge_patches_has_other_words(spec: Any, text: str) -> None:
    with pytest.raises(DecodeError) as caught:
        decode({"spec": spec}, DEPLOYMENT)
    assert caught.value.converter_text == text


def test_kinds_that_are_not_built_in_come_back_as_they_are() -> None:
    assert decode({"a": None}, GVK("example.com", "v1", "Widget")) == ({"a": None}, [])


def test_every_definition_compiles_and_its_zero_value_decodes_to_itself() -> None:
    for gvk in kinds():
        found = definition_of(gvk)
        assert found is not None
        zero = found.zero()
        assert decode(zero, gvk) == (zero, []), gvk


def test_what_patches_need_to_know() -> None:
    containers = definition("core.v1.PodSpec").fields["containers"]
    assert (containers.strategies, containers.merge_key, containers.list_type) == (("merge",), "name", "map")
    assert definition("apps.v1.DeploymentSpec").fields["strategy"].strategies == ("retainKeys",)
