"""CEL: what upstream's environments compile and refuse, in upstream's words, and what evaluations give and cost."""

from typing import Any

import pytest

from kone.apimachinery.cel import (
    BOOL,
    DYN,
    INT,
    PER_CALL_LIMIT,
    STRING,
    CelError,
    CelSyntaxError,
    CostExceeded,
    Environment,
    FieldTable,
    Lazy,
    list_of,
    map_of,
    optional_of,
    struct_type,
)
from kone.apimachinery.cel_kubernetes import Question, authorizer
from kone.apimachinery.go_regexp import compile_go

SPEC = {"name": STRING, "replicas": INT, "tags": list_of(STRING), "labels": map_of(STRING, STRING)}
ENV = Environment(
    {
        "object": DYN,
        "self": struct_type("Spec"),
        "old": optional_of(STRING),
        "authorizer": struct_type("kubernetes.authorization.Authorizer"),
    },
    structs=FieldTable({"Spec": SPEC}),
)
OBJECT: dict[str, Any] = {"metadata": {"name": "web"}, "spec": {"replicas": 3, "ratio": 0.5}, "list": [1, 2, 3]}


def value(expression: str, **variables: Any) -> Any:
    return ENV.compile(expression).evaluate({"object": OBJECT, **variables}).value


@pytest.mark.parametrize(
    ("expression", "line"),
    [
        ("", "ERROR: <input>:1:0: Syntax error: mismatched input '<EOF>' expecting {'[', '{', '(', '.', '-', '!', "),
        ("foo == 1", "ERROR: <input>:1:1: undeclared reference to 'foo' (in container '')\n | foo == 1\n | ^"),
        ("foo(1)", "ERROR: <input>:1:4: undeclared reference to 'foo' (in container '')"),
        ("(1 == 1", "ERROR: <input>:1:8: Syntax error: missing ')' at '<EOF>'"),
        ("1 == 'a'", "ERROR: <input>:1:3: found no matching overload for '_==_' applied to '(int, string)'"),
        (
            "self.replicas == 1.0",
            "ERROR: <input>:1:15: found no matching overload for '_==_' applied to '(int, double)",
        ),
        ("self.name == null", "ERROR: <input>:1:11: found no matching overload for '_==_' applied to '(string, null)'"),
        ("self.zz", "ERROR: <input>:1:5: undefined field 'zz'\n | self.zz\n | ....^"),
        ("self.name.x", "ERROR: <input>:1:10: type 'string' does not support field selection"),
        ("[1, 'a'] == []", "ERROR: <input>:1:5: expected type 'int' but found 'string'"),
        ("{'a': 1, 'b': 'c'}.size() == 1", "ERROR: <input>:1:15: expected type 'int' but found 'string'"),
        ("old == 'a'", "found no matching overload for '_==_' applied to '(optional_type(string), string)'"),
        ("self.name.matches('[')", "ERROR: <input>:1:19: invalid matches argument"),
        ("timestamp('x') < timestamp('y')", "ERROR: <input>:1:11: invalid timestamp argument"),
        (
            "'%d'.format(['a']) == ''",
            "decimal clause can only be used on integers, was given string\n | '%d'.format(['a'])",
        ),
        ("'a'.reverse() == 'a'", "found no matching overload for 'reverse' applied to 'string.()'"),
        ("authorizer.check()", "'check' applied to 'kubernetes.authorization.Authorizer.()'"),
        ("self.replicas.all(x, x)", "expression of type 'int' cannot be range of a comprehension"),
        ("Thing{} == object", "ERROR: <input>:1:6: undeclared reference to 'Thing' (in container '')"),
        ("has(self)", "invalid argument to has() macro"),
    ],
)
def test_what_does_not_compile(expression: str, line: str) -> None:
    with pytest.raises(CelSyntaxError) as caught:
        ENV.compile(expression)
    assert line in str(caught.value)


def test_errors_stand_in_the_order_of_their_places() -> None:
    with pytest.raises(CelSyntaxError) as caught:
        ENV.compile("a.f(b) == c")
    places = [line.split(": ")[1] for line in str(caught.value).splitlines() if line.startswith("ERROR")]
    assert places == ["<input>:1:1", "<input>:1:4", "<input>:1:5", "<input>:1:11"]


@pytest.mark.parametrize(
    "expression",
    [
        "object.spec.replicas == 3 && object.spec.ratio < 1",
        "has(object.spec.replicas) && !has(object.spec.zz) && object.?spec.zz.orValue(7) == 7",
        "object.list.all(x, x > 0) && object.list.exists_one(x, x == 2) && object.list.map(x, x > 1, x * 2) == [4, 6]",
        "{'a': 1}.all(k, v, k == 'a' && v == 1) && [1, 2].transformList(i, v, v * i) == [0, 2]",
        "{'a': 1}.transformMap(k, v, v + 1) == {'a': 2}",
        "object.spec.replicas == 3.0 && 1 < 1.5 && 2u == 2u && type(1) == int",
        "[1, 2].sum() == 3 && ['b', 'a'].min() == 'a' && ['a', 'b'].isSorted() && ['a'].indexOf('b') == -1",
        "sets.contains([1, 2], [2]) && sets.equivalent([1], [1, 1]) && !sets.intersects([1], [2])",
        "[3, 1, 2].sort() == [1, 2, 3] && [1, 1].distinct() == [1] && lists.range(2) == [0, 1]",
        "[1, 2].reverse() == [2, 1] && [[1], [2]].flatten() == [1, 2] && [1, 2, 3].slice(1, 3) == [2, 3]",
        "quantity('1Gi').isGreaterThan(quantity('1000Mi')) && quantity('1').add(2) == quantity('3000m')",
        "url('https://h:8443/p?a=b').getHostname() == 'h' && url('https://h:8443/').getPort() == '8443' && !isURL('x')",
        "ip('::1').family() == 6 && ip('127.0.0.1').isLoopback() && isIP('10.0.0.1') && !isIP('10.0.0.256')",
        "cidr('10.0.0.0/8').containsIP('10.1.2.3') && cidr('10.0.0.0/8').containsCIDR('10.1.0.0/16')",
        "format.dns1123Label().validate('A_').hasValue() && format.named('none') == optional.none()",
        "semver('1.2.3').isLessThan(semver('v1.3', true)) && !isSemver('1.2')",
        "'abc'.find('[b-z]+') == 'bc' && 'a1b2'.findAll('[0-9]') == ['1', '2']",
        "'%s|%d|%.2f'.format(['a', 5, 1.5]) == 'a|5|1.50' && '%s'.format([['a', 1]]) == '[\"a\", 1]'",
        "'a.b.c'.split('.', 2) == ['a', 'b.c'] && 'aaa'.replace('a', 'b', 1) == 'baa' && ' x '.trim() == 'x'",
        "duration('90m').getHours() == 1 && timestamp('2020-02-03T04:05:06Z').getMonth() == 1",
        "string(duration('1h30m')) == '5400s' && int('5') == 5 && bytes('a') == b'a'",
        "optional.of(1).optMap(x, x + 1).value() == 2 && [?optional.none(), 1] == [1]",
        "object.zz == 1 || true",
        "[0, 1].exists(x, 1 / x == 1)",
    ],
)
def test_what_holds(expression: str) -> None:
    assert value(expression) is True


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("object.zz == 1", "no such key: zz"),
        ("object.metadata.name.zz == 1", "no such key: zz"),
        ("object.list[9] == 1", "index out of bounds: 9"),
        ("1 / (object.spec.replicas - 3) == 1", "division by zero"),
        ("object.spec.replicas + 9223372036854775807 > 0", "integer overflow"),
        ("quantity(object.metadata.name).isInteger()", "quantities must match the regular expression"),
        ("quantity('1.5').asInteger() == 1", "cannot convert value to integer"),
        ("object.metadata.name.find('(' + 'a') == ''", "Illegal regex: error parsing regexp: missing closing ): `(a`"),
        ("int(object.metadata.name) == 1", "type conversion error from 'string' to 'int'"),
        ("optional.none().value() == 1", "optional.none() dereference"),
        ("timestamp(0).getHours('No/Where') == 1", "unknown time zone No/Where"),
        ("object.spec.replicas > 'a'", "no such overload"),
        ("[1, 2].all(x, object.zz == x)", "no such key: zz"),
    ],
)
def test_what_cannot_be_evaluated(expression: str, text: str) -> None:
    with pytest.raises(CelError) as caught:
        value(expression)
    assert str(caught.value).startswith(text)


def test_a_lazy_struct_is_read_only_where_an_expression_needs_it() -> None:
    asked: list[str] = []

    def read(name: str) -> Any:
        asked.append(name)
        return {"a": 1, "b": 2}[name]

    env = Environment({"variables": struct_type("V")}, structs=FieldTable({"V": {"a": INT, "b": INT}}))
    assert env.compile("variables.a == 1 || variables.b == 3").evaluate({"variables": Lazy(read)}).value is True
    assert asked == ["a"]


def test_the_authorizer_is_asked_for_the_resource_in_words() -> None:
    asked: list[Question] = []

    def decide(question: Question) -> tuple[bool, str]:
        asked.append(question)
        return question.verb == "get", "because"

    expression = (
        "authorizer.group('apps').resource('deployments').subresource('scale').namespace('n').name('x').check({})"
    )
    given = authorizer(decide)
    assert value(expression.format("'get'") + ".allowed()", authorizer=given) is True
    assert value(expression.format("'put'") + ".reason()", authorizer=given) == "because"
    assert asked[0] == Question("get", "", "apps", "deployments", "scale", "n", "x")
    assert value("authorizer.serviceAccount('ns', 'sa').path('/x').check('get').allowed()", authorizer=given) is True
    assert asked[-1] == Question("get", "/x", service_account=("ns", "sa"))


def test_costs_are_counted_and_bound() -> None:
    program = ENV.compile("object.list.all(x, object.list.all(y, object.list.all(z, x + y + z > 0)))")
    assert program.type == BOOL
    few = program.evaluate({"object": {"list": [1]}}).cost
    assert 0 < few < program.evaluate({"object": {"list": [1, 2]}}).cost
    with pytest.raises(CostExceeded, match="operation cancelled: actual cost limit exceeded"):
        program.evaluate({"object": {"list": list(range(1, 100))}}, limit=PER_CALL_LIMIT)


def test_a_program_tells_which_variables_it_reads() -> None:
    assert ENV.compile("self.name == 'a' && [1].all(object, object > 0)").variables == {"self"}


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("[", "missing closing ]: `[`"),
        ("a(b", "missing closing ): `a(b`"),
        ("a)", "unexpected ): `a)`"),
        ("*a", "missing argument to repetition operator: `*`"),
        ("(?=a)", "invalid or unsupported Perl syntax: `(?=`"),
        ("a**", "invalid nested repetition operator: `**`"),
        ("a{1001}", "invalid repeat count: `{1001}`"),
        (r"\q", r"invalid escape sequence: `\q`"),
        (r"a\C", r"invalid escape sequence: `\C`"),
        ("a\\", "trailing backslash at end of expression: ``"),
        ("[b-a]", "invalid character class range: `b-a`"),
    ],
)
def test_bad_patterns_are_told_in_gos_words(pattern: str, text: str) -> None:
    with pytest.raises(ValueError, match="error parsing regexp") as caught:
        compile_go(pattern)
    assert text in str(caught.value)


def test_no_pattern_is_tried_for_hours() -> None:
    assert compile_go("^(a+)+$").search("a" * 10_000 + "b") is None


def test_a_dollar_ends_the_text_and_digits_are_ascii() -> None:
    assert not compile_go("a$").search("a\n")
    assert not compile_go(r"^\d$").search("٣")
    assert compile_go("^[[:alpha:]-]+$").search("a-b")
