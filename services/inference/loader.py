"""Makes a version answer: session, conformance, engine; or a graph of tensors behind its batcher. Runs in threads.

Knows directories; nothing of registries or deployments.
"""

import asyncio
import logging
from pathlib import Path

from octavo.errors import FailedPrecondition
from octavo.formats.architecture import Architecture
from octavo.formats.bundle import CONFIG_FILE, GENERATION_CONFIG_FILE, PRECISIONS, Bundle, graph_file, read_json
from octavo.formats.config_json import FAMILIES
from octavo.formats.conformance import CONFORMANCE_FILE
from octavo.v1.deployments_pb2 import Precision
from octavo.v1.errors_pb2 import Reason
from services.inference import parameters
from services.inference.batch_policy import BatchPolicy
from services.inference.engine import Engine
from services.inference.forms import Forms
from services.inference.memory_budget import Footprint, cache_element_bytes, weights_bytes
from services.inference.outbox import Courier
from services.inference.rehearsal import Rehearsal
from services.inference.sampler import Sampler
from services.inference.scheduler import Scheduler
from services.inference.score_session import ScoreSession
from services.inference.served_graph import ServedGraph
from services.inference.served_model import Key, LoadedModel, end_ids, precision_word
from services.inference.session import Session
from services.inference.settings import InferenceSettings
from services.inference.tensor_model import TensorModel

GRAPHS = {Precision.Value(f"PRECISION_{word.upper()}"): graph_file(word) for word in PRECISIONS}

SESSION_BYTES = 4 << 20
"""What a session and a tokenizer take, whatever the size of the model."""


class Loader:
    """Builds engines as the settings say, all for one event loop, each with a courier of its own to it."""

    def __init__(self, settings: InferenceSettings, loop: asyncio.AbstractEventLoop, logger: logging.Logger) -> None:
        self._settings = settings
        self._loop = loop
        self._logger = logger

    def load(self, directory: Path, key: Key) -> LoadedModel | TensorModel:
        """What the files in `directory` become, at work. Raises OctavoError where they cannot serve."""
        graph = self._graph(directory, key)
        return self._text(directory, graph, key) if is_text(directory) else self._tensors(graph, key)

    def _tensors(self, graph: Path, key: Key) -> TensorModel:
        usual = BatchPolicy(
            rows=self._settings.batch_rows,
            delay_us=self._settings.batch_delay_us,
            waiting_limit=self._settings.waiting_limit,
        )
        return TensorModel.open(
            graph,
            usual,
            threads=self._settings.thread_count,
            spin_us=self._settings.spin_us,
            size_limit_bytes=self._settings.tensor_model_limit_bytes,
            loop=self._loop,
            name=key.name.removeprefix("servedModels/"),
            logger=self._logger,
        )

    def _text(self, directory: Path, path: Path, key: Key) -> LoadedModel:
        bundle = Bundle.open(directory)
        architecture = bundle.architecture
        capacity = min(architecture.context_length, self._settings.context_limit)
        graph = ServedGraph(
            path,
            architecture,
            threads=self._threads(architecture),
            spin_us=self._settings.spin_us,
        )
        cache = graph.new_cache(slots=self._slots(graph.row_size_bytes(capacity), capacity), capacity=capacity)
        session = Session(graph, cache)
        rehearsal = Rehearsal(session, chunk_tokens=self._settings.chunk_tokens)
        verdict = rehearsal.verify(directory, precision_word(key.precision))
        ends = end_ids(directory, bundle.tokenizer)
        loaded = LoadedModel(
            directory=directory,
            architecture=architecture,
            tokenizer=bundle.tokenizer,
            engine=self._engine(session, key),
            score_session=ScoreSession(graph, capacity=capacity, chunk_tokens=self._settings.chunk_tokens),
            forms=Forms(bundle.tokenizer, architecture.vocab_size, ends),
            end_ids=ends,
            sampling_defaults=_sampling_defaults(directory / GENERATION_CONFIG_FILE),
            capacity=capacity,
            cache_size_bytes=cache.size_bytes,
            conformance_count=verdict.vectors,
        )
        loaded.engine.start()
        return loaded

    def footprint(self, directory: Path, key: Key) -> Footprint:
        """What `load` will take of memory, from the sizes of the files. Raises OctavoError as `load` does."""
        graph = self._graph(directory, key)
        if not is_text(directory):
            return Footprint(weights_bytes=weights_bytes(graph), working_bytes=SESSION_BYTES)
        architecture = Architecture.from_config(read_json(directory / CONFIG_FILE))
        capacity = min(architecture.context_length, self._settings.context_limit)
        row_bytes = capacity * architecture.kv_cache_bytes_per_token(element_bytes=cache_element_bytes(graph))
        slots = self._slots(row_bytes, capacity)
        # A layer's activations of one chunk, with the widest of them (four times the width) there and back; logits
        # as float32 and the sampler's copies of them in float64. Measured: an upper bound from 1 to 85 M parameters.
        working = 16 * self._settings.chunk_tokens * architecture.width * 4 + 28 * slots * architecture.vocab_size
        working += ScoreSession.size_bytes(architecture, row_bytes=row_bytes, chunk_tokens=self._settings.chunk_tokens)
        return Footprint(
            weights_bytes=weights_bytes(graph),
            cache_bytes=slots * row_bytes,
            working_bytes=SESSION_BYTES + working,
        )

    def _engine(self, session: Session, key: Key) -> Engine:
        slots = session.cache.slots
        return Engine(
            session=session,
            scheduler=Scheduler(
                slots=slots,
                waiting_limit=self._settings.waiting_limit,
                chunk_tokens=self._settings.chunk_tokens,
            ),
            sampler=Sampler(slots=slots, capacity=session.cache.capacity),
            courier=Courier(self._loop),
            messages_per_s=self._settings.messages_per_s,
            name=key.name.removeprefix("servedModels/"),
            logger=self._logger,
        )

    def _graph(self, directory: Path, key: Key) -> Path:
        name = GRAPHS.get(key.precision)
        if name and (directory / name).is_file():
            return directory / name
        served = [precision_word(precision) for precision, name in GRAPHS.items() if (directory / name).is_file()]
        raise FailedPrecondition(
            Reason.REASON_MODEL_REFUSED,
            f"{key.version} has no graph in {precision_word(key.precision)} that this server can run; "
            f"it has {', '.join(served) or 'none at all: export it first'}",
            version=key.version,
        )

    def _slots(self, row_bytes: int, capacity: int) -> int:
        """As many slots as the settings ask for and the memory allows. Raises FailedPrecondition for none."""
        # Two versions of a model have to fit while one takes the other's place.
        limit_bytes = min(self._settings.cache_limit_bytes, self._settings.memory_budget_bytes // 4)
        slots = min(self._settings.slots, limit_bytes // row_bytes)
        if not slots:
            raise FailedPrecondition(
                Reason.REASON_MODEL_REFUSED,
                f"one sequence of {capacity} tokens takes {row_bytes} bytes of cache, more than the limit of "
                f"{limit_bytes}; raise OCTAVO_INFERENCE_CACHE_LIMIT_BYTES (a quarter of "
                "OCTAVO_INFERENCE_MEMORY_LIMIT_BYTES at most), or lower OCTAVO_INFERENCE_CONTEXT_LIMIT",
            )
        return slots

    def _threads(self, architecture: Architecture) -> int:
        # With more threads than heads the attention kernel splits a row among threads, in another way when a batch
        # has more rows: a sequence's bits would depend on its company.
        return min(self._settings.thread_count, architecture.heads)


def is_text(directory: Path) -> bool:
    """Whether files are a bundle of ours, which answers text: config.json names a family that we build graphs for.

    Everything else that has a graph is served as tensors; so is another maker's BERT, with a config.json of its own.
    """
    path = directory / CONFIG_FILE
    has_vectors = (directory / CONFORMANCE_FILE).is_file()
    return has_vectors or (path.is_file() and read_json(path).get("model_type") in FAMILIES)


def _sampling_defaults(path: Path) -> dict[str, float]:
    return parameters.sampling_defaults(read_json(path)) if path.is_file() else {}
