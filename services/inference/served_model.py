"""One version in memory: its tokenizer, its engine, how far it is and who is using it.

Knows bundles and engines; nothing of deployments, names of deployments or gRPC.
"""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, perf_counter, time

import numpy as np
from numpy.typing import NDArray

from octavo.errors import FailedPrecondition, InvalidArgument, OctavoError
from octavo.formats.architecture import Architecture
from octavo.formats.bundle import CONFIG_FILE, GENERATION_CONFIG_FILE, read_json
from octavo.formats.tokenizer import Tokenizer
from octavo.v1.deployments_pb2 import Precision
from octavo.v1.errors_pb2 import Reason
from octavo.v1.inference_pb2 import (
    FinishReason,
    GenerateRequest,
    GenerationParameters,
    ServedModelState,
    StreamGenerateRequest,
)
from services.inference.engine import Engine
from services.inference.forms import Form, Forms
from services.inference.memory_budget import Footprint
from services.inference.outbox import Outbox
from services.inference.pace import Pace
from services.inference.sampler import Sampling
from services.inference.score_session import ScoreSession
from services.inference.sequence import Sequence
from services.inference.tensor_model import TensorModel
from services.inference.transcript import Transcript

PROMPT_CHARACTER_LIMIT = 1 << 20


@dataclass(frozen=True, slots=True)
class Key:
    """What tells served models apart: `models/poet/versions/3` and a precision."""

    version: str
    precision: Precision.ValueType

    @property
    def name(self) -> str:
        """`servedModels/poet.3.fp32`."""
        _, model, _, number = self.version.split("/")
        return f"servedModels/{model}.{number}.{precision_word(self.precision)}"

    @property
    def model(self) -> str:
        """`models/poet`."""
        return self.version.partition("/versions/")[0]

    @property
    def number(self) -> int:
        return int(self.version.rpartition("/")[2])


def precision_word(precision: Precision.ValueType) -> str:
    """`fp32` for PRECISION_FP32."""
    return Precision.Name(precision).removeprefix("PRECISION_").lower()


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """What a bundle of text became: all that answering takes. `capacity` in tokens, prompt and completion together."""

    directory: Path
    architecture: Architecture
    tokenizer: Tokenizer
    engine: Engine
    score_session: ScoreSession
    forms: Forms
    end_ids: frozenset[int]
    sampling_defaults: Mapping[str, float]
    capacity: int
    cache_size_bytes: int
    conformance_count: int
    device: str

    @property
    def is_alive(self) -> bool:
        """Whether it can answer."""
        return self.engine.is_alive

    def stop(self) -> None:
        """Ends what still runs, and frees its thread."""
        self.engine.stop()

    def prompt(self, request: GenerateRequest | StreamGenerateRequest) -> NDArray[np.int64]:
        """The prompt's tokens, int64 [n] with n from 1 to capacity - 1. Raises InvalidArgument with the right field."""
        if bool(request.prompt) == bool(request.prompt_token_ids):
            both = "both are set; send one" if request.prompt else "empty; send at least one character or token"
            raise InvalidArgument.field("prompt", both, reason=Reason.REASON_MISSING_FIELD)
        if request.prompt:
            token_ids = np.array(self.encode(request.prompt, "prompt"), np.int64)
        else:
            token_ids = np.array(request.prompt_token_ids, np.int64)
            self.check_ids(token_ids, "prompt_token_ids")
        if len(token_ids) >= self.capacity:
            field = "prompt" if request.prompt else "prompt_token_ids"
            raise InvalidArgument.field(
                field,
                f"{len(token_ids)} tokens leave no room in the context of {self.capacity}; "
                f"send at most {self.capacity - 1}",
                reason=Reason.REASON_PROMPT_TOO_LONG,
                prompt_tokens=len(token_ids),
                context_length=self.capacity,
            )
        return token_ids

    def encode(self, text: str, field: str) -> list[int]:
        """The tokens of a text. Raises InvalidArgument naming `field`."""
        if len(text) > PROMPT_CHARACTER_LIMIT:
            raise InvalidArgument.field(
                field,
                f"{len(text)} characters are more than {PROMPT_CHARACTER_LIMIT}",
                reason=Reason.REASON_LIMIT_EXCEEDED,
            )
        try:
            return self.tokenizer.encode(text)
        except InvalidArgument as error:
            # The tokenizer calls what it reads "text"; the caller knows it by another name.
            violation = error.violations.get("text", error.message)
            renamed = InvalidArgument.field(field, violation, reason=error.reason)
            renamed.metadata = error.metadata
            raise renamed from None

    def check_ids(self, token_ids: NDArray[np.int64], field: str) -> None:
        """Raises InvalidArgument where an id is not in the vocabulary."""
        wrong = np.flatnonzero((token_ids < 0) | (token_ids >= self.architecture.vocab_size))
        if len(wrong):
            raise InvalidArgument.field(
                f"{field}[{wrong[0]}]",
                f"{token_ids[wrong[0]]} is not a token; ids go from 0 to {self.architecture.vocab_size - 1}",
            )

    def check(self, prompt: NDArray[np.int64], parameters: GenerationParameters) -> None:
        """Raises InvalidArgument for tokens outside the vocabulary, and for more tokens than there is room for."""
        self.check_ids(np.array(parameters.stop_token_ids, np.int64), "parameters.stop_token_ids")
        self.check_ids(np.array(list(parameters.logit_bias), np.int64), "parameters.logit_bias")
        room = self.capacity - len(prompt)
        if parameters.min_tokens > room:
            raise InvalidArgument.field(
                "parameters.min_tokens",
                f"{parameters.min_tokens} do not fit: after the prompt's {len(prompt)} tokens the context of "
                f"{self.capacity} has room for {room}",
            )

    def sequence(
        self,
        prompt: NDArray[np.int64],
        parameters: GenerationParameters,
        sampling: Sampling,
        outbox: Outbox,
        *,
        form: Form | None = None,
        priority: int,
        deadline_s: float | None,
    ) -> Sequence:
        """A sequence for the engine, valid by `check`."""
        room = self.capacity - len(prompt)
        limit = parameters.max_tokens if parameters.HasField("max_tokens") else room + 1
        is_contest = parameters.best_of > (parameters.n or 1)
        full, most = FinishReason.FINISH_REASON_CONTEXT_FULL, FinishReason.FINISH_REASON_MAX_TOKENS
        endings = {} if parameters.ignore_eos else dict.fromkeys(self.end_ids, FinishReason.FINISH_REASON_END_OF_TEXT)
        endings |= dict.fromkeys(parameters.stop_token_ids, FinishReason.FINISH_REASON_STOP_TOKEN)
        return Sequence(
            prompt,
            sampling=sampling,
            token_limit=min(limit, room),
            limit_reason=full if limit > room else most,
            endings=endings,
            transcript=Transcript(self.tokenizer.stream(), parameters.stop),
            outbox=outbox,
            least=parameters.min_tokens,
            constraint=form.constraint(endings) if form else None,
            priority=priority,
            deadline_s=deadline_s,
            # Which of several completions is best is a matter of their log-probabilities.
            logprobs=parameters.logprobs if parameters.HasField("logprobs") or is_contest else None,
        )


class ServedModel:
    """A version on its way into memory, in it, or on its way out. Used on the event loop only."""

    def __init__(self, key: Key) -> None:
        self.key = key
        self.state = ServedModelState.SERVED_MODEL_STATE_DOWNLOADING
        self.failure: OctavoError | None = None
        self.obstacle: OctavoError | None = None
        """What it waits for, while its state is WAITING."""
        self.footprint: Footprint | None = None
        """What it takes of memory, once that is known."""
        self.pace = Pace()
        """Of prompt and completion tokens."""
        self.ready_s: float | None = None
        self.load_s = 0.0
        self.last_use_s = monotonic()
        self.last_request_s: float | None = None
        """When it was last asked for anything, in seconds since 1970."""
        self._begin_s = perf_counter()
        self._loaded: LoadedModel | TensorModel | None = None
        self._was_ready = False
        self._leases = 0
        self._waiters = 0
        self._is_leaving = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._settled = asyncio.Event()

    @property
    def is_ready(self) -> bool:
        is_loaded = self._loaded is not None and self._loaded.is_alive
        return is_loaded and self.state == ServedModelState.SERVED_MODEL_STATE_READY

    @property
    def is_available(self) -> bool:
        """Whether it is ready, or was and will be again once it is asked for."""
        is_away = self._was_ready and self._loaded is None and self.state not in _OVER
        return self.is_ready or self._is_leaving or is_away

    @property
    def is_idle(self) -> bool:
        """Whether it may be unloaded now: nobody uses it, or is about to."""
        return not self._leases and (self._is_leaving or (self.is_ready and not self._waiters))

    @property
    def is_awaited(self) -> bool:
        """Whether a request waits until it has come into memory."""
        return self._waiters > 0

    @property
    def loaded(self) -> LoadedModel | TensorModel | None:
        """What answers, once it is loaded."""
        return self._loaded

    def move(self, state: ServedModelState.ValueType) -> None:
        """Says how far it is on its way into memory."""
        if self.state == ServedModelState.SERVED_MODEL_STATE_UNLOADED:
            self._begin_s = perf_counter()
        self.state = state
        self.obstacle = None

    def ready(self, loaded: LoadedModel | TensorModel) -> None:
        """Lets it answer from now on."""
        self._loaded = loaded
        self.move(ServedModelState.SERVED_MODEL_STATE_READY)
        self._was_ready = True
        self.ready_s = time()
        self.load_s = perf_counter() - self._begin_s
        self.last_use_s = monotonic()
        self._settled.set()

    def fail(self, error: OctavoError) -> None:
        """Says that it cannot be served, and why."""
        self.move(ServedModelState.SERVED_MODEL_STATE_FAILED)
        self.failure = error
        self._settled.set()

    def wait(self, error: OctavoError) -> None:
        """Says what it lacks, which may come."""
        self.move(ServedModelState.SERVED_MODEL_STATE_WAITING)
        self.obstacle = error

    def unload(self) -> None:
        """Sends it out of memory until it is asked for. Only while it is idle; `take` is to follow."""
        self._is_leaving = False
        self.move(ServedModelState.SERVED_MODEL_STATE_UNLOADED)
        self._settled.clear()

    def take(self) -> LoadedModel | TensorModel | None:
        """What it held in memory, to be stopped; from now on it holds nothing."""
        loaded, self._loaded = self._loaded, None
        return loaded

    async def reached(self) -> bool:
        """Waits until it has come into memory or will not; whether it is ready. Then it stays for who has waited."""
        self._waiters += 1
        try:
            await self._settled.wait()
            return self.is_ready
        finally:
            self._waiters -= 1

    @contextmanager
    def lease(self) -> Iterator[LoadedModel]:
        """Keeps it in memory while a request for text uses it. Only for a model that is ready.

        Raises FailedPrecondition for a model of tensors.
        """
        with self._held() as loaded:
            if not isinstance(loaded, LoadedModel):
                raise FailedPrecondition(
                    Reason.REASON_NOT_A_LANGUAGE_MODEL,
                    f"{self.key.version} takes and gives tensors, not text; call ModelInfer of "
                    "inference.GRPCInferenceService",
                    version=self.key.version,
                )
            yield loaded

    @contextmanager
    def lease_tensors(self) -> Iterator[TensorModel]:
        """The same for a request of tensors. Only for a model of tensors that is ready."""
        with self._held() as loaded:
            if not isinstance(loaded, TensorModel):
                raise AssertionError(f"{self.key.version} is a model of text")
            yield loaded

    @contextmanager
    def _held(self) -> Iterator[LoadedModel | TensorModel]:
        if self._loaded is None:
            raise AssertionError("leased before it was loaded")
        self.last_request_s = time()
        self._leases += 1
        self._idle.clear()
        try:
            yield self._loaded
        finally:
            self.last_use_s = monotonic()
            self._leases -= 1
            if not self._leases:
                self._idle.set()

    async def leave(self) -> None:
        """Lets requests under way finish; new ones wait until it has left memory and come back."""
        self._is_leaving = True
        self.state = ServedModelState.SERVED_MODEL_STATE_DRAINING
        self._settled.clear()
        await self._idle.wait()

    async def drain(self, patience_s: float) -> None:
        """Takes nothing new, and lets requests under way finish, for `patience_s` at most."""
        self._is_leaving = False
        self.state = ServedModelState.SERVED_MODEL_STATE_DRAINING
        self._settled.set()
        if self._loaded:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), patience_s)


_OVER = (ServedModelState.SERVED_MODEL_STATE_DRAINING, ServedModelState.SERVED_MODEL_STATE_FAILED)


def end_ids(directory: Path, tokenizer: Tokenizer) -> frozenset[int]:
    """The tokens that end a text: the tokenizer's, and those of generation_config.json and config.json."""
    ids = set() if tokenizer.end_id is None else {tokenizer.end_id}
    for name in (GENERATION_CONFIG_FILE, CONFIG_FILE):
        if (directory / name).is_file():
            value = read_json(directory / name).get("eos_token_id")
            ids.update(entry for entry in (value if isinstance(value, list) else [value]) if isinstance(entry, int))
    return frozenset(ids)
