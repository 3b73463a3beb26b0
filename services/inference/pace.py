"""How fast a counter goes lately: its growth per second over the last seconds. Knows nothing of what is counted."""

from collections import deque

WINDOW_S = 10.0


class Pace:
    """A window over counters that only grow, noted from time to time. Times in seconds, of one monotonic clock."""

    def __init__(self) -> None:
        self._notes: deque[tuple[float, tuple[int, ...]]] = deque()

    def note(self, now_s: float, *counts: int) -> None:
        """Remembers where the counters stand."""
        self._notes.append((now_s, counts))
        while self._notes[0][0] < now_s - WINDOW_S:
            self._notes.popleft()

    def per_second(self, now_s: float, *counts: int) -> tuple[float, ...]:
        """The growth per second of each counter up to now, since the oldest note of the window; 0 without one."""
        notes = [note for note in self._notes if now_s - WINDOW_S <= note[0] < now_s]
        if not notes:
            return (0.0,) * len(counts)
        then_s, before = notes[0]
        return tuple((count - earlier) / (now_s - then_s) for count, earlier in zip(counts, before, strict=True))
