"""The sampler's arithmetic as an ONNX graph, for a device that holds the logits.

  inputs   logits float32 [rows, vocab]
           draw float64 [rows, ahead], turn int64 [1]        numbers in [0, 1), and which of them is next
           is_greedy bool [rows, 1]
           sharpness float32 [rows, 1]                       1 / temperature
           top_k float32 [rows, 1], 0 for none; min_p float32 [rows, 1]; top_p float64 [rows, 1]
           lengths int32 [rows], strides int32 [rows]        positions before the next token, and what is added to them
  outputs  chosen int64 [rows]                               a token; NOT_A_NUMBER, or UNDECIDED
           next_token_ids, next_positions int64 [rows, 1], next_lengths int32 [rows], next_turn int64 [1]

The same operations in the same order as sampler.py, but for three roundings: exp is the device's own, sums in float64
are added up in another order, and what is drawn is found in two steps, first a block of the vocabulary and then a
token in it. Only operators that a capture may hold: no CumSum over a vocabulary either, whose kernel on CUDA adds up
each element's predecessors anew.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

NOT_A_NUMBER = -1
"""Logits of a row are not numbers."""
UNDECIDED = -2
"""A row's `top_p` needs more than the candidates."""
CANDIDATES = 256
"""The most that `top_k` may be here, and that `top_p` looks at."""
BLOCK = 256
"""Tokens that are added up together."""
Described = dict[str, tuple[int, Sequence[str | int]]]
FORMS = ("greedy", "plain", "cut")
"""All rows greedy; some with a temperature or `min_p`; some with `top_k` or `top_p`."""


def sampling_graph(form: str, vocab_size: int) -> onnx.ModelProto:
    """The graph of one of FORMS."""
    return _SamplingGraph(form, vocab_size).model()


class _SamplingGraph:
    def __init__(self, form: str, vocab_size: int) -> None:
        self._form = form
        self._vocab = vocab_size
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._number_drawn = ""

    def model(self) -> onnx.ModelProto:
        best = self._reduced("ReduceMax", "logits")
        token = self._greedy(best)
        if self._form != "greedy":
            drawn, is_undecided = self._drawn(best)
            token = self._node("Where", "is_greedy", token, drawn)
            if is_undecided:
                drawing = self._node("Not", "is_greedy")
                token = self._chosen(self._node("And", is_undecided, drawing), UNDECIDED, token)
        is_nan = self._any(self._node("IsNaN", "logits"))
        token = self._cast(self._chosen(is_nan, NOT_A_NUMBER, token), TensorProto.INT64)
        self._node("Squeeze", token, self._index("axis", [1]), to="chosen")
        self._node("Max", token, self._index("zero", [0]), to="next_token_ids")
        self._step()
        graph = helper.make_graph(
            self._nodes, f"sampling.{self._form}", self._inputs(), self._outputs(), list(self._constants.values())
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)

    def _greedy(self, best: str) -> str:
        """The first of the most probable tokens, float32 [rows, 1]; ties are frequent in 16 bits."""
        return self._first(self._node("Equal", "logits", best), self._vocab)

    def _drawn(self, best: str) -> tuple[str, str]:
        """A drawn token, float32 [rows, 1], and whether it is undecided, bool [rows, 1] or empty where it never is."""
        scaled = self._node("Mul", self._node("Sub", "logits", best), "sharpness")
        if self._form == "plain":
            return self._draw(self._above_min_p(self._node("Exp", scaled))), ""
        top = self._top(scaled)
        least = self._kth(top)
        weights = self._above_min_p(self._node("Exp", self._excluded(scaled, least)))
        candidates = self._above_min_p(self._node("Exp", self._excluded(top, least)))
        least, is_undecided = self._nucleus(weights, candidates)
        return self._draw(self._zeroed(weights, least)), is_undecided

    # What excludes tokens.

    def _top(self, scaled: str) -> str:
        """The largest, in descending order."""
        count = self._index("candidates", [min(CANDIDATES, self._vocab)])
        self._nodes.append(helper.make_node("TopK", [scaled, count], ["top", "top.places"], name="top", axis=1))
        return "top"

    def _kth(self, top: str) -> str:
        """A row's k-th largest; minus infinity where it has no k."""
        is_kept = self._node("Less", self._iota(min(CANDIDATES, self._vocab)), "top_k")
        kth = self._reduced("ReduceMin", self._node("Where", is_kept, top, self._number("infinity", np.inf)))
        has_k = self._node("Greater", "top_k", self._number("none", 0))
        return self._node("Where", has_k, kth, self._number("minus_infinity", -np.inf))

    def _excluded(self, scaled: str, least: str) -> str:
        is_small = self._node("Less", scaled, least)
        return self._node("Where", is_small, self._number("minus_infinity", -np.inf), scaled)

    def _above_min_p(self, weights: str) -> str:
        return self._zeroed(weights, "min_p")

    def _zeroed(self, weights: str, least: str) -> str:
        return self._node("Where", self._node("Less", weights, least), self._number("none", 0), weights)

    def _nucleus(self, weights: str, candidates: str) -> tuple[str, str]:
        """The least weight that the share `top_p` needs, 0 where none is asked for, and whether it lies beyond them."""
        is_open = self._node("Less", "top_p", self._number("all", 1, np.float64))
        mass = self._reduced("ReduceSum", self._cast(weights, TensorProto.DOUBLE))
        reached = self._running_sum(self._cast(candidates, TensorProto.DOUBLE))
        has_share = self._node("GreaterOrEqual", reached, self._node("Mul", "top_p", mass))
        # They descend, so that the largest of those at which the share is reached is the first.
        least = self._reduced("ReduceMax", self._node("Where", has_share, candidates, self._number("none", 0)))
        least = self._node("Where", is_open, least, self._number("none", 0))
        if self._vocab <= CANDIDATES:
            return least, ""
        return least, self._node("And", is_open, self._node("Not", self._any(has_share)))

    # The draw.

    def _draw(self, weights: str) -> str:
        """The token at a random place of the weights' sum, float32 [rows, 1]: first its block, then itself."""
        count = -(-self._vocab // BLOCK)
        padding = self._index("padding", [0, 0, 0, count * BLOCK - self._vocab])
        padded = self._node("Pad", weights, padding, self._number("nothing", 0, shape=()))
        exact = self._cast(padded, TensorProto.DOUBLE)
        blocks = self._node("Reshape", exact, self._index("blocks.shape", [-1, count, BLOCK]))
        upto = self._running_sum(self._reduced("ReduceSum", blocks, axis=2, keepdims=0))
        self._number_drawn = self._node("Gather", "draw", "turn", axis=1)
        aim = self._node("Mul", self._number_drawn, self._reduced("ReduceMax", upto))
        is_beyond = self._node("Greater", upto, aim)
        block = self._first(is_beyond, count)
        before = self._reduced("ReduceMax", self._node("Where", is_beyond, self._number("nil", 0, np.float64), upto))
        inside = self._inside(blocks, block, count)
        within = self._node("Add", self._running_sum(inside), before)
        place = self._first(self._node("Greater", within, aim), BLOCK)
        # The two sums round differently: where the second falls short of the aim, its last weight is meant.
        has_weight = self._node("Greater", inside, self._number("nil", 0, np.float64))
        last = self._reduced("ReduceMax", self._node("Where", has_weight, self._iota(BLOCK), self._number("none", 0)))
        start = self._node("Mul", block, self._number("block", BLOCK))
        return self._node("Add", start, self._node("Min", place, last))

    def _inside(self, blocks: str, block: str, count: int) -> str:
        """The weights [rows, BLOCK] of one block of each row."""
        chosen = self._node("Equal", self._iota(count), block)
        chosen = self._node("Unsqueeze", chosen, self._index("last", [2]))
        kept = self._node("Where", chosen, blocks, self._number("nil", 0, np.float64))
        return self._reduced("ReduceSum", kept, axis=1, keepdims=0)

    def _step(self) -> None:
        """What the next run of the model reads."""
        self._node("Add", "lengths", "strides", to="next_lengths")
        positions = self._cast("next_lengths", TensorProto.INT64)
        self._node("Unsqueeze", positions, self._index("axis", [1]), to="next_positions")
        self._node("Add", "turn", self._one(), to="next_turn")

    def _one(self) -> str:
        """1, but not before the draw has been made: the next turn may be written over this one."""
        if not self._number_drawn:
            return self._index("one", [1])
        drawn = self._node("ReduceMax", self._number_drawn, keepdims=0)
        nothing = self._node("Mul", drawn, self._number("nil", 0, np.float64))
        return self._cast(self._node("Add", nothing, self._number("unit", 1, np.float64)), TensorProto.INT64)

    # The pieces.

    def _node(self, operator: str, *inputs: str, to: str = "", **attributes: Any) -> str:
        name = to or f"{operator.lower()}.{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        return name

    def _constant(self, name: str, value: NDArray[Any]) -> str:
        self._constants[name] = numpy_helper.from_array(value, name)
        return name

    def _number(self, name: str, value: float, dtype: type[Any] = np.float32, shape: tuple[int, ...] = (1,)) -> str:
        return self._constant(name, np.full(shape, value, dtype))

    def _index(self, name: str, values: list[int]) -> str:
        return self._constant(name, np.array(values, np.int64))

    def _iota(self, count: int) -> str:
        """0, 1, 2… as float32 [1, count], which is exact below 2**24."""
        return self._constant(f"iota.{count}", np.arange(count, dtype=np.float32)[None])

    def _cast(self, x: str, element_type: int) -> str:
        name = f"cast.{len(self._nodes)}"
        self._nodes.append(helper.make_node("Cast", [x], [name], name=name, to=element_type))
        return name

    def _reduced(self, operator: str, x: str, axis: int = 1, keepdims: int = 1) -> str:
        return self._node(operator, x, self._index(f"axis.{axis}", [axis]), keepdims=keepdims)

    def _running_sum(self, x: str) -> str:
        return self._node("CumSum", x, self._constant("along", np.array(1, np.int64)))

    def _first(self, condition: str, count: int) -> str:
        """The first place of [rows, count] where something holds, float32 [rows, 1]; `count` where it never does."""
        places = self._node("Where", condition, self._iota(count), self._number(f"past.{count}", count))
        return self._reduced("ReduceMin", places)

    def _any(self, condition: str) -> str:
        """Whether something holds anywhere in a row, bool [rows, 1]."""
        truth = self._reduced("ReduceMax", self._cast(condition, TensorProto.FLOAT))
        return self._node("Greater", truth, self._number("none", 0))

    def _chosen(self, condition: str, value: int, otherwise: str) -> str:
        return self._node("Where", condition, self._number(f"value.{value}", value), otherwise)

    # The contract.

    def _inputs(self) -> list[onnx.ValueInfoProto]:
        described: Described = {"logits": (TensorProto.FLOAT, ["rows", self._vocab])}
        if self._form != "greedy":
            described |= {"draw": (TensorProto.DOUBLE, ["rows", "ahead"]), "is_greedy": (TensorProto.BOOL, ["rows", 1])}
            described |= {name: (TensorProto.FLOAT, ["rows", 1]) for name in ("sharpness", "min_p")}
        if self._form == "cut":
            described |= {"top_k": (TensorProto.FLOAT, ["rows", 1]), "top_p": (TensorProto.DOUBLE, ["rows", 1])}
        described |= {name: (TensorProto.INT32, ["rows"]) for name in ("lengths", "strides")}
        described["turn"] = (TensorProto.INT64, [1])
        return [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in described.items()]

    def _outputs(self) -> list[onnx.ValueInfoProto]:
        described: Described = {
            "chosen": (TensorProto.INT64, ["rows"]),
            "next_token_ids": (TensorProto.INT64, ["rows", 1]),
            "next_positions": (TensorProto.INT64, ["rows", 1]),
            "next_lengths": (TensorProto.INT32, ["rows"]),
            "next_turn": (TensorProto.INT64, [1]),
        }
        return [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in described.items()]
