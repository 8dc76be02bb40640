"""Legacy tables are compared without their counters."""

from __future__ import annotations

import struct

import pytest

from kone.net.rules_watch import ADDRESSING, ENTRIES_HEADER, without_counters


def rule(addressing: int, packets: int, target: bytes) -> bytes:
    """struct ipt_entry or ip6t_entry with a target behind it."""
    body = struct.pack("IHHI", 0, 112, 112 + len(target), 0)
    before = bytes(addressing) + body
    before += bytes(-len(before) % 8)
    step = len(before) + 16 + len(target)
    entry = bytearray(before + struct.pack("QQ", packets, packets * 60) + target)
    struct.pack_into("H", entry, addressing + 6, step)
    return bytes(entry)


@pytest.mark.parametrize("family", [4, 6])
def test_traffic_changes_nothing_and_an_edit_does(family: int) -> None:
    def read(*rules: tuple[int, bytes]) -> bytes:
        made = b"".join(rule(ADDRESSING[family], packets, target) for packets, target in rules)
        return bytes(without_counters(bytearray(bytes(ENTRIES_HEADER) + made), ADDRESSING[family]))

    idle = read((0, b"A" * 40), (0, b"B" * 40))
    assert read((7, b"A" * 40), (9, b"B" * 40)) == idle
    assert read((0, b"A" * 40), (0, b"C" * 40)) != idle
