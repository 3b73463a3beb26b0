"""Shares traffic by weight, exactly and without chance. Knows keys and weights; nothing of models or deployments."""

from collections.abc import Hashable, Mapping
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class Turns(Generic[Key]):
    """Smooth weighted round-robin, as nginx does it.

    Of each sum-of-weights turns in a row every key gets as many as its weight says, spread as evenly as can be:
    weights 3 and 1 give a, a, b, a. A key that comes or goes leaves the share of the others as it is.
    """

    def __init__(self) -> None:
        self._credits: dict[Key, int] = {}

    def next(self, weights: Mapping[Key, int]) -> Key:
        """Whose turn it is, of at least one key. Without any weight above 0 it is always the first's."""
        credits_ = {key: self._credits.get(key, 0) + weight for key, weight in weights.items() if weight > 0}
        if not credits_:
            return next(iter(weights))
        chosen = max(credits_, key=credits_.__getitem__)
        credits_[chosen] -= sum(weights.values())
        self._credits = credits_
        return chosen
