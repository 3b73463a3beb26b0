"""A graph on a device with a cache of its own, for scores and embeddings: their answers all come to the host."""

import numpy as np

from services.inference.device_graph import DeviceGraph
from services.inference.score_session import Floats, TextRun
from services.inference.served_graph import bind_output


class DeviceReader:
    """As TextReader: a graph and a cache of one row of `capacity` tokens."""

    def __init__(self, graph: DeviceGraph, *, capacity: int) -> None:
        self.architecture = graph.architecture
        self._graph = graph
        self._cache = graph.new_cache(slots=1, capacity=capacity)

    def read(self, run: TextRun, logits: Floats, hidden: Floats) -> None:
        """Computes the answers of a run into `logits` and `hidden`."""
        rows, width = run.token_ids.shape
        binding = self._graph.runs.binding()
        self._graph.bind_prompt(binding, run.token_ids, run.lengths, run.start)
        binding.bind_cpu_input("answered", run.answered @ np.array([width, 1]))
        bind_output(binding, "logits", logits)
        bind_output(binding, "hidden", hidden)
        for name, tensor in self._cache.tensors.items():
            _, heads, capacity, head_size = tensor.shape
            shape = (rows, heads, run.padded or capacity, head_size)
            tensor.bind_input(binding, f"past_{name}", shape=shape)
            tensor.bind_output(binding, f"present_{name}", shape=shape)
        self._graph.runs.run(binding)
