"""What a version's engine works with, opened where it computes: session, sampler, and a reader for scores.

Knows the processor's classes and a device's; nothing of versions or requests.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from octavo.formats.architecture import Architecture
from services.inference.device import ATTENTION_KERNELS, Device
from services.inference.device_graph import DeviceGraph
from services.inference.device_reader import DeviceReader
from services.inference.device_sampler import DeviceSampler
from services.inference.device_session import DeviceSession
from services.inference.prompt_reader import PromptReader, read_scales
from services.inference.row_session import RowSampler, RowSession
from services.inference.sampler import Sampler
from services.inference.score_session import RunReader, ScoreSession, TextReader
from services.inference.served_graph import ServedGraph
from services.inference.session import Session
from services.inference.settings import InferenceSettings


def prompt_path(path: Path) -> Path:
    """Where the graph that reads prompts for another would lie."""
    return path.with_suffix(".prompt.onnx")


@dataclass(frozen=True, kw_only=True)
class Workbench:
    """All of one version, over one graph. `device` is its name, for people."""

    session: RowSession
    sampler: RowSampler
    score_session: ScoreSession
    device: str


class Workshop:
    """Opens graphs as the settings say, for caches of `capacity` tokens a row; `slots` says how many rows of so many
    bytes there may be.
    """

    def __init__(self, settings: InferenceSettings, *, capacity: int, slots: Callable[[int], int]) -> None:
        self._settings = settings
        self._capacity = capacity
        self._slots = slots

    def on_processor(self, path: Path, architecture: Architecture) -> Workbench:
        """A graph on the processor. Raises FailedPrecondition where it cannot be run, or no row fits."""
        graph = self._open(path, architecture)
        slots = self._slots(graph.row_size_bytes(self._capacity))
        cache = graph.new_cache(slots=slots, capacity=self._capacity)
        prompts = prompt_path(path)
        reading = self._open(prompts, architecture) if prompts.is_file() else graph
        reader = None
        if reading is not graph:
            scales = read_scales(path.with_name(f"{path.name}.data"), cache.tensors)
            # A group's prompts fit a chunk; padding adds a token to each.
            reader = PromptReader(reading, cache, scales, run_tokens=self._settings.chunk_tokens * 2)
        return Workbench(
            session=Session(graph, cache, reader),
            sampler=Sampler(slots=slots, capacity=self._capacity),
            score_session=self._score_session(partial(TextReader, reading)),
            device="cpu",
        )

    def _open(self, path: Path, architecture: Architecture) -> ServedGraph:
        # With more threads than heads the attention kernel splits a row among threads, in another way when a batch
        # has more rows: a sequence's bits would depend on its company.
        threads = min(self._settings.thread_count, architecture.heads)
        return ServedGraph(path, architecture, threads=threads, spin_us=self._settings.spin_us)

    def on_device(self, path: Path, architecture: Architecture, device: Device) -> Workbench:
        """A graph in a device's memory. Raises FailedPrecondition where it cannot be run there, or no row fits."""
        kernels = ATTENTION_KERNELS[self._settings.device_attention]
        graph = DeviceGraph(path, architecture, device, attention_kernels=kernels)
        slots = self._slots(graph.row_size_bytes(self._capacity))
        session = DeviceSession(
            graph,
            graph.new_cache(slots=slots, capacity=self._capacity),
            is_invariant=self._settings.device_invariant,
            ahead=self._settings.device_ahead,
        )
        return Workbench(
            session=session,
            sampler=DeviceSampler(session, Sampler(slots=slots, capacity=self._capacity)),
            score_session=self._score_session(partial(DeviceReader, graph)),
            device=device.name,
        )

    def _score_session(self, open_reader: Callable[..., RunReader]) -> ScoreSession:
        return ScoreSession(open_reader, capacity=self._capacity, chunk_tokens=self._settings.chunk_tokens)
