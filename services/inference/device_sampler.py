"""Chooses the next tokens where the logits are: on the device, whose copies of the session's inputs it steps too.

The host gives it settings when rows change, and numbers of their streams in blocks; it takes back one token a row and
step. What the device cannot do is done by the host's sampler, for these rows alone: bent logits, and more candidates
than it looks at.
"""

from collections.abc import Sequence

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto

from services.inference.device import Device, open_session
from services.inference.device_array import DeviceArray
from services.inference.device_session import DeviceLogits, DeviceSession
from services.inference.penalties import Bender
from services.inference.replayer import Replayer
from services.inference.sampler import Floats, Rows, Sampler, Sampling
from services.inference.sampling_graph import CANDIDATES, FORMS, UNDECIDED, sampling_graph

AHEAD = 64
"""Numbers of each row's stream that the device is given at a time."""


class DeviceSampler:
    """As Sampler, which it keeps beside it, for the logits of one session."""

    def __init__(self, session: DeviceSession, sampler: Sampler) -> None:
        self._session = session
        self._host = sampler
        device, slots = session.cache.device, session.cache.slots
        self._runs = {form: _opened(form, session.vocab_size, device) for form in FORMS}
        self._arrays = SettingArrays(device, slots)
        self._bindings: dict[tuple[str, int], ort.IOBinding] = {}
        self._settings = [Sampling(temperature=0)] * slots
        self._is_host = np.zeros(slots, bool)
        self._is_drawing = np.zeros(slots, bool)
        self._turn: int | None = None  # of AHEAD; None where the device has to be told anew

    def place(self, row: int, sampling: Sampling, count: int, benders: Sequence[Bender] = ()) -> None:
        """Makes `row` sample like this, for at most `count` tokens, its logits bent by `benders` one after another."""
        self._host.place(row, sampling, count, benders)
        self._settings[row] = sampling
        self._is_host[row] = bool(benders) or CANDIDATES < sampling.top_k < self._session.vocab_size
        self._is_drawing[row] = not sampling.is_greedy
        self._turn = None

    def move(self, source: int, target: int) -> None:
        """Makes row `target` what row `source` is."""
        self._host.move(source, target)
        for of_rows in (self._settings, self._is_host, self._is_drawing):
            of_rows[target] = of_rows[source]
        self._turn = None

    def sample(self, logits: Floats | DeviceLogits, first_row: int = 0) -> Rows:
        """The next token [n] of the rows from `first_row`, given their logits [n, vocab]; -1 where these are NaN."""
        if not isinstance(logits, DeviceLogits):
            self._turn = None
            return self._host.sample(logits, first_row)
        count = len(logits)
        chosen = self._choose(count)
        tokens = chosen.copy()
        is_host = self._is_host[:count] | (chosen == UNDECIDED)
        for row in np.flatnonzero(is_host).tolist():
            tokens[row] = self._host.sample(logits[row][None], row)[0]
        self._host.skip(np.flatnonzero(self._is_drawing[:count] & ~is_host))
        self._session.stepped(np.maximum(chosen, 0))
        return tokens

    def _choose(self, count: int) -> Rows:
        """What the device chooses for the rows from 0 on."""
        if self._turn is None or self._turn == AHEAD:
            self._arrays.write(self._settings, self._is_host, self._session.vocab_size, self._host.upcoming(AHEAD))
            self._turn = 0
        form, batch = self._form(count), self._session.batch(count)
        if (form, batch) not in self._bindings:
            self._bindings[form, batch] = self._bound(form, batch)
        self._runs[form].run(self._bindings[form, batch], self._session.number(count))
        self._turn += 1
        return self._arrays.chosen.read().view(np.int64)[:count, 0]

    def _form(self, count: int) -> str:
        drawing = [self._settings[row] for row in np.flatnonzero(self._is_drawing[:count] & ~self._is_host[:count])]
        if not drawing:
            return "greedy"
        vocab_size = self._session.vocab_size
        return "cut" if any(one.top_p < 1 or 0 < one.top_k < vocab_size for one in drawing) else "plain"

    def _bound(self, form: str, batch: int) -> ort.IOBinding:
        binding, rows, step, own = self._runs[form].binding(), slice(0, batch), self._session.arrays, self._arrays
        step.logits.bind_input(binding, "logits", rows)
        step.lengths.bind_input(binding, "lengths", rows)
        step.strides.bind_input(binding, "strides", rows)
        own.turn.bind_input(binding, "turn", slice(0, 1))
        if form != "greedy":
            for name in ("draw", "is_greedy", "sharpness", "min_p"):
                getattr(own, name).bind_input(binding, name, rows)
        if form == "cut":
            own.top_k.bind_input(binding, "top_k", rows)
            own.top_p.bind_input(binding, "top_p", rows)
        own.chosen.bind_output(binding, "chosen", rows)
        step.token_ids.bind_output(binding, "next_token_ids", rows)
        step.positions.bind_output(binding, "next_positions", rows)
        step.lengths.bind_output(binding, "next_lengths", rows)
        own.turn.bind_output(binding, "next_turn", slice(0, 1))
        return binding


class SettingArrays:
    """What the sampling graph reads and writes besides the session's arrays, row by row, in the device's memory."""

    def __init__(self, device: Device, slots: int) -> None:
        self.draw = DeviceArray(device, (slots, AHEAD), TensorProto.DOUBLE)
        self.is_greedy = DeviceArray(device, (slots, 1), TensorProto.BOOL)
        self.sharpness = DeviceArray(device, (slots, 1), TensorProto.FLOAT)
        self.min_p = DeviceArray(device, (slots, 1), TensorProto.FLOAT)
        self.top_k = DeviceArray(device, (slots, 1), TensorProto.FLOAT)
        self.top_p = DeviceArray(device, (slots, 1), TensorProto.DOUBLE)
        self.turn = DeviceArray(device, (1,), TensorProto.INT64)
        self.chosen = DeviceArray(device, (slots,), TensorProto.INT64)

    def write(
        self,
        settings: Sequence[Sampling],
        is_host: NDArray[np.bool_],
        vocab_size: int,
        draws: NDArray[np.float64],
    ) -> None:
        """Tells the device all rows' settings and the next numbers of their streams.

        For rows that are the host's it takes the most probable token, which costs least.
        """
        is_greedy = np.array([sampling.is_greedy for sampling in settings]) | is_host
        sharpness = [sampling.sharpness for sampling in settings]
        top_k = [sampling.top_k if sampling.top_k < vocab_size else 0 for sampling in settings]
        self.draw.write(draws)
        self.is_greedy.write(is_greedy)
        self.sharpness.write(np.array(sharpness, np.float32))
        self.min_p.write(np.array([sampling.min_p for sampling in settings], np.float32))
        self.top_k.write(np.where(is_host, 0, top_k).astype(np.float32))
        self.top_p.write(np.where(is_greedy, 1.0, [sampling.top_p for sampling in settings]))
        self.turn.write(np.zeros(1, np.int64))


def _opened(form: str, vocab_size: int, device: Device) -> Replayer:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_mem_pattern = False
    model = sampling_graph(form, vocab_size).SerializeToString()
    return Replayer(open_session(device, model, options, replays=device.replays), device)
