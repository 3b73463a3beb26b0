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
from services.inference.device import PROCESSOR, Choice
from services.inference.engine import Engine
from services.inference.forms import Forms
from services.inference.memory import join_pages
from services.inference.memory_budget import Footprint, cache_element_bytes, weights_bytes
from services.inference.outbox import Courier
from services.inference.rehearsal import Rehearsal
from services.inference.scheduler import Scheduler
from services.inference.score_session import ScoreSession
from services.inference.served_model import Key, LoadedModel, end_ids, precision_word
from services.inference.settings import InferenceSettings
from services.inference.tensor_model import TensorModel
from services.inference.workbench import Workbench, Workshop, prompt_path

GRAPHS = {Precision.Value(f"PRECISION_{word.upper()}"): graph_file(word) for word in PRECISIONS}

HALVES = (Precision.PRECISION_FP16, Precision.PRECISION_BF16)
"""What CUDA's attention computes in; it has no kernel for others, nor has the processor for these."""

SESSION_BYTES = 4 << 20
"""What a session and a tokenizer take, whatever the size of the model."""


class Loader:
    """Builds engines as the settings say, all for one event loop, each with a courier of its own to it."""

    def __init__(
        self,
        settings: InferenceSettings,
        loop: asyncio.AbstractEventLoop,
        logger: logging.Logger,
        choice: Choice = PROCESSOR,
    ) -> None:
        self._settings = settings
        self._loop = loop
        self._logger = logger
        self._choice = choice

    def load(self, directory: Path, key: Key) -> LoadedModel | TensorModel:
        """What the files in `directory` become, at work. Raises OctavoError where they cannot serve."""
        graph = self._graph(directory, key)
        found = self._text(directory, graph, key) if is_text(directory) else self._tensors(graph, key)
        join_pages()
        return found

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
        bench = self._workbench(path, architecture, key, capacity)
        rehearsal = Rehearsal(bench.session, chunk_tokens=self._settings.chunk_tokens)
        verdict = rehearsal.verify(directory, precision_word(key.precision))
        ends = end_ids(directory, bundle.tokenizer)
        loaded = LoadedModel(
            directory=directory,
            architecture=architecture,
            tokenizer=bundle.tokenizer,
            engine=self._engine(bench, key),
            score_session=bench.score_session,
            forms=Forms(bundle.tokenizer, architecture.vocab_size, ends),
            end_ids=ends,
            sampling_defaults=_sampling_defaults(directory / GENERATION_CONFIG_FILE),
            capacity=capacity,
            cache_size_bytes=bench.session.cache.size_bytes,
            conformance_count=verdict.vectors,
            device=bench.device,
        )
        loaded.engine.start()
        return loaded

    def _workbench(self, path: Path, architecture: Architecture, key: Key, capacity: int) -> Workbench:
        """A graph where it computes: in 16 bits on a CUDA device, the others on the processor."""
        workshop = Workshop(self._settings, capacity=capacity, slots=lambda row_bytes: self._slots(row_bytes, capacity))
        if key.precision not in HALVES:
            return workshop.on_processor(path, architecture)
        if self._choice.device.kind == "cpu":
            raise FailedPrecondition(
                Reason.REASON_MODEL_REFUSED,
                f"{key.version} in {precision_word(key.precision)} is for CUDA, and this server computes on the cpu"
                f"{f' ({self._choice.reason})' if self._choice.reason else ''}; deploy it in fp32 or int8",
                version=key.version,
            )
        return workshop.on_device(path, architecture, self._choice.device)

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
        weights = weights_bytes(graph)
        if (prompts := prompt_path(graph)).is_file():
            weights += weights_bytes(prompts)
            working += (capacity + 2 * self._settings.chunk_tokens) * architecture.kv_cache_bytes_per_token()
        return Footprint(
            weights_bytes=weights,
            cache_bytes=slots * row_bytes,
            working_bytes=SESSION_BYTES + working,
        )

    def _engine(self, bench: Workbench, key: Key) -> Engine:
        slots = bench.session.cache.slots
        return Engine(
            session=bench.session,
            scheduler=Scheduler(
                slots=slots,
                waiting_limit=self._settings.waiting_limit,
                wait_limit_s=self._settings.wait_limit_s,
                chunk_tokens=self._settings.chunk_tokens,
            ),
            sampler=bench.sampler,
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


def is_text(directory: Path) -> bool:
    """Whether files are a bundle of ours, which answers text: config.json names a family that we build graphs for.

    Everything else that has a graph is served as tensors; so is another maker's BERT, with a config.json of its own.
    """
    path = directory / CONFIG_FILE
    has_vectors = (directory / CONFORMANCE_FILE).is_file()
    return has_vectors or (path.is_file() and read_json(path).get("model_type") in FAMILIES)


def _sampling_defaults(path: Path) -> dict[str, float]:
    return parameters.sampling_defaults(read_json(path)) if path.is_file() else {}
