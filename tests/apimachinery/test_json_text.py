"""What is wrong with the text of a JSON body."""

from kone.apimachinery.json_text import in_order


def test_findings_come_in_the_order_of_the_body() -> None:
    body = {"spec": {"zz": 1, "replicas": 3, "list": [{"b": 1}]}, "aa": 1}
    findings = ['duplicate field "spec.replicas"', 'unknown field "spec.zz"', 'unknown field "aa"']
    assert in_order(body, findings) == [findings[1], findings[0], findings[2]]
