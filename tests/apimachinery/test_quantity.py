"""Quantities: parsed exactly, written back canonically, rounded up when asked for whole or milli units."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kone.apimachinery.quantity import FORMAT_ERROR, SUFFIX_ERROR, Quantity, canonical_text, parse_quantity


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("1000m", "1"),
        ("1500m", "1500m"),
        ("0.5", "500m"),
        ("1.25", "1250m"),
        ("0", "0"),
        ("00", "0"),
        ("0Ki", "0"),
        ("1024Ki", "1Mi"),
        ("1000Ki", "1000Ki"),
        ("1.5Gi", "1536Mi"),
        ("0.5Ki", "512"),
        ("1.1Mi", "1153433600m"),  # not a whole number of bytes: decimal, so that nothing is lost
        ("1000k", "1M"),
        ("1024", "1024"),
        ("1e3", "1e3"),
        ("1e7", "10e6"),
        ("1E3", "1E3"),  # looks canonical at a glance: kept as it came
        ("+1", "+1"),
        ("0.1n", "1n"),  # finer than a billionth: rounded up
        ("-1.5", "-1500m"),
        ("-1024Mi", "-1Gi"),
        ("9Ei", "9223372036854775807"),  # capped at int64
    ],
)
def test_canonical_form(text: str, canonical: str) -> None:
    assert parse_quantity(text).canonical() == canonical
    assert canonical_text(text) == canonical


@pytest.mark.parametrize("text", ["", "a", "1 K", " 1", "1.2.3", "1Zi", "3e2m", "0x1"])
def test_what_is_no_number_is_told_the_regular_expression(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_quantity(text)
    assert str(caught.value) == FORMAT_ERROR


@pytest.mark.parametrize("text", ["1ki", "1e", "--1", "12Mi3", "1e99999999999"])
def test_unknown_suffix(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_quantity(text)
    assert str(caught.value) == SUFFIX_ERROR


@pytest.mark.parametrize(
    ("text", "value", "milli"),
    [("1", 1, 1000), ("1m", 1, 1), ("1u", 1, 1), ("1500m", 2, 1500), ("0.1Ki", 103, 102400), ("-1.5", -2, -1500)],
)
def test_whole_and_milli_units_round_away_from_zero(text: str, value: int, milli: int) -> None:
    quantity = parse_quantity(text)
    assert (quantity.value(), quantity.milli()) == (value, milli)


def test_numbers_are_quantities_too() -> None:
    assert parse_quantity(2).canonical() == "2"
    assert parse_quantity(0.5).canonical() == "500m"


def test_a_sum_keeps_the_notation_of_the_first_that_is_not_zero() -> None:
    assert str(parse_quantity("1Gi") + parse_quantity("1Gi")) == "2Gi"
    assert str(parse_quantity("0") + parse_quantity("512Mi")) == "512Mi"
    assert str(parse_quantity("1") - parse_quantity("250m")) == "750m"
    assert str(parse_quantity("100m") * 3) == "300m"


def test_equal_amounts_are_equal_whatever_their_notation() -> None:
    assert parse_quantity("1Ki") == parse_quantity("1024")
    assert len({parse_quantity("1000m"), parse_quantity("1")}) == 1
    assert parse_quantity("999m") < parse_quantity("1")


@given(st.integers(-(10**24), 10**24), st.sampled_from(["DecimalSI", "BinarySI", "DecimalExponent"]))
def test_what_is_written_reads_back_as_the_same_amount(nanos: int, notation: str) -> None:
    quantity = Quantity(nanos, notation)  # type: ignore[arg-type]
    assert parse_quantity(quantity.canonical()) == quantity
