"""In which numbers a version is served when nobody says: by the server's order of preference.

Knows precisions and the names of graphs; nothing of what is loaded.
"""

from collections.abc import Iterable

from octavo.v1.deployments_pb2 import Precision
from services.inference.loader import GRAPHS


class Preferences:
    """An order of precisions: those that were named, then the others as the contract lists them, fp32 first."""

    def __init__(self, words: str) -> None:
        named = [Precision.Value(f"PRECISION_{word.upper()}") for word in words.split(",")]
        self._order = list(dict.fromkeys([*named, *sorted(GRAPHS), *sorted(Precision.values())]))

    def rank(self, precision: Precision.ValueType) -> int:
        """The place of a precision: 0 is what is preferred."""
        return self._order.index(precision)

    def choose(self, files: Iterable[str]) -> Precision.ValueType:
        """The first that these files of a version have a graph for; the first of all where they have none."""
        present = set(files)
        offered = (precision for precision in self._order if GRAPHS.get(precision) in present)
        return next(offered, self._order[0])
