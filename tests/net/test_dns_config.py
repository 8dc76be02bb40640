"""The ConfigMap kube-dns: what it may say, and what is told of what it may not."""

from __future__ import annotations

import json

import pytest

from kone.net.dns.config import DnsConfig, Resolver, parse_config


def parse(**data: object) -> DnsConfig:
    return parse_config({key: value if isinstance(value, str) else json.dumps(value) for key, value in data.items()})


def test_nothing_is_the_hosts_resolvers() -> None:
    assert parse() == parse(stubDomains="", federations="{}") == DnsConfig()


def test_servers_by_address_port_and_name() -> None:
    found = parse(
        stubDomains={"acme.local": ["10.1.2.3", "10.1.2.4:5353", "fd00::1", "[fd00::1]:54", "ns.x.svc", "[fd00::2]"]},
        upstreamNameservers=["8.8.8.8", "8.8.4.4:5353"],
    )
    assert found.stubs["acme", "local"] == (
        Resolver("10.1.2.3"),
        Resolver("10.1.2.4", 5353),
        Resolver("fd00::1"),
        Resolver("fd00::1", 54),
        Resolver("ns.x.svc"),
        Resolver("fd00::2"),
    )
    assert [str(server) for server in found.upstreams] == ["8.8.8.8", "8.8.4.4:5353"]


def test_the_longest_suffix_is_the_names() -> None:
    found = parse(stubDomains={"local": ["10.0.0.1"], "acme.local": ["10.0.0.2"]})
    for name, server in (("x.acme.local", "10.0.0.2"), ("acme.local", "10.0.0.2"), ("other.local", "10.0.0.1")):
        assert found.stub_of(name.split(".")) == (Resolver(server),)
    assert found.stub_of(["example", "com"]) == ()


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"stubDomains": "{"}, "stubDomains is not JSON"),
        ({"stubDomains": ["10.0.0.1"]}, "stubDomains is no JSON object"),
        ({"stubDomains": {"acme.local": "10.0.0.1"}}, 'stubDomains: "acme.local" needs a list of name servers'),
        ({"stubDomains": {"a/b": ["10.0.0.1"]}}, 'invalid domain name: "a/b"'),
        ({"stubDomains": {"acme.local": ["a/b"]}}, 'invalid nameserver: "a/b"'),
        ({"stubDomains": {"acme.local": ["10.0.0.1:x"]}}, 'invalid nameserver: "10.0.0.1:x"'),
        ({"upstreamNameservers": {}}, "upstreamNameservers is no JSON array"),
        ({"upstreamNameservers": ["1.1.1.1"] * 4}, "upstreamNameserver cannot have more than three entries"),
        ({"upstreamNameservers": ["ns.example.com"]}, 'bad IP address: "ns.example.com"'),
        ({"upstreamNameservers": ["8.8.8.8:99999"]}, 'bad port number: "99999"'),
    ],
)
def test_what_is_wrong_is_said(data: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError) as wrong:
        parse(**data)
    assert text in str(wrong.value)
