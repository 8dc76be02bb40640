"""Label and field selectors: the grammar, its errors in upstream's words, and what matches."""

import pytest

from kone.apimachinery.selectors import (
    from_label_selector,
    from_labels,
    parse_field_selector,
    parse_label_selector,
)

WEB = {"app": "web", "tier": "front", "weight": "10"}


@pytest.mark.parametrize(
    ("selector", "matches"),
    [
        ("", True),
        ("app=web", True),
        ("app==web", True),
        ("app=db", False),
        ("app!=db", True),
        ("missing!=x", True),
        ("app", True),
        ("!app", False),
        ("!missing", True),
        ("app in (web, db)", True),
        ("app notin (web)", False),
        ("missing notin (web)", True),
        ("app=web,tier=front", True),
        ("app=web,tier=back", False),
        ("weight>9", True),
        ("weight<9", False),
        ("missing>1", False),
        ("missing=", False),
        ("in in (in)", False),
    ],
)
def test_matches(selector: str, matches: bool) -> None:
    assert parse_label_selector(selector).matches(WEB) is matches


@pytest.mark.parametrize(
    ("selector", "text"),
    [
        (",a", "found ',', expected: !, identifier, or 'end of string'"),
        ("a,,b", "found ',', expected: identifier after ','"),
        ("a b", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt"),
        ("a in b", "unable to parse requirement: found 'b' expected: '('"),
        (
            "a in ()",
            "unable to parse requirement: values: Invalid value: []: "
            "for 'in', 'notin' operators, values set can't be empty",
        ),
        (
            "a>x",
            'unable to parse requirement: values[0]: Invalid value: "x": '
            "for 'Gt', 'Lt' operators, the value must be an integer",
        ),
    ],
)
def test_errors(selector: str, text: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_label_selector(selector)
    assert str(caught.value) == text


def test_prints_sorted_by_key() -> None:
    assert str(parse_label_selector("b in (y,x),a=1,!c")) == "a=1,b in (x,y),!c"


def test_no_object_selector_matches_nothing_and_an_empty_one_everything() -> None:
    assert not from_label_selector(None).matches(WEB)
    assert from_label_selector({}).matches(WEB)
    assert from_label_selector({}).empty


def test_object_selector() -> None:
    selector = from_label_selector(
        {"matchLabels": {"app": "web"}, "matchExpressions": [{"key": "tier", "operator": "NotIn", "values": ["back"]}]}
    )
    assert selector.matches(WEB)
    assert not selector.matches({"app": "web", "tier": "back"})
    assert str(selector) == "app=web,tier notin (back)"


def test_object_selector_with_an_unknown_operator() -> None:
    with pytest.raises(ValueError, match='"Gt" is not a valid label selector operator'):
        from_label_selector({"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["1"]}]})


def test_selector_of_a_service() -> None:
    assert from_labels({"app": "web"}).matches(WEB)
    assert not from_labels({"app": "db"}).matches(WEB)


def test_field_selector() -> None:
    selector = parse_field_selector("metadata.name=a,status.phase!=Running")
    assert selector.matches({"metadata.name": "a", "status.phase": "Pending"})
    assert not selector.matches({"metadata.name": "a", "status.phase": "Running"})
    assert selector.exact("metadata.name") == "a"
    assert selector.exact("status.phase") is None


def test_field_selector_escapes() -> None:
    selector = parse_field_selector(r"reason=a\,b\=c")
    assert [r.value for r in selector.requirements] == ["a,b=c"]
    assert str(selector) == r"reason=a\,b\=c"


@pytest.mark.parametrize(
    ("selector", "text"),
    [
        ("x", "invalid selector: 'x'; can't understand 'x'"),
        ("metadata.name>a", "invalid selector: 'metadata.name>a'; can't understand 'metadata.name>a'"),
        (r"a=\x", r"invalid field selector: invalid escape sequence: \x"),
        ("a=b=c", "invalid field selector: unescaped character in value: 61"),
    ],
)
def test_field_selector_errors(selector: str, text: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_field_selector(selector)
    assert str(caught.value) == text
