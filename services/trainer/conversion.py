"""A bundle in more precisions: each is made beside the fp32 graph, measured against it, and kept only if good enough.

Knows nothing of jobs or of the registry.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Final

from octavo.errors import FailedPrecondition
from octavo.formats.architecture import Architecture
from octavo.formats.bundle import CONFIG_FILE, graph_file, prompt_graph_file, read_json, weights_file
from octavo.formats.manifest import digest_file
from octavo.v1 import trainer_pb2 as pb
from octavo.v1.errors_pb2 import Reason
from services.trainer import quantized_model
from services.trainer.activations import Activations, observe
from services.trainer.graph_evaluation import measure
from services.trainer.graph_session import GraphSession, NoKernel
from services.trainer.half_model import HALVES, write_half
from services.trainer.parity import record_conformance
from services.trainer.yardstick import Yardstick

# Of a log-probability on another machine, in nats. Integers are the same everywhere, but what is rounded to them is
# not: one code of difference in an activation moves a logit by this much at most. Halves: their own last bits.
_TOLERANCES: Final = {"int8": 0.05, "int8_weights": 0.05, "int4": 0.05, "fp16": 0.02, "bf16": 0.15}

Say = Callable[[pb.JobPhase.ValueType, str], None]


@dataclass(frozen=True, kw_only=True)
class Quality:
    """One precision as measured; `perplexity_increase` is a fraction of the perplexity of fp32 on the same tokens.

    `evaluation` is None, and `unmeasured` says why, where this machine cannot run the precision.
    """

    precision: str
    evaluation: pb.Evaluation | None
    perplexity_increase: float
    bits_per_byte_change: float
    unmeasured: str = ""

    @property
    def words(self) -> str:
        """For people."""
        if self.evaluation is None:
            return f"{self.precision} is not measured here: {self.unmeasured}"
        return (
            f"{self.precision} has perplexity {self.evaluation.perplexity:.4f} and {self.evaluation.bits_per_byte:.4f} "
            f"bits per byte on {self.evaluation.tokens:,} held-out tokens, {self.perplexity_increase:+.2%} and "
            f"{self.bits_per_byte_change:+.4f} against fp32"
        )

    @property
    def metrics(self) -> dict[str, float]:
        """For the version."""
        if self.evaluation is None:
            return {}
        return {
            f"{self.precision}_perplexity": self.evaluation.perplexity,
            f"{self.precision}_bits_per_byte": self.evaluation.bits_per_byte,
            f"{self.precision}_perplexity_increase": self.perplexity_increase,
        }


class Conversion:
    """One bundle with its fp32 graph on its way into other precisions."""

    def __init__(
        self,
        bundle: Path,
        yardstick: Yardstick,
        *,
        max_increase: float,
        threads: int,
        say: Say,
        heed: Callable[[], None],
    ) -> None:
        self._bundle = bundle
        self._yardstick = yardstick
        self._max_increase = max_increase
        self._threads = threads
        self._say = say
        self._heed = heed
        self._a = Architecture.from_config(read_json(bundle / CONFIG_FILE))

    @cached_property
    def baseline(self) -> pb.Evaluation:
        """fp32 on the held-out tokens."""
        self._say(pb.JOB_PHASE_EVALUATE, f"measuring fp32 on {len(self._yardstick.held_out):,} held-out tokens")
        found = self._measured("fp32")
        if not math.isfinite(found.validation_loss):
            raise FailedPrecondition(
                Reason.REASON_QUALITY_LOST,
                "fp32 itself does not predict the held-out text: its loss is not a finite number; train it again",
            )
        return found

    def make(self, precision: str) -> Quality:
        """Write one precision, measure it, and record what it answers; its files are gone if it is not good enough.

        FailedPrecondition (QUALITY_LOST) then, with the figures.
        """
        baseline = self.baseline
        for write in self._writers(precision):
            self._say(pb.JOB_PHASE_EXPORT, f"writing {precision}")
            write()
            self._say(pb.JOB_PHASE_EVALUATE, f"measuring {precision} on {baseline.tokens:,} held-out tokens")
            quality = self._quality(precision, baseline)
            if quality.evaluation is None:
                return quality
            # Written so that NaN fails.
            if quality.perplexity_increase <= self._max_increase:
                self._prove(precision)
                return quality
        for name in (graph_file(precision), prompt_graph_file(precision), weights_file(precision)):
            (self._bundle / name).unlink(missing_ok=True)
        raise _lost(quality, self._max_increase)

    def _prove(self, precision: str) -> None:
        self._say(pb.JOB_PHASE_PROVE, f"recording what {precision} answers")
        record_conformance(
            self._bundle,
            precision=precision,
            graph=graph_file(precision),
            texts=[window.tolist() for window in self._yardstick.windows[:4]],
            tolerance=_TOLERANCES[precision],
            threads=self._threads,
        )

    def _writers(self, precision: str) -> Iterator[Callable[[], Path]]:
        if precision in HALVES:
            yield lambda: write_half(self._bundle, precision)
            return
        seen = self._activations
        for write in quantized_model.WRITERS[precision]:
            yield partial(write, self._bundle, seen, self._heed)

    @cached_property
    def _activations(self) -> Activations:
        count = sum(map(len, self._yardstick.windows))
        self._say(pb.JOB_PHASE_CALIBRATE, f"looking at the activations of {count:,} tokens")
        return observe(self._bundle, self._yardstick.windows, threads=self._threads)

    def _quality(self, precision: str, baseline: pb.Evaluation) -> Quality:
        try:
            found = self._measured(precision)
        except NoKernel:
            return Quality(
                precision=precision,
                evaluation=None,
                perplexity_increase=0.0,
                bits_per_byte_change=0.0,
                unmeasured="ONNX Runtime's CPU provider has no kernels for it; the server's GPU will tell",
            )
        return Quality(
            precision=precision,
            evaluation=found,
            perplexity_increase=found.perplexity / baseline.perplexity - 1,
            bits_per_byte_change=found.bits_per_byte - baseline.bits_per_byte,
        )

    def _measured(self, precision: str) -> pb.Evaluation:
        session = GraphSession(self._bundle / graph_file(precision), self._a, threads=self._threads)
        return measure(
            session,
            self._a,
            self._yardstick.held_out,
            text_bytes=self._yardstick.held_out_bytes,
            heed=self._heed,
        )


def record(bundle: Path, baseline: pb.Evaluation, qualities: Sequence[Quality]) -> dict[str, Any]:
    """What the parity record of a version says of its precisions; plain JSON values."""
    precisions: dict[str, Any] = {}
    for quality in qualities:
        files = (graph_file(quality.precision), weights_file(quality.precision))
        digests = {"graph_digest": digest_file(bundle / files[0]), "weights_digest": digest_file(bundle / files[1])}
        if quality.evaluation is None:
            precisions[quality.precision] = {"is_measured": False, "reason": quality.unmeasured} | digests
            continue
        precisions[quality.precision] = digests | {
            "is_measured": True,
            "perplexity": quality.evaluation.perplexity,
            "fp32_perplexity": baseline.perplexity,
            "perplexity_increase": quality.perplexity_increase,
            "bits_per_byte": quality.evaluation.bits_per_byte,
            "bits_per_byte_change": quality.bits_per_byte_change,
            "accuracy": quality.evaluation.accuracy,
            "held_out_tokens": quality.evaluation.tokens,
        }
    return precisions


def _lost(quality: Quality, allowed: float) -> FailedPrecondition:
    error = FailedPrecondition(
        Reason.REASON_QUALITY_LOST,
        f"{quality.words}; {allowed:.2%} is allowed. Ask for max_perplexity_increase {_rounded_up(quality)}, or use a "
        "precision of more bits",
    )
    error.metadata = {"precision": quality.precision, "perplexity_increase": f"{quality.perplexity_increase:.6g}"}
    return error


def _rounded_up(quality: Quality) -> str:
    return f"{quality.perplexity_increase * 1.1:.2g}"
