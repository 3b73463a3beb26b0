"""What a model's activations and caches are on real text: the fp32 graph run over windows of it, with every linear
layer's input looked at. Static scales come from here.

Knows graphs; nothing of how scales are chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto

from octavo.formats.architecture import Architecture
from octavo.formats.bundle import CONFIG_FILE, read_json
from octavo.formats.manifest import WEIGHTS_FILE
from octavo.formats.tensor_file import read_header
from services.trainer.arithmetic import Arithmetic
from services.trainer.graph_nodes import GraphNodes, shaped, tensors_of
from services.trainer.graph_session import open_graph
from services.trainer.onnx_export import build_graph_of
from services.trainer.quantization import Floats
from services.trainer.smoothing import Site, sites

# Rows of each activation that are kept, as many as fit this memory together: 2048 for a character model, 1024 for a
# GPT-2 of 124 M parameters. Rounding in turn needs about as many as an activation has channels.
SAMPLED_BYTES: Final = 256 << 20
_ROWS: Final = (512, 2048)
_CACHE_ROWS: Final = 2048


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One activation: `rows` [n, channels] of it, picked evenly, and the mean square of each channel over all."""

    rows: Floats
    mean_squares: Floats


@dataclass(frozen=True, kw_only=True)
class Activations:
    """By site, and by layer: what its cache held, `keys` and `values` [kv_heads, n, head_size]."""

    by_site: dict[str, Seen]
    keys: tuple[Floats, ...]
    values: tuple[Floats, ...]


def observe(bundle: Path, windows: Sequence[npt.NDArray[np.int64]], *, threads: int = 1) -> Activations:
    """Run the fp32 graph of `bundle` over `windows` of token ids, none longer than the context."""
    a = Architecture.from_config(read_json(bundle / CONFIG_FILE))
    graph = _ObservedGraph(a, bundle, threads)
    total = sum(map(len, windows))
    gathered = {site.name: _Gathered(max(1, total // _sample_rows(a))) for site in sites(a)}
    caches: dict[str, list[Floats]] = {name: [] for name in graph.cache_names}
    stride = max(1, total // _CACHE_ROWS)
    for window in windows:
        found = graph.run(window)
        for name, gathering in gathered.items():
            gathering.add(found[name])
        for name in graph.cache_names:
            caches[name].append(found[name][0, :, ::stride].copy())
    return Activations(
        by_site={name: gathering.result() for name, gathering in gathered.items()},
        keys=tuple(np.concatenate(caches[f"present_key.{layer}"], axis=1) for layer in range(a.layers)),
        values=tuple(np.concatenate(caches[f"present_value.{layer}"], axis=1) for layer in range(a.layers)),
    )


class _Observing(Arithmetic):
    """fp32 that notes what each linear layer reads."""

    def __init__(self) -> None:
        self.inputs: dict[str, str] = {}

    def linear(
        self, nodes: GraphNodes, x: str, names: Sequence[str], result: str, *, is_turned: bool, bias: str = ""
    ) -> list[str]:
        for name in names:
            self.inputs[name + ".weight"] = x
        return super().linear(nodes, x, names, result, is_turned=is_turned, bias=bias)

    def head(self, nodes: GraphNodes, hidden: str, name: str) -> str:
        self.inputs["head"] = hidden
        return super().head(nodes, hidden, name)


class _ObservedGraph:
    """The fp32 graph with more outputs."""

    def __init__(self, a: Architecture, bundle: Path, threads: int) -> None:
        self._a = a
        arithmetic = _Observing()
        model = build_graph_of(a, tensors_of(WEIGHTS_FILE, read_header(bundle / WEIGHTS_FILE).tensors), arithmetic)
        self._tensor_of = {site.name: _read_by(arithmetic, site) for site in sites(a)}
        self.cache_names = [f"present_{part}.{layer}" for layer in range(a.layers) for part in ("key", "value")]
        declared = {value.name for value in model.graph.output}
        for name in sorted(set(self._tensor_of.values()) - declared):
            model.graph.output.append(onnx.ValueInfoProto(name=name, type=shaped(name, TensorProto.FLOAT, []).type))
            model.graph.output[-1].type.tensor_type.ClearField("shape")
        self._session = open_graph(model.SerializeToString(), threads=threads, folder=bundle)
        self._inputs = {value.name for value in self._session.get_inputs()}

    def run(self, ids: npt.NDArray[np.int64]) -> dict[str, Floats]:
        """Each site's activation [tokens, channels] and each cache [1, kv_heads, tokens, head_size]."""
        count = len(ids)
        places = np.arange(count, dtype=np.int64)
        cache = np.zeros((1, self._a.kv_heads, count, self._a.head_size), np.float32)
        feeds: dict[str, npt.NDArray[Any]] = {
            "input_ids": ids[None],
            "position_ids": places[None],
            "seqlens_k": np.array([count - 1], np.int32),
            "total_sequence_length": np.array(count, np.int32),
            "answered": np.stack([np.zeros_like(places), places], axis=1),
        }
        feeds |= {name.replace("present", "past"): cache for name in self.cache_names}
        asked = sorted(set(self._tensor_of.values())) + self.cache_names
        found = dict(
            zip(asked, self._session.run(asked, {n: x for n, x in feeds.items() if n in self._inputs}), strict=True)
        )
        by_site = {site: found[name].reshape(count, -1) for site, name in self._tensor_of.items()}
        return by_site | {name: found[name] for name in self.cache_names}


class _Gathered:
    """One activation while it is being gathered; of its rows each `stride`-th is kept."""

    def __init__(self, stride: int) -> None:
        self._stride = stride
        self._rows: list[Floats] = []
        self._squares: npt.NDArray[np.float64] = np.zeros(1)
        self._count = 0

    def add(self, rows: Floats) -> None:
        self._rows.append(rows[-self._count % self._stride :: self._stride].copy())
        self._squares = self._squares + np.square(rows, dtype=np.float64).sum(axis=0)
        self._count += len(rows)

    def result(self) -> Seen:
        return Seen(rows=np.concatenate(self._rows), mean_squares=(self._squares / self._count).astype(np.float32))


def _sample_rows(a: Architecture) -> int:
    widths = a.layers * (2 * a.width + a.attention_width + a.mlp_width) + a.width
    return int(np.clip(SAMPLED_BYTES // (4 * widths), *_ROWS))


def _read_by(arithmetic: _Observing, site: Site) -> str:
    return arithmetic.inputs["head" if site.name == "head" else site.weights[0]]
