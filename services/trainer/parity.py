"""The proof that an exported graph computes what its checkpoint computes, held before a version is registered.

The checkpoint is a function from token ids [n] to logits [n, vocab]; the graph is run whole, in chunks with a
cache, and in a ragged batch. Then a greedy text is compared token by token. Knows nothing of torch or of jobs.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from octavo.errors import FailedPrecondition
from octavo.formats.architecture import Architecture
from octavo.formats.bundle import CONFIG_FILE, GRAPH_FILE, read_json
from octavo.formats.conformance import (
    CONFORMANCE_FILE,
    Conformance,
    PrecisionVectors,
    Vector,
    log_probability,
)
from octavo.formats.manifest import WEIGHTS_FILE, digest_file
from octavo.v1.errors_pb2 import Reason
from services.trainer.graph_session import GraphSession

Reference = Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float32]]
"""Token ids [n] to logits [n, vocab], float32."""

# fp32 sums of a few thousand terms in another order differ by some 1e-5; a wrong formula by far more than this.
TOLERANCE: Final = 1e-4
# Wide and deep models round more: 100 M parameters over 1024 positions gave 1.1e-4, half of it the checkpoint's
# own against float64. So the checkpoint is held against itself, read in pieces, and eight times that is allowed
# where it is more; measured ratios lie between 1.6 and 4.5.
NOISE_FACTOR: Final = 8
# Beyond ten times the tolerance it is no longer rounding.
NOISE_LIMIT: Final = 10
GREEDY_TOKENS: Final = 200
# Log-probabilities on another CPU, in nats: other vector widths, other sums.
CONFORMANCE_TOLERANCE: Final = 1e-3
CONFORMANCE_TOKENS: Final = 32

_LONGEST_PROBE: Final = 1024
# 64 MB of logits for each probe but the longest, however large the vocabulary.
_LOGITS_LIMIT: Final = 1 << 24
_DECODE_STEPS: Final = 32
_PROMPT_TOKENS: Final = 8


@dataclass(frozen=True, kw_only=True)
class Tie:
    """A greedy step where checkpoint and graph chose differently between logits closer than the tolerance."""

    text: int
    step: int
    reference: int
    graph: int
    margin: float


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What was compared and how it came out; `differences` are the largest absolute ones of a logit, by way.

    `checkpoint_noise` is by how much the checkpoint differs from itself when it reads a text in pieces, and
    `tolerance` what was allowed in view of it.
    """

    precision: str
    tolerance: float
    checkpoint_noise: float
    largest_difference: float
    differences: dict[str, float]
    probe_lengths: tuple[int, ...]
    positions: int
    greedy_tokens: int
    greedy_texts: int
    ties: tuple[Tie, ...]
    graph_digest: str
    weights_digest: str
    runtime: str
    duration_s: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"ties": [asdict(tie) for tie in self.ties], "probe_lengths": list(self.probe_lengths)}


def prove(
    bundle: Path,
    reference: Reference,
    *,
    texts: Sequence[Sequence[int]] = (),
    tolerance: float = TOLERANCE,
    greedy_tokens: int = GREEDY_TOKENS,
    threads: int = 1,
) -> Proof:
    """Hold the fp32 graph of `bundle` against `reference`; FailedPrecondition with the difference found.

    `tolerance` bounds the largest absolute difference of a logit where fp32 itself is not coarser. `texts` are real
    token ids to probe with, beside the pseudo-random ones. A greedy text ends with the context, so a short context
    is covered by several texts that together have `greedy_tokens`.
    """
    started_s = time.perf_counter()
    trial = _Trial(bundle, reference, texts, threads)
    noise = trial.noise()
    tolerance = _allowed(noise, tolerance)
    differences = {"whole": trial.whole(), "chunked": trial.chunked(), "ragged": trial.ragged()}
    _require_close(differences, tolerance)
    greedy = trial.greedy(greedy_tokens, tolerance)
    differences["greedy"] = greedy.difference
    _require_close(differences, tolerance)
    return Proof(
        precision="fp32",
        tolerance=tolerance,
        checkpoint_noise=noise,
        largest_difference=max(differences.values()),
        differences=differences,
        probe_lengths=trial.lengths,
        positions=sum(trial.lengths),
        greedy_tokens=greedy_tokens,
        greedy_texts=greedy.texts,
        ties=greedy.ties,
        graph_digest=digest_file(bundle / GRAPH_FILE),
        weights_digest=digest_file(bundle / WEIGHTS_FILE),
        runtime=f"onnxruntime {ort.__version__} CPU",
        duration_s=round(time.perf_counter() - started_s, 3),
    )


def record_conformance(
    bundle: Path,
    *,
    precision: str = "fp32",
    graph: str = GRAPH_FILE,
    texts: Sequence[Sequence[int]] = (),
    tolerance: float = CONFORMANCE_TOLERANCE,
    threads: int = 1,
) -> Conformance:
    """Write what `graph` answers into conformance.json, beside what other precisions have there.

    FailedPrecondition if every first token is a tie: such a model answers differently wherever it runs.
    """
    architecture = Architecture.from_config(read_json(bundle / CONFIG_FILE))
    session = GraphSession(bundle / graph, architecture, threads=threads)
    prompts = [*(_probe(architecture, seed, 16) for seed in range(8)), *_as_ids(texts)]
    # Half of the context at most, so that there is room for an answer.
    longest = max(1, min(64, architecture.context_length // 2))
    found = (_vector(session, prompt[:longest], architecture, tolerance) for prompt in prompts)
    vectors = tuple(vector for vector in found if vector is not None)
    if not vectors:
        raise _failed("the best two tokens are equal for every probe; train the model before it is exported")
    known = Conformance.read(bundle) if (bundle / CONFORMANCE_FILE).is_file() else Conformance({})
    entry = PrecisionVectors(graph=graph, tolerance=tolerance, vectors=vectors)
    conformance = known.with_precision(precision, entry)
    conformance.write(bundle)
    return conformance


@dataclass(frozen=True, kw_only=True)
class _Greedy:
    difference: float
    texts: int
    ties: tuple[Tie, ...]


class _Trial:
    """The graph of a bundle and the checkpoint's logits for every probe."""

    def __init__(self, bundle: Path, reference: Reference, texts: Sequence[Sequence[int]], threads: int) -> None:
        self._a = Architecture.from_config(read_json(bundle / CONFIG_FILE))
        self._reference = reference
        self._session = GraphSession(bundle / GRAPH_FILE, self._a, threads=threads)
        context = self._a.context_length
        limit = min(context, max(_PROMPT_TOKENS, _LOGITS_LIMIT // self._a.vocab_size))
        shorter = {min(limit, length) for length in (context // 2 + 1, 9, 1)}
        lengths = sorted({min(context, _LONGEST_PROBE)} | shorter, reverse=True)
        probes = [_probe(self._a, seed, length) for seed, length in enumerate(lengths)]
        self._probes = probes + [ids[:limit] for ids in _as_ids(texts)]
        self._wanted = [self._logits(ids) for ids in self._probes]

    @property
    def lengths(self) -> tuple[int, ...]:
        return tuple(map(len, self._probes))

    def noise(self) -> float:
        """How far the checkpoint is from itself when it reads beginnings of the longest probe."""
        ids, wanted = self._probes[0], self._wanted[0]
        # Odd lengths: kernels work on blocks of rows, and whole blocks would round alike.
        ends = sorted({min(len(ids), end) for end in (len(ids) // 2 + 1, 9, 1)})
        return _worst([_largest(self._logits(ids[:end]), wanted[:end]) for end in ends])

    def whole(self) -> float:
        """Every position of every probe in one run."""
        found = []
        for ids, wanted in zip(self._probes, self._wanted, strict=True):
            self._session.reset(rows=1)
            found.append(_largest(self._session.feed_all(ids[None, :])[0], wanted))
        return _worst(found)

    def chunked(self) -> float:
        """Each probe in two chunks, then token by token through the cache."""
        found = []
        for ids, wanted in zip(self._probes, self._wanted, strict=True):
            self._session.reset(rows=1)
            end = 0
            for count in _chunks(len(ids)):
                logits = self._session.feed(ids[None, end : end + count])[0]
                end += count
                found.append(_largest(logits, wanted[end - 1]))
        return _worst(found)

    def ragged(self) -> float:
        """The first halves of all probes as one padded batch, then decode steps of rows of different lengths."""
        rows = [index for index, ids in enumerate(self._probes) if len(ids) > 1]
        if not rows:
            return 0.0
        halves = np.array([len(self._probes[row]) // 2 for row in rows])
        padded = np.zeros((len(rows), halves.max()), np.int64)
        for line, row in enumerate(rows):
            padded[line, : halves[line]] = self._probes[row][: halves[line]]
        self._session.reset(rows=len(rows))
        found = [self._compare_rows(self._session.feed(padded, halves), rows, halves - 1)]
        left = [len(self._probes[row]) - half for row, half in zip(rows, halves, strict=True)]
        steps = min(8, *left)
        for step in range(steps):
            places = halves + step
            ids = np.array([[self._probes[row][at]] for row, at in zip(rows, places, strict=True)], np.int64)
            found.append(self._compare_rows(self._session.feed(ids), rows, places))
        return _worst(found)

    def greedy(self, count: int, tolerance: float) -> _Greedy:
        """Texts of `count` tokens together; FailedPrecondition where the checkpoint would go on differently.

        The checkpoint reads each finished text once: choosing the same token after every prefix is, by
        induction, writing the same text.
        """
        prompt_tokens = max(1, min(_PROMPT_TOKENS, self._a.context_length // 2))
        room = self._a.context_length - prompt_tokens + 1
        ties: list[Tie] = []
        found = [0.0]
        text, left = 0, count
        while left:
            prompt = _probe(self._a, 100 + text, prompt_tokens)
            written, logits = self._session.complete(prompt, min(left, room))
            wanted = self._logits(np.concatenate([prompt, written[:-1]]))[prompt_tokens - 1 :]
            found.append(_largest(logits, wanted))
            ties += _ties(text, written, wanted, tolerance)
            text, left = text + 1, left - len(written)
        return _Greedy(difference=_worst(found), texts=text, ties=tuple(ties))

    def _compare_rows(
        self, logits: npt.NDArray[np.float32], rows: Sequence[int], places: npt.NDArray[np.int64]
    ) -> float:
        pairs = zip(logits, rows, places, strict=True)
        return _worst([_largest(line, self._wanted[row][place]) for line, row, place in pairs])

    def _logits(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        logits = self._reference(ids)
        if logits.shape != (len(ids), self._a.vocab_size):
            raise ValueError(f"the reference gave {logits.shape} for {len(ids)} ids of {self._a.vocab_size}")
        return logits


def _ties(text: int, written: npt.NDArray[np.int64], wanted: npt.NDArray[np.float32], tolerance: float) -> list[Tie]:
    ties = []
    for step in np.flatnonzero(wanted.argmax(axis=1) != written).tolist():
        best, chosen = int(wanted[step].argmax()), int(written[step])
        margin = float(wanted[step, best] - wanted[step, chosen])
        if not margin <= tolerance:
            raise _failed(
                f"greedy token {step} of text {text} is {chosen} in the graph and {best} in the checkpoint, "
                f"{margin:.3g} apart; only a tie within {tolerance:.3g} may differ",
                margin=f"{margin:.6g}",
                step=step,
            )
        ties.append(Tie(text=text, step=step, reference=best, graph=chosen, margin=margin))
    return ties


def _vector(
    session: GraphSession, prompt: npt.NDArray[np.int64], architecture: Architecture, tolerance: float
) -> Vector | None:
    """The answer up to the first step that another machine might decide differently; None if that is at once."""
    room = architecture.context_length - len(prompt) + 1
    ids, logits = session.complete(prompt, min(CONFORMANCE_TOKENS, room))
    top = np.sort(logits, axis=1)[:, -2:]
    # Each of two logits may move by the tolerance; twice that for the log-probabilities' own rounding.
    is_clear = top[:, -1] - top[:, 0] > 4 * tolerance if architecture.vocab_size > 1 else np.ones(len(ids), bool)
    count = int(np.argmin(is_clear)) if not is_clear.all() else len(ids)
    if not count:
        return None
    pairs = zip(logits[:count], ids[:count].tolist(), strict=True)
    return Vector(
        prompt=tuple(prompt.tolist()),
        greedy=tuple(ids[:count].tolist()),
        log_probabilities=tuple(log_probability(line, code) for line, code in pairs),
    )


def _probe(architecture: Architecture, seed: int, length: int) -> npt.NDArray[np.int64]:
    """Token ids that are the same wherever and whenever they are asked for."""
    stream = hashlib.shake_256(f"octavo probe {seed}".encode()).digest(8 * length)
    codes = np.frombuffer(stream, "<u8") % architecture.vocab_size
    return codes.astype(np.int64)


def _as_ids(texts: Sequence[Sequence[int]]) -> list[npt.NDArray[np.int64]]:
    return [np.asarray(text, np.int64) for text in texts if len(text)]


def _chunks(length: int) -> list[int]:
    decoded = min(_DECODE_STEPS, length - 1)
    first = (length - decoded + 1) * 2 // 3
    return [count for count in (first, length - decoded - first) if count] + [1] * decoded


def _largest(found: npt.NDArray[np.float32], wanted: npt.NDArray[np.float32]) -> float:
    return float(np.abs(found - wanted).max())


def _worst(differences: Sequence[float]) -> float:
    """The largest, and NaN before any number."""
    return float(np.max(differences))


def _allowed(noise: float, tolerance: float) -> float:
    # Written so that NaN fails.
    if not noise <= NOISE_LIMIT * tolerance:
        raise _failed(
            f"the checkpoint differs from itself by {noise:.3g} when it reads a text in pieces; it has to be causal, "
            "deterministic and finite",
            difference=f"{noise:.6g}",
            way="noise",
        )
    return max(tolerance, min(NOISE_FACTOR * noise, NOISE_LIMIT * tolerance))


def _require_close(differences: Mapping[str, float], tolerance: float) -> None:
    for way, difference in differences.items():
        # Written so that NaN fails.
        if not difference <= tolerance:
            raise _failed(
                f"a logit of the graph, run {way}, differs from the checkpoint's by {difference:.3g}; "
                f"{tolerance:.3g} is allowed",
                difference=f"{difference:.6g}",
                way=way,
            )


def _failed(text: str, **metadata: object) -> FailedPrecondition:
    error = FailedPrecondition(Reason.REASON_PARITY_FAILED, text)
    error.metadata = {key: str(value) for key, value in metadata.items()}
    return error
