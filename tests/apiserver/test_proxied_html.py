"""Which links of a proxied page are turned, and that nothing else of it changes."""

import pytest

from kone.apiserver.proxied_html import rewritten, through_proxy

PREFIX = "/api/v1/namespaces/ns/pods/p/proxy"


def turn(address: str) -> str:
    return through_proxy(address, prefix=PREFIX, backend="10.1.2.3:80", asked_of="kone:6443")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("/rewriteme", f"{PREFIX}/rewriteme"),
        ("/a/?b=c#d", f"{PREFIX}/a/?b=c#d"),
        ("http://10.1.2.3:80/a", f"{PREFIX}/a"),
        ("https://kone:6443/a", f"https://kone:6443{PREFIX}/a"),
        ("//10.1.2.3:80/a", f"{PREFIX}/a"),
        (f"{PREFIX}/a", f"{PREFIX}/a"),
        ("relative", "relative"),
        ("", ""),
        ("#part", "#part"),
        ("http://elsewhere/a", "http://elsewhere/a"),
        ("mailto:a@b", "mailto:a@b"),
        ("http://[broken/", "http://[broken/"),
    ],
)
def test_which_addresses_lead_through_the_proxy(address: str, expected: str) -> None:
    assert turn(address) == expected


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        ('<a href="/rewriteme">test</a>', f'<a href="{PREFIX}/rewriteme">test</a>'),
        ("<A HREF='/x' class=b>y", f'<a href="{PREFIX}/x" class="b">y'),
        ('<img src="/i.png"/>', f'<img src="{PREFIX}/i.png"/>'),
        ('<p title="/x">\n<!-- <a href="/x"> --> &amp; <b', '<p title="/x">\n<!-- <a href="/x"> --> &amp; <b'),
        (
            'line\n<script>"<a href=\'/x\'>"</script>\n  <a href="/x">',
            f'line\n<script>"<a href=\'/x\'>"</script>\n  <a href="{PREFIX}/x">',
        ),
        ('<a href="/?a=1&amp;b=2">', f'<a href="{PREFIX}/?a=1&amp;b=2">'),
        ('<a href="there">', '<a href="there">'),
    ],
)
def test_a_page_changes_in_its_links_only(page: str, expected: str) -> None:
    assert rewritten(page, turn) == expected
