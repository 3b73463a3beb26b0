"""Open-loop load: requests come when they come, whether or not earlier ones are answered; what became of them.

Arrivals are a Poisson process with a fixed seed; a request's clock starts when it was due, so that a client which
falls behind shows as latency and not as less load. Knows no protocol: a call is an async iterator of its messages.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter

from benchmarks.rates import percentile

PATIENCE_S = 30.0
"""How long a caller waits for all of an answer."""

Call = Callable[[int], AsyncIterator[int]]
"""Sends the request of that number; yields, message by message, how many tokens came."""


class RefusedError(Exception):
    """The server has too much to do. `has_delay` where it said when to come again."""

    def __init__(self, *, has_delay: bool) -> None:
        super().__init__("refused")
        self.has_delay = has_delay


@dataclass
class Observation:
    """One request; times in seconds since the load began. `tokens` are (when, how many)."""

    due_s: float
    tokens: list[tuple[float, int]] = field(default_factory=list)
    refusal: RefusedError | None = None
    error: str = ""

    @property
    def is_answered(self) -> bool:
        return not self.refusal and not self.error

    @property
    def first_token_s(self) -> float:
        return self.tokens[0][0] - self.due_s

    def gaps_s(self) -> Iterator[float]:
        """Between one message with tokens and the next."""
        yield from (late[0] - early[0] for early, late in zip(self.tokens, self.tokens[1:], strict=False))


@dataclass(frozen=True)
class Summary:
    """What a load of `seconds` brought: rates per second, latencies in milliseconds by percentile."""

    seconds: float
    observations: Sequence[Observation]

    @property
    def tokens_per_s(self) -> float:
        """Goodput: tokens that came within the time, of requests that were answered to the end."""
        answered = [observation for observation in self.observations if observation.is_answered]
        return sum(count for o in answered for when, count in o.tokens if when <= self.seconds) / self.seconds

    @property
    def offered_per_s(self) -> float:
        return len(self.observations) / self.seconds

    @property
    def refusals(self) -> list[RefusedError]:
        return [observation.refusal for observation in self.observations if observation.refusal]

    @property
    def errors(self) -> list[str]:
        return [observation.error for observation in self.observations if observation.error]

    def first_token_ms(self, percent: float) -> float:
        return 1e3 * percentile([o.first_token_s for o in self.observations if o.is_answered], percent)

    def gap_ms(self, percent: float) -> float:
        return 1e3 * percentile([gap for o in self.observations if o.is_answered for gap in o.gaps_s()], percent)


def arrivals(per_s: float, seconds: float, seed: int) -> list[float]:
    """When requests are due, in seconds: exponential gaps, the same for the same seed."""
    source, due, when = random.Random(seed), [], 0.0
    while (when := when + source.expovariate(per_s)) < seconds:
        due.append(when)
    return due


async def open_loop(call: Call, due_s: Sequence[float], seconds: float) -> Summary:
    """Sends one request at each of the times, and waits for all of them."""
    start = perf_counter()
    async with asyncio.TaskGroup() as group:
        tasks = []
        for number, when in enumerate(due_s):
            await asyncio.sleep(start + when - perf_counter())
            tasks.append(group.create_task(_observed(call, number, when, start)))
    return Summary(seconds, [task.result() for task in tasks])


async def closed_loop(call: Call, callers: int, seconds: float) -> Summary:
    """So many callers, each of whom asks again as soon as it is answered: the most that a server can do."""
    start, observations = perf_counter(), []

    async def caller(place: int) -> None:
        number = place
        while (now := perf_counter() - start) < seconds:
            observations.append(await _observed(call, number, now, start))
            number += callers

    await asyncio.gather(*map(caller, range(callers)))
    return Summary(seconds, observations)


async def _observed(call: Call, number: int, due_s: float, start: float) -> Observation:
    """Whatever goes wrong is an observation: the load goes on."""
    observation = Observation(due_s)
    try:
        async with asyncio.timeout(PATIENCE_S):
            async for count in call(number):
                if count:
                    observation.tokens.append((perf_counter() - start, count))
        observation.error = "" if observation.tokens else "it ended without a token"
    except RefusedError as refusal:
        observation.refusal = refusal
    except Exception as error:
        observation.error = f"{type(error).__name__}: {error}".splitlines()[0]
    return observation
