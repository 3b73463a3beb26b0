"""Figures of rounds: medians, ratios within a round, and tables of them. Knows no process and no clock."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Rounds = Sequence[float]


@dataclass(kw_only=True)
class Result:
    """What one contestant reached: per measure its tokens/s in every round. `reason` where it could not take part."""

    title: str
    is_ours: bool
    is_target: bool = False
    bits: int = 8
    version: str = ""
    reason: str = ""
    rounds: dict[str, list[float]] = field(default_factory=dict)

    def median(self, measure: str) -> float:
        """Of the rounds, 0 without any."""
        return statistics.median(self.rounds.get(measure) or [0.0])


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Our best against the peers' best in one measure; the ratio is the median of those of each round."""

    measure: str
    target: float
    ours: Result
    peer: Result

    @property
    def ratio(self) -> float:
        pairs = zip(self.ours.rounds[self.measure], self.peer.rounds[self.measure], strict=False)
        return statistics.median(own / other for own, other in pairs)


def best(results: Sequence[Result], measure: str) -> Result | None:
    """The one with the highest median."""
    able = [result for result in results if result.rounds.get(measure)]
    return max(able, key=lambda result: result.median(measure), default=None)


def compare(results: Sequence[Result], measure: str, target: float, bits: Sequence[int]) -> Comparison | None:
    """Among those of so many bits; None where one side is missing. For us only what `is_target` says counts."""
    able = [result for result in results if result.bits in bits]
    ours = best([result for result in able if result.is_target], measure)
    peer = best([result for result in able if not result.is_ours], measure)
    return Comparison(measure=measure, target=target, ours=ours, peer=peer) if ours and peer else None


def rate_table(results: Sequence[Result], measures: Mapping[str, str]) -> list[str]:
    """One line a contestant, tokens/s; `measures` by their heading."""
    lines = [f"| tokens/s | {' | '.join(measures.values())} | version |", "|---" * (len(measures) + 2) + "|"]
    for result in results:
        figures = [f"{result.median(measure):,.0f}" if result.rounds.get(measure) else "—" for measure in measures]
        note = f"not available: {result.reason}".replace("|", "/") if result.reason else result.version
        lines.append(f"| {result.title} | {' | '.join(figures)} | {note} |")
    return lines


def ratio_table(comparisons: Sequence[tuple[str, Comparison]]) -> list[str]:
    """One line a comparison, with its heading."""
    lines = ["| measure | ours | best peer | ratio | to reach |", "|---|---|---|---|---|"]
    for heading, comparison in comparisons:
        sides = [f"{side.title} {side.median(comparison.measure):,.0f}" for side in (comparison.ours, comparison.peer)]
        lines.append(f"| {heading} | {' | '.join(sides)} | {comparison.ratio:.2f} | {comparison.target:.1f} |")
    return lines


def percentile(values: Sequence[float], percent: float) -> float:
    """The least value that `percent` % of the others do not exceed; NaN without any."""
    ordered = sorted(values)
    rank = max(0, -(-len(ordered) * percent // 100) - 1)
    return ordered[int(rank)] if ordered else float("nan")
