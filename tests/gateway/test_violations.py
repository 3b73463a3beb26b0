"""Mistakes, collected."""

from gateway.violations import Violation, Violations


def test_mistakes_are_kept_in_their_order_up_to_sixteen() -> None:
    violations = Violations()
    for i in range(100):
        violations.add(f"field{i}", "wrong")
    assert [violation.field for violation in violations.found] == [f"field{i}" for i in range(16)]
    assert violations.is_full


def test_a_mistake_of_the_whole_body_has_a_name() -> None:
    violations = Violations()
    violations.add("", "is no object")
    assert violations.found == [Violation("(body)", "is no object")]
