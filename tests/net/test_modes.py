"""Which mode is chosen: the one that was asked for, or the best one that nothing stands against."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from kone.net import modes
from kone.net.modes import Choice, Kind, Mode, NoMode


def kinds(**why_not: str) -> Mapping[Mode, Kind]:
    """Modes from best to last with what stands against each."""
    made = modes.KINDS["iptables"].make
    return {mode: Kind(made, lambda why=why: why) for mode, why in why_not.items()}  # type: ignore[misc]


@pytest.mark.parametrize(
    ("wanted", "here", "choice"),
    [
        ("auto", {"ipvs": "", "iptables": ""}, Choice("ipvs", {})),
        ("auto", {"ipvs": "no ip_vs", "iptables": ""}, Choice("iptables", {"ipvs": "no ip_vs"})),
        ("iptables", {"ipvs": "", "iptables": ""}, Choice("iptables", {})),
    ],
    ids=["the best", "the next, and why", "the one asked for"],
)
async def test_the_choice(wanted: str, here: dict[str, str], choice: Choice) -> None:
    assert await modes.choose(wanted, kinds(**here)) == choice


async def test_the_choice_says_what_it_passed_by() -> None:
    chosen = await modes.choose("auto", kinds(ipvs="no ip_vs", nftables="no nft", iptables=""))
    assert str(chosen) == "iptables; not ipvs: no ip_vs; not nftables: no nft"


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        ("ipvs", "--proxy-mode ipvs cannot be had here: no ip_vs"),
        ("userspace", "--proxy-mode userspace: choose from auto, ipvs, iptables"),
        ("auto", "--proxy-mode ipvs cannot be had here: no ip_vs; --proxy-mode iptables cannot be had here: not root"),
    ],
)
async def test_what_cannot_be_had_says_why(wanted: str, text: str) -> None:
    with pytest.raises(NoMode) as caught:
        await modes.choose(wanted, kinds(ipvs="no ip_vs", iptables="not root"))
    assert str(caught.value) == text
