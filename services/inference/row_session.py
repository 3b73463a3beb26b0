"""What the engine asks of a session and of a sampler, wherever they compute."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from services.inference.penalties import Bender
from services.inference.sampler import Sampling

Floats = NDArray[np.float32]


class Logits(Protocol):
    """Logits [rows, vocab], here or on a device; a row that is not here is fetched when it is asked for."""

    @property
    def shape(self) -> tuple[Any, ...]:
        """(rows, vocab)."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> Any:
        """The logits float32 [vocab] of one row."""


class RowCache(Protocol):
    """The keys and values of `slots` rows of up to `capacity` tokens."""

    slots: int
    capacity: int

    @property
    def size_bytes(self) -> int:
        """Memory of all rows."""


class RowSession(Protocol):
    """A graph over a cache; Session says what each of these does."""

    vocab_size: int

    @property
    def cache(self) -> RowCache: ...

    def prefill(self, row: int, token_ids: NDArray[np.int64], start: int) -> Floats: ...

    def prefill_together(self, row: int, prompts: Sequence[NDArray[np.int64]]) -> Floats: ...

    def decode(self, count: int) -> Logits: ...

    def decode_row(self, row: int) -> Floats: ...

    def advance(self, count: int, token_ids: NDArray[np.int64]) -> None: ...

    def place(self, row: int, token_id: int, length: int) -> None: ...

    def copy(self, source: int, target: int, length: int) -> None: ...

    def move(self, source: int, target: int, keeps: int = 0) -> None: ...


class RowSampler(Protocol):
    """The settings and streams of all rows; Sampler says what each of these does."""

    def place(self, row: int, sampling: Sampling, count: int, benders: Sequence[Bender] = ()) -> None: ...

    def move(self, source: int, target: int) -> None: ...

    def sample(self, logits: Any, first_row: int = 0) -> NDArray[np.int64]: ...
