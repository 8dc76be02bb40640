"""Large YAML is read elsewhere, to the same outcome; the server answers meanwhile."""

from __future__ import annotations

import asyncio

import pytest

from kone.apiserver import yaml_reader, yaml_text
from tests.apiserver.conftest import Served

CM = "/api/v1/namespaces/ns/configmaps"


@pytest.mark.parametrize(
    "text",
    [
        b"a: 1\na: 2\nb: [yes, 0x10, 1.5, ~]\n",
        b"a: 0xffffffffffffffff\nb: -9223372036854775809\nc: \xc3\xa9\n",
        b'{"a": 1}',
        b"{a: 1}",
        b"",
    ],
)
async def test_it_is_what_the_text_says(text: bytes) -> None:
    assert yaml_text.load(await yaml_reader.read(text)) == yaml_text.load(text)


@pytest.mark.parametrize("text", [b"a: [", b"a: b: c", b"\xff"])
async def test_what_is_no_yaml_is_told_in_the_same_words(text: bytes) -> None:
    with pytest.raises(yaml_text.YamlError) as here:
        yaml_text.load(text)
    with pytest.raises(yaml_text.YamlError) as there:
        yaml_text.load(await yaml_reader.read(text))
    assert str(there.value) == str(here.value)


async def test_json_needs_nobody_else() -> None:
    text = b'{"a": 1}'
    assert await yaml_reader.read(text) is text


async def test_others_are_answered_while_a_large_text_is_read(served: Served) -> None:
    items = ",".join("{a: 1, b: [2,3]}" for _ in range(5_000))
    text = f"apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: a}}\nx: [{items}]\ndata: {{k: v}}\n"
    answers = 0

    async def ask() -> None:
        nonlocal answers
        while True:
            assert (await served.call("GET", CM))[0] == 200
            answers += 1

    asking = asyncio.create_task(ask())
    code, made, _ = await served.call("POST", CM, text.encode(), Content_Type="application/yaml")
    asking.cancel()
    assert (code, made["data"]) == (201, {"k": "v"})
    assert answers


async def test_who_goes_takes_the_reader_along() -> None:
    reading = asyncio.create_task(yaml_reader.read(b"a: [" + b"{b: c}," * 20_000 + b"]"))
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
