"""Addresses: one a pod, the same on every call, never two owners, none lost, whatever is killed when."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kone.net.ipam import AddressesExhausted, Ipam


def ipam(tmp_path: Path, *cidrs: str) -> Ipam:
    table = Ipam(tmp_path / "net" / "ipam.json", cidrs or ("10.244.0.0/24",))
    table.load()
    return table


def test_first_address_is_the_gateways_and_pods_follow(tmp_path: Path) -> None:
    table = ipam(tmp_path)
    assert table.gateways == ["10.244.0.1"]
    assert [table.allocate(uid) for uid in ("a", "b")] == [["10.244.0.2"], ["10.244.0.3"]]


def test_a_pod_keeps_its_address(tmp_path: Path) -> None:
    table = ipam(tmp_path)
    assert table.allocate("a") == table.allocate("a")


def test_a_new_process_knows_what_the_killed_one_gave(tmp_path: Path) -> None:
    before = ipam(tmp_path)
    a, b = before.allocate("a"), before.allocate("b")
    before.release("a")
    after = ipam(tmp_path)
    assert after.allocate("b") == b
    assert after.allocate("c") not in (a, b), "a freed address is the last to come again"


def test_a_freed_address_comes_again_when_the_circle_is_through(tmp_path: Path) -> None:
    table = ipam(tmp_path, "10.0.0.0/29")
    first = [table.allocate(str(n))[0] for n in range(5)]
    assert first == ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]
    table.release("1")
    assert table.allocate("new") == ["10.0.0.3"]


def test_no_address_left_is_said_and_nothing_is_taken(tmp_path: Path) -> None:
    table = ipam(tmp_path, "10.0.0.0/30")
    table.allocate("a")
    with pytest.raises(AddressesExhausted, match=r"no free address in 10\.0\.0\.0/30: 1 are in use"):
        table.allocate("b")
    assert list(table.pods) == ["a"]


def test_dual_stack_gives_one_of_each_family_ipv4_first(tmp_path: Path) -> None:
    table = ipam(tmp_path, "fd00:10::/64", "10.0.0.0/29")
    assert table.allocate("a") == ["10.0.0.2", "fd00:10::2"]


def test_a_broken_file_starts_empty_and_takes_what_the_kernel_has(tmp_path: Path) -> None:
    ipam(tmp_path).allocate("a")
    (tmp_path / "net" / "ipam.json").write_text('{"pods": {"a": ["10.2')
    table = ipam(tmp_path)
    assert not table.pods
    assert table.adopt("veth of a", ["10.244.0.2"])
    assert table.allocate("b") == ["10.244.0.3"]


def test_an_address_of_another_range_or_owner_is_not_adopted(tmp_path: Path) -> None:
    table = ipam(tmp_path)
    table.allocate("a")
    assert not table.adopt("b", ["10.9.0.2"])
    assert not table.adopt("b", ["10.244.0.2"])
    assert not table.adopt("b", ["10.244.0.1"]), "the gateway's"
    assert not table.adopt("b", ["10.244.0.255"]), "the broadcast address"


def test_another_range_by_flag_drops_what_was_given_of_the_old_one(tmp_path: Path) -> None:
    ipam(tmp_path, "10.1.0.0/24").allocate("a")
    assert ipam(tmp_path, "10.2.0.0/24").allocate("a") == ["10.2.0.2"]


CHURN = """
import itertools, pathlib, sys
from kone.net.ipam import Ipam
table = Ipam(pathlib.Path(sys.argv[1]), ["10.0.0.0/26", "fd00::/64"])
table.load()
print("begun", flush=True)
for number in itertools.count():
    uid = f"pod-{sys.argv[2]}-{number}"
    print(uid, *table.allocate(uid), flush=True)
    if number >= 5:
        table.release(f"pod-{sys.argv[2]}-{number - 5}")
    if number == 40:
        table.release(*[uid for uid in table.pods if not uid.startswith(f"pod-{sys.argv[2]}-")])
"""


@pytest.mark.ring3
def test_kill_9_leaks_no_address_and_gives_none_twice(tmp_path: Path) -> None:
    path = tmp_path / "net" / "ipam.json"
    for round_ in range(8):
        command = [sys.executable, "-c", CHURN, str(path), str(round_)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as churn:
            assert churn.stdout is not None
            told = [churn.stdout.readline().split() for _ in range(20 + 7 * round_)]
            churn.kill()
            told += [line.split() for line in churn.stdout.read().splitlines()]
        whole = [line for line in told if len(line) == 3]
        table = Ipam(path, ["10.0.0.0/26", "fd00::/64"])
        table.load()
        given = [address for addresses in table.pods.values() for address in addresses]
        assert len(set(given)) == len(given)
        uid, *addresses = whole[-2]  # of the last one the line may not be whole
        assert table.pods[uid] == addresses, "what was told is kept"
        table.release(*list(table.pods))
        assert len({table.allocate(f"free-{n}")[0] for n in range(61)}) == 61, "every address is free again"
        table.release(*list(table.pods))


def test_release_is_idempotent(tmp_path: Path) -> None:
    table = ipam(tmp_path)
    table.allocate("a")
    table.release("a")
    table.release("a", "never seen")
    assert not ipam(tmp_path).pods


def test_a_family_that_is_added_later_is_given_beside_the_known_address(tmp_path: Path) -> None:
    ipam(tmp_path, "10.0.0.0/24").allocate("a")
    table = ipam(tmp_path, "10.0.0.0/24", "fd00::/64")
    assert table.allocate("a") == ["10.0.0.2", "fd00::2"]
    assert table.allocate("b") == ["10.0.0.3", "fd00::3"]
