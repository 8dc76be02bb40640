"""Settings: where each comes from, what is derived, and the one line that a wrong one is answered with."""

from __future__ import annotations

from pathlib import Path

import pytest

from kone.config import ConfigError, OneLineParser, Settings, add_flags, from_arguments, resolve


def settings(*argv: str, environ: dict[str, str] | None = None) -> Settings:
    parser = OneLineParser(prog="kone")
    add_flags(parser)
    return from_arguments(parser.parse_args(list(argv)), environ or {})


def test_defaults_are_those_of_the_command_line_contract() -> None:
    found = settings()
    assert (found.data_dir, found.bind_address, found.secure_port) == ("/var/lib/kone", "0.0.0.0", 6443)
    assert (found.cluster_cidr, found.service_cidr, found.cluster_dns) == (
        "10.244.0.0/16",
        "10.96.0.0/16",
        "10.96.0.10",
    )
    assert (found.cluster_domain, found.proxy_mode, found.kubelet_port) == ("cluster.local", "auto", 10250)
    assert found.datastore == "sqlite:////var/lib/kone/kone.db"


def test_a_flag_beats_the_environment_which_beats_the_file(tmp_path: Path) -> None:
    file = tmp_path / "kone.yaml"
    file.write_text("secure-port: 1\nnode-name: from-file\ndisable: [dns, proxy]\nmax-pods: 7\n")
    found = settings(
        "--config", str(file), "--secure-port", "3", environ={"KONE_SECURE_PORT": "2", "KONE_NODE_NAME": "from-env"}
    )
    assert (found.secure_port, found.node_name, found.max_pods) == (3, "from-env", 7)
    assert found.disabled == {"dns", "proxy"}


def test_dns_is_the_tenth_address_of_the_service_range() -> None:
    assert settings("--service-cidr", "10.200.0.0/16").cluster_dns == "10.200.0.10"


def test_the_load_balancers_pool_is_given_as_ranges_and_from_to() -> None:
    found = settings("--load-balancer-pool", "192.0.2.240/28, 192.0.2.10,192.0.2.4-192.0.2.7")
    assert found.load_balancer_networks == ("192.0.2.240/28", "192.0.2.10/32", "192.0.2.4/30")
    found = settings("--load-balancer-pool", "fd00::40/122,fd00::4-fd00::7")
    assert found.load_balancer_networks == ("fd00::40/122", "fd00::4/126")


def test_a_named_instance_shares_nothing_with_the_default_one_or_another() -> None:
    default, a, b = settings(), settings("--instance", "a"), settings("--instance", "b")
    for name in ("data_dir", "cluster_cidr", "service_cidr", "cluster_dns", "datastore"):
        assert len({getattr(s, name) for s in (default, a, b)}) == 3, name
    assert a.kubelet_port == 0


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--cluster-cidr", "10.96.0.0/12"], "overlaps"),
        (["--service-cidr", "x"], "give a range such as 10.96.0.0/16"),
        (["--cluster-dns", "10.1.1.1"], "is not in --service-cidr"),
        (["--load-balancer-pool", "192.0.2.0/24,here"], "give ranges such as 192.0.2.240/28"),
        (["--load-balancer-pool", "192.0.2.1-fd00::1"], "begins and ends in two families"),
        (["--nodeport-addresses", "x"], "--nodeport-addresses x"),
        (["--bind-address", "host"], "this is not an IP address"),
        (["--disable", "kubelet,nothing"], "--disable nothing: choose from"),
        (["--secure-port", "70000"], "give a port from 0 to 65535"),
        (["--data-dir", "/" + "d" * 99], "is too long for kone.sock in it"),
        (["--instance", "No_Good"], "use up to 10 lower-case letters"),
        (["--service-node-port-range", "9-1"], "give FIRST-LAST"),
        (["--config", "/nothing/here.yaml"], "No such file"),
        (["--cluster-cidr", "10.1.0.0/16,10.2.0.0/16"], "one of IPv4, one of IPv6, or one of each"),
        (["--cluster-cidr", "10.1.0.0/16,fd00::/x"], "--cluster-cidr fd00::/x"),
        (["--node-ip", "192.0.2.1,192.0.2.2"], "one of IPv4, one of IPv6, or one of each"),
    ],
)
def test_a_setting_that_cannot_be_is_one_line_that_says_what_to_do(argv: list[str], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settings(*argv)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "text"),
    [("port: 1", "unknown setting port"), ("- 1", "give a mapping"), ("secure-port: x", "not a number")],
)
def test_a_config_file_that_cannot_be(tmp_path: Path, content: str, text: str) -> None:
    file = tmp_path / "kone.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=text):
        settings("--config", str(file))


def test_a_wrong_flag_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    parser = OneLineParser(prog="kone server")
    add_flags(parser)
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(["--no-such-flag"])
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_resolve_is_stable() -> None:
    once = settings("--instance", "edge")
    assert resolve(once) == once


def test_ranges_and_addresses_of_both_families_come_ipv4_first() -> None:
    found = settings("--cluster-cidr", "fd00:1::/56, 10.1.0.0/16", "--node-ip", "2001:db8::2,192.0.2.2")
    assert found.cluster_cidrs == ("10.1.0.0/16", "fd00:1::/56")
    assert found.node_ips == ("192.0.2.2", "2001:db8::2")
