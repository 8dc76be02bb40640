"""The DNS server over real sockets on the loopback: cluster names, resolvers, UDP and TCP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import cast

import dns.asyncquery
import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from kone.aio.clock import FakeClock
from kone.apimachinery.kinds import CONFIGMAPS, ENDPOINTSLICES, NAMESPACES, SERVICES
from kone.net.dns.forward import resolvers_in, times_to_live
from kone.net.dns.server import DnsServer
from tests.fakes import FakeClient
from tests.net.objects import endpoint, endpoint_slice, namespace, service

# Not 127.0.0.1, whose ports other programs' connections come and go from.
HERE = "127.53.0.1"
RESOLVER = "127.53.0.2"


class Resolver(asyncio.DatagramProtocol):
    """A resolver of the outside world that counts what it is asked."""

    def __init__(self, address: str = "192.0.2.7") -> None:
        self.asked: list[str] = []
        self.silent = False
        self.rcode = dns.rcode.NOERROR
        self.addresses: list[str] = [address]
        self.ttl_s = 60
        self.transport: asyncio.DatagramTransport | None = None
        self.tcp: asyncio.Server | None = None
        self.port = 0

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self.tcp = await asyncio.start_server(self.converse, RESOLVER, 0)
        self.port = self.tcp.sockets[0].getsockname()[1]
        transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=(RESOLVER, self.port))
        self.transport = cast(asyncio.DatagramTransport, transport)

    async def stop(self) -> None:
        assert self.transport is not None
        assert self.tcp is not None
        self.transport.close()
        self.tcp.close()
        await self.tcp.wait_closed()
        await asyncio.sleep(0)

    def reply(self, data: bytes, room: int) -> bytes:
        query = dns.message.from_wire(data)
        self.asked.append(query.question[0].name.to_text())
        response = dns.message.make_response(query, recursion_available=True)
        response.set_rcode(self.rcode)
        name = query.question[0].name
        if self.rcode == dns.rcode.NOERROR and self.addresses:
            response.answer = [dns.rrset.from_text(name, self.ttl_s, "IN", "A", *self.addresses)]
        else:
            response.authority = [dns.rrset.from_text("example.com.", 900, "IN", "SOA", "ns. host. 1 2 3 4 15")]
        return response.to_wire(max_size=room, prefer_truncation=True)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if not self.silent:
            assert self.transport is not None
            self.transport.sendto(self.reply(data, 512), addr)

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        length = int.from_bytes(await reader.readexactly(2), "big")
        answer = self.reply(await reader.readexactly(length), 65535)
        writer.write(len(answer).to_bytes(2, "big") + answer)
        await writer.drain()
        writer.close()


class Setting:
    def __init__(self, tmp_path: Path) -> None:
        self.clock = FakeClock()
        self.client = FakeClient(self.clock)
        self.resolver = Resolver()
        self.conf = tmp_path / "resolv.conf"
        self.server: DnsServer | None = None

    async def start(self) -> None:
        await self.resolver.start()
        self.conf.write_text(f"nameserver {HERE}\nnameserver {RESOLVER}\n")
        for name in ("default", "kube-system"):
            self.client.put(NAMESPACES, namespace(name))
        self.server = DnsServer(
            self.client,
            "cluster.local",
            [HERE],
            port=0,
            resolv_conf=self.conf,
            clock=self.clock,
            resolver_port=self.resolver.port,
        )
        await self.server.start()

    async def stop(self) -> None:
        assert self.server is not None
        await self.server.stop()
        await self.resolver.stop()

    async def ask(self, name: str, kind: str = "A", *, tcp: bool = False, **options: object) -> dns.message.Message:
        assert self.server is not None
        query = dns.message.make_query(name, kind, **options)  # type: ignore[arg-type]
        how = dns.asyncquery.tcp if tcp else dns.asyncquery.udp
        return await how(query, HERE, port=self.server.ports[0], timeout=10)

    def configure(self, **data: object) -> None:
        """What the administrator writes."""
        meta = {"name": "kube-dns", "namespace": "kube-system"}
        texts = {key: json.dumps(value) for key, value in data.items()}
        for known in self.client.of(CONFIGMAPS):
            self.client.overwrite(CONFIGMAPS, {**known, "data": texts})
            return
        self.client.put(CONFIGMAPS, {"metadata": meta, "data": texts})


@pytest.fixture
async def setting(tmp_path: Path) -> AsyncIterator[Setting]:
    setting = Setting(tmp_path)
    await setting.start()
    yield setting
    await setting.stop()


def answers(message: dns.message.Message) -> list[str]:
    return [str(item) for rrset in message.answer for item in rrset]


WEB = "web.default.svc.cluster.local"


@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
async def test_a_service_is_found(setting: Setting, tcp: bool) -> None:
    setting.client.put(SERVICES, service("web"))
    for _ in range(2):  # computed, then from memory
        message = await setting.ask(WEB, tcp=tcp)
        assert answers(message) == ["10.96.0.20"]
        assert message.flags & dns.flags.AA
        assert message.flags & dns.flags.RA


async def test_a_change_is_seen_by_the_next_question(setting: Setting) -> None:
    assert (await setting.ask(WEB)).rcode() == dns.rcode.NXDOMAIN
    web = setting.client.put(SERVICES, service("web"))
    assert answers(await setting.ask(WEB)) == ["10.96.0.20"]
    await setting.client.delete(SERVICES, "web", namespace="default")
    assert web["spec"]["clusterIP"] == "10.96.0.20"
    assert (await setting.ask(WEB)).rcode() == dns.rcode.NXDOMAIN


async def test_no_is_said_with_the_zones_soa_and_never_asked_of_others(setting: Setting) -> None:
    setting.client.put(SERVICES, service("web"))
    missing = await setting.ask("google.com.default.svc.cluster.local")
    assert missing.rcode() == dns.rcode.NXDOMAIN
    other_type = await setting.ask(WEB, "AAAA")
    assert other_type.rcode() == dns.rcode.NOERROR
    for message in (missing, other_type):
        assert not message.answer
        assert message.authority[0].name.to_text() == "cluster.local."
        assert message.authority[0].ttl == 5
    assert not setting.resolver.asked


async def test_the_letters_of_the_question_come_back_as_they_were(setting: Setting) -> None:
    setting.client.put(SERVICES, service("web"))
    message = await setting.ask("wEb.DEFAULT.svc.cluster.LOCAL")
    assert message.question[0].name.to_text() == "wEb.DEFAULT.svc.cluster.LOCAL."
    assert message.answer[0].name.to_text() == "wEb.DEFAULT.svc.cluster.LOCAL."


async def test_several_addresses_take_turns(setting: Setting) -> None:
    setting.client.put(SERVICES, service("db", clusterIP="None"))
    setting.client.put(ENDPOINTSLICES, endpoint_slice("db", *(endpoint(f"10.244.0.{n}") for n in (5, 6, 7))))
    firsts = {answers(await setting.ask("db.default.svc.cluster.local"))[0] for _ in range(6)}
    assert firsts == {"10.244.0.5", "10.244.0.6", "10.244.0.7"}


async def test_a_long_answer_is_cut_over_udp_and_whole_over_tcp(setting: Setting) -> None:
    setting.client.put(SERVICES, service("db", clusterIP="None"))
    setting.client.put(ENDPOINTSLICES, endpoint_slice("db", *(endpoint(f"10.244.1.{n}") for n in range(1, 101))))
    name = "db.default.svc.cluster.local"
    plain = await setting.ask(name)
    assert plain.flags & dns.flags.TC
    assert len(plain.to_wire()) <= 512
    extended = await setting.ask(name, use_edns=0, payload=4096)
    assert extended.flags & dns.flags.TC
    assert extended.edns == 0
    assert extended.payload == 1232
    whole = await setting.ask(name, tcp=True)
    assert len(answers(whole)) == 100


async def test_other_names_are_asked_of_the_hosts_resolvers_once(setting: Setting) -> None:
    for _ in range(3):
        assert answers(await setting.ask("example.com")) == ["192.0.2.7"]
    assert setting.resolver.asked == ["example.com."]


async def test_remembered_answers_grow_old(setting: Setting) -> None:
    assert (await setting.ask("example.com")).answer[0].ttl == 60
    await setting.clock.advance(20)
    assert (await setting.ask("example.com")).answer[0].ttl == 40
    await setting.clock.advance(41)
    assert (await setting.ask("example.com")).answer[0].ttl == 60
    assert len(setting.resolver.asked) == 2


async def test_a_no_is_remembered_for_as_long_as_its_zone_says(setting: Setting) -> None:
    setting.resolver.rcode = dns.rcode.NXDOMAIN
    for wait_s in (0, 14, 2):
        await setting.clock.advance(wait_s)
        assert (await setting.ask("no.example.com")).rcode() == dns.rcode.NXDOMAIN
    assert len(setting.resolver.asked) == 2, "15 s is the SOA's minimum"


async def test_many_with_the_same_question_cause_one(setting: Setting) -> None:
    await asyncio.gather(*(setting.ask("example.com") for _ in range(10)))
    assert setting.resolver.asked == ["example.com."]


async def test_a_cut_answer_of_a_resolver_is_asked_for_again_over_tcp(setting: Setting) -> None:
    setting.resolver.addresses = [f"192.0.2.{n}" for n in range(1, 60)]
    assert (await setting.ask("example.com")).flags & dns.flags.TC
    assert len(answers(await setting.ask("example.com", tcp=True))) == 59


async def test_no_resolver_is_a_failure_unless_the_answer_was_known(setting: Setting, monkeypatch: object) -> None:
    assert answers(await setting.ask("known.example.com")) == ["192.0.2.7"]
    setting.conf.write_text("# nobody\n")
    await setting.clock.advance(70)
    old = await setting.ask("known.example.com")
    assert answers(old) == ["192.0.2.7"]
    assert old.answer[0].ttl == 5
    assert (await setting.ask("unknown.example.com")).rcode() == dns.rcode.SERVFAIL


async def test_an_external_name_is_followed_out_of_the_cluster(setting: Setting) -> None:
    setting.client.put(SERVICES, service("shop", type="ExternalName", externalName="shop.example.com"))
    message = await setting.ask("shop.default.svc.cluster.local")
    assert answers(message) == ["shop.example.com.", "192.0.2.7"]


async def test_an_external_name_is_followed_inside_and_a_circle_ends(setting: Setting) -> None:
    setting.client.put(SERVICES, service("web"))
    setting.client.put(SERVICES, service("alias", type="ExternalName", externalName=WEB))
    ring = "ring.default.svc.cluster.local"
    setting.client.put(SERVICES, service("ring", type="ExternalName", externalName=ring))
    message = await setting.ask("alias.default.svc.cluster.local")
    assert answers(message) == [f"{WEB}.", "10.96.0.20"]
    assert answers(await setting.ask(ring)) == [f"{ring}."]


async def test_a_reverse_name_is_the_clusters_or_is_passed_on(setting: Setting) -> None:
    setting.client.put(SERVICES, service("web"))
    assert answers(await setting.ask("20.0.96.10.in-addr.arpa", "PTR")) == [f"{WEB}."]
    await setting.ask("1.2.0.192.in-addr.arpa", "PTR")
    assert setting.resolver.asked == ["1.2.0.192.in-addr.arpa."]


@pytest.mark.parametrize(
    ("spoil", "rcode"),
    [
        (lambda wire: wire[:20], dns.rcode.FORMERR),
        (lambda wire: wire[:2] + b"\x28\x00" + wire[4:], dns.rcode.NOTIMP),
        (lambda wire: wire[:-2] + b"\x00\x03", dns.rcode.REFUSED),
        (lambda wire: wire[:4] + b"\x00\x00" + wire[6:12], dns.rcode.FORMERR),
    ],
    ids=["cut short", "an update", "class CHAOS", "no question"],
)
def test_what_is_no_question_is_told_so(
    tmp_path: Path, spoil: Callable[[bytes], bytes], rcode: dns.rcode.Rcode
) -> None:
    async def answer() -> bytes | None:
        server = DnsServer(FakeClient(), "cluster.local", [HERE])
        return server.answer_now(spoil(dns.message.make_query("example.com", "A").to_wire()))

    wire = asyncio.run(answer())
    assert wire is not None
    assert wire[3] & 0x0F == rcode


async def test_responses_and_rubbish_are_left_without_an_answer(setting: Setting) -> None:
    assert setting.server is not None
    for rubbish in (b"", b"x", b"\x00" * 11, b"\x00\x00\x80" + b"\x00" * 20):
        assert setting.server.answer_now(rubbish) == b""


async def test_an_address_in_use_is_said(setting: Setting) -> None:
    assert setting.server is not None
    second = DnsServer(setting.client, "cluster.local", [HERE], port=setting.server.ports[0])
    with pytest.raises(OSError, match="in use"):
        await second.start()
    await second.stop()


async def test_one_connection_carries_several_questions(setting: Setting) -> None:
    setting.client.put(SERVICES, service("web"))
    assert setting.server is not None
    reader, writer = await asyncio.open_connection(HERE, setting.server.ports[0])
    wire = dns.message.make_query(WEB, "A").to_wire()
    for _ in range(3):
        writer.write(len(wire).to_bytes(2, "big") + wire)
        length = int.from_bytes(await reader.readexactly(2), "big")
        assert answers(dns.message.from_wire(await reader.readexactly(length))) == ["10.96.0.20"]
    writer.close()


def test_resolvers_of_a_resolv_conf() -> None:
    text = "# c\nnameserver 10.0.0.1 # x\nsearch a b\nnameserver 10.0.0.2\nnameserver 10.96.0.10\nnameserver 10.0.0.1\n"
    assert resolvers_in(text, ["10.96.0.10"]) == ["10.0.0.1", "10.0.0.2"]


def test_times_to_live_are_found_behind_compressed_names() -> None:
    message = dns.message.make_response(dns.message.make_query("a.example.com", "A", use_edns=0))
    message.answer = [
        dns.rrset.from_text("a.example.com.", 30, "IN", "CNAME", "b.example.com."),
        dns.rrset.from_text("b.example.com.", 60, "IN", "A", "192.0.2.1", "192.0.2.2"),
    ]
    ttls, negative = times_to_live(message.to_wire())
    assert [seconds for _, seconds in ttls] == [30, 60, 60]
    assert not negative


@pytest.fixture
async def acme() -> AsyncIterator[Resolver]:
    """The server of another zone."""
    resolver = Resolver("198.51.100.9")
    await resolver.start()
    yield resolver
    await resolver.stop()


async def test_a_stub_domain_is_asked_of_its_own_servers(setting: Setting, acme: Resolver) -> None:
    assert answers(await setting.ask("a.acme.local")) == ["192.0.2.7"]
    setting.configure(stubDomains={"acme.local": [f"{RESOLVER}:{acme.port}"], "deep.acme.local": []})
    for name in ("a.acme.local", "acme.LOCAL", "x.y.acme.local"):
        assert answers(await setting.ask(name)) == ["198.51.100.9"]
    assert answers(await setting.ask("a.notacme.local")) == ["192.0.2.7"]
    assert answers(await setting.ask("a.acme.local", tcp=True)) == ["198.51.100.9"]
    await setting.client.delete(CONFIGMAPS, "kube-dns", namespace="kube-system")
    assert answers(await setting.ask("a.acme.local")) == ["192.0.2.7"]


async def test_upstreams_that_were_named_take_the_place_of_the_hosts(setting: Setting, acme: Resolver) -> None:
    setting.configure(upstreamNameservers=[f"{RESOLVER}:{acme.port}"])
    assert answers(await setting.ask("example.com")) == ["198.51.100.9"]
    setting.client.put(SERVICES, service("shop", type="ExternalName", externalName="shop.example.com"))
    assert answers(await setting.ask("shop.default.svc.cluster.local")) == ["shop.example.com.", "198.51.100.9"]
    assert setting.resolver.asked == []


async def test_a_stub_domains_server_may_be_a_service(setting: Setting, acme: Resolver) -> None:
    setting.client.put(SERVICES, service("ns", clusterIP=RESOLVER))
    setting.configure(stubDomains={"acme.local": [f"ns.default.svc.cluster.local:{acme.port}"]})
    assert answers(await setting.ask("a.acme.local")) == ["198.51.100.9"]


async def test_a_stub_domains_server_that_has_no_address_is_a_failure(setting: Setting) -> None:
    setting.configure(stubDomains={"acme.local": ["gone.default.svc.cluster.local"]})
    assert (await setting.ask("a.acme.local")).rcode() == dns.rcode.SERVFAIL


async def test_what_is_not_understood_changes_nothing(setting: Setting, acme: Resolver) -> None:
    setting.configure(stubDomains={"acme.local": [f"{RESOLVER}:{acme.port}"]})
    setting.configure(stubDomains={"acme.local": ["no/server"]})
    assert answers(await setting.ask("a.acme.local")) == ["198.51.100.9"]


async def test_the_answers_of_upstreams_that_are_lost_are_given_again(setting: Setting, acme: Resolver) -> None:
    setting.configure(stubDomains={"acme.local": [f"{RESOLVER}:{acme.port}"]})
    await setting.ask("a.acme.local")
    acme.silent = True
    await setting.clock.advance(70)
    old = await setting.ask("a.acme.local")
    assert (answers(old), old.answer[0].ttl) == (["198.51.100.9"], 5)
    assert answers(await setting.ask("example.com")) == ["192.0.2.7"]
