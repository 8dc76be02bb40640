"""Names, keys and addresses: what is valid, and upstream's words where it is not."""

from collections.abc import Callable

import pytest

from kone.apimachinery import names


@pytest.mark.parametrize(
    ("rule", "valid", "broken"),
    [
        (names.is_dns1123_label, ["a", "a-1", "1a", "a" * 63], ["", "-a", "a-", "A", "a_b", "a.b", "a" * 64, "a\n"]),
        (names.is_dns1123_subdomain, ["a", "a.b", "1.2", "a" * 253], ["", "a..b", ".a", "A.b", "a" * 254]),
        (names.is_dns1035_label, ["a", "a1"], ["1a", "", "a.b", "a" * 64]),
        (names.is_wildcard_dns1123_subdomain, ["*.a", "*.a.b"], ["*", "a", "*.*.a"]),
        (names.is_qualified_name, ["a", "A_b.c", "x.io/a"], ["", "/a", "a/", "a/b/c", "a b", "-a", "X.io/a"]),
        (names.is_valid_label_value, ["", "a", "A_b.c"], ["-a", "a b", "a" * 64]),
        (names.is_config_map_key, ["a", "a.B_-"], ["", ".", "..", "..a", "a/b"]),
        (names.is_env_var_name, ["A", "a.b-c", "_"], ["1a", "", "a=b", ".."]),
        (names.is_relaxed_env_var_name, ["1", "a b", "!"], ["", "a=b", "ä", "a\t"]),
        (names.is_valid_port_name, ["http", "a1", "1a"], ["", "1", "a--b", "-a", "a-", "A", "a" * 16]),
        (names.is_valid_percent, ["1%", "100%"], ["1", "%", "-1%"]),
        (names.is_http_header_name, ["X-A"], ["", "a b", "a:"]),
        (names.is_path_segment_name, ["a:b", "A"], [".", "..", "a/b", "a%b"]),
        (
            names.is_valid_ip,
            ["10.0.0.1", "::1", "2001:db8::1"],
            ["10.0.0.01", "::FFFF", "1.2.3", "::ffff:1.2.3.4", "a"],
        ),
        (
            names.is_valid_ip_legacy,
            ["10.0.0.1", "::FFFF", "2001:db8:0::1"],
            ["10.0.0.01", "::ffff:1.2.3.4", "fe80::1%a"],
        ),
        (names.is_cidr, ["10.0.0.0/8", "2001:db8::/64"], ["10.0.0.1/8", "10.0.0.0", "10.0.0.0/33", "10.0.0.0/08"]),
        (names.is_domain_prefixed_path, ["acme.io/foo"], ["acme.io", "/foo", "a/", "A.io/foo"]),
        (names.is_fully_qualified_name, ["a.b.c"], ["a.b", "a"]),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_rule(rule: Callable[[str], list[str]], valid: list[str], broken: list[str]) -> None:
    assert {value: rule(value) for value in valid} == {value: [] for value in valid}
    assert [value for value in broken if not rule(value)] == []


def test_a_label_with_dots_is_told_so() -> None:
    assert names.is_dns1123_label("a.b") == ["must not contain dots"]


def test_the_words_of_a_broken_label() -> None:
    assert names.is_dns1123_label("C_1") == [
        "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end "
        "with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is "
        "'[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
    ]


def test_numbers_in_a_range() -> None:
    assert names.is_valid_port_num(65535) == []
    assert names.is_valid_port_num(0) == ["must be between 1 and 65535, inclusive"]
    assert names.is_valid_user_id(-1) == ["must be between 0 and 2147483647, inclusive"]


def test_lengths_are_in_bytes() -> None:
    assert names.is_valid_label_value("a" * 64) == ["must be no more than 63 bytes"]
    assert names.is_valid_port_name("a" * 16) == ["must be no more than 15 characters"]


def test_generated_names_keep_room_for_the_suffix() -> None:
    assert names.generate_name("web-", "bcdfg") == "web-bcdfg"
    assert names.generate_name("w" * 70, "bcdfg") == "w" * 58 + "bcdfg"
