"""What a URL asks for, and what the options in it mean."""

from __future__ import annotations

import pytest

from kone.apimachinery.errors import StatusError
from kone.apiserver.options import decode_continue, encode_continue, parse_delete_query, parse_list_options
from kone.apiserver.requests import parse_query, parse_request


@pytest.mark.parametrize(
    ("method", "url", "asked"),
    [
        ("GET", "/api/v1/namespaces/ns/pods", ("list", "", "pods", "", "ns", "")),
        ("GET", "/api/v1/namespaces/ns/pods/a", ("get", "", "pods", "", "ns", "a")),
        ("GET", "/api/v1/namespaces/ns/pods?watch=1", ("watch", "", "pods", "", "ns", "")),
        ("GET", "/api/v1/namespaces/ns/pods?watch=0", ("list", "", "pods", "", "ns", "")),
        (
            "GET",
            "/api/v1/namespaces/ns/pods?watch=true&fieldSelector=metadata.name=a",
            ("watch", "", "pods", "", "ns", "a"),
        ),
        ("GET", "/api/v1/watch/namespaces/ns/pods/a", ("watch", "", "pods", "", "ns", "a")),
        ("PUT", "/api/v1/namespaces/ns/pods/a/status", ("update", "", "pods", "status", "ns", "a")),
        ("GET", "/api/v1/namespaces/ns", ("get", "", "namespaces", "", "ns", "ns")),
        ("PUT", "/api/v1/namespaces/ns/finalize", ("update", "", "namespaces", "finalize", "ns", "ns")),
        (
            "DELETE",
            "/apis/apps/v1/namespaces/ns/deployments",
            ("deletecollection", "apps", "deployments", "", "ns", ""),
        ),
        (
            "PATCH",
            "/apis/apps/v1/namespaces/ns/deployments/a/scale",
            ("patch", "apps", "deployments", "scale", "ns", "a"),
        ),
        ("GET", "/api/v1/nodes/a%2Fb", ("get", "", "nodes", "b", "", "a")),
        ("POST", "/api/v1/namespaces/ns/pods/a/exec", ("create", "", "pods", "exec", "ns", "a")),
        ("GET", "/livez/ping", ("get", "", "", "", "", "")),
        ("GET", "/apis/apps/v1", ("get", "", "", "", "", "")),
    ],
)
def test_what_a_url_asks_for(method: str, url: str, asked: tuple[str, ...]) -> None:
    path, _, query = url.partition("?")
    found = parse_request(method, path, parse_query(query))
    assert (found.verb, found.group, found.resource, found.subresource, found.namespace, found.name) == asked


def test_queries_as_go_reads_them() -> None:
    assert parse_query("a=1&b=x+y&a=%32&c&d;e=1") == {"a": ["1", "2"], "b": ["x y"], "c": [""]}


def test_a_continue_token_is_read_back() -> None:
    assert decode_continue(encode_continue(7, "ns/a\0")) == (7, "ns/a\0")


@pytest.mark.parametrize("token", ["x", "e30", "eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6MX0", "é"])
def test_tokens_that_nobody_gave(token: str) -> None:
    with pytest.raises(StatusError, match="continue key is not valid") as raised:
        decode_continue(token)
    assert raised.value.code == 400


@pytest.mark.parametrize(
    ("query", "code", "text"),
    [
        ("limit=x", 400, "strconv.ParseInt"),
        ("resourceVersionMatch=Exact", 422, "resourceVersionMatch is forbidden unless resourceVersion is provided"),
        ("resourceVersionMatch=Exact&resourceVersion=0", 422, 'is forbidden for resourceVersion "0"'),
        ("watch=1&sendInitialEvents=true", 422, "sendInitialEvents requires setting resourceVersionMatch"),
        ("sendInitialEvents=true", 422, "sendInitialEvents is forbidden for list"),
    ],
)
def test_list_options_that_are_refused(query: str, code: int, text: str) -> None:
    with pytest.raises(StatusError) as raised:
        parse_list_options(parse_query(query))
    assert (raised.value.code, text in raised.value.message) == (code, True), raised.value.message


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("propagationPolicy=Foo", 'supported values: "Foreground", "Background", "Orphan", "nil"'),
        ("propagationPolicy=Orphan&orphanDependents=true", "cannot be both set"),
        ("dryRun=Some", 'supported values: "All"'),
    ],
)
def test_delete_options_that_are_refused(query: str, text: str) -> None:
    with pytest.raises(StatusError) as raised:
        parse_delete_query(parse_query(query))
    assert (raised.value.code, text in raised.value.message) == (422, True), raised.value.message
