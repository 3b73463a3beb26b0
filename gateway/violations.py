"""What is wrong with a request, field by field: collected, so that one answer names every mistake."""

from dataclasses import dataclass, field

_MOST = 16  # an answer stays readable, and its size does not follow the request's


@dataclass(frozen=True, slots=True)
class Violation:
    """One wrong field: its path in proto names, what is wrong and what would be right."""

    field: str
    description: str
    is_unknown: bool = False


@dataclass(slots=True)
class Violations:
    """The mistakes found so far; the first sixteen are kept."""

    found: list[Violation] = field(default_factory=list)

    def add(self, path: str, description: str, *, is_unknown: bool = False) -> None:
        """Notes one mistake."""
        if not self.is_full:
            self.found.append(Violation(path or "(body)", description, is_unknown))

    @property
    def is_full(self) -> bool:
        """Whether further mistakes would be dropped: a reader may stop looking."""
        return len(self.found) >= _MOST
