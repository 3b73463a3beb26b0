"""Runs of one session on a device: eager, or captured once and replayed from then on.

The runtime captures at the second run of a number, and again for each thread that runs it. What the host held then is
frozen: all that changes has to lie in the device's memory, and a number must have the same binding each time.
"""

from itertools import count

import onnxruntime as ort

from services.inference.device import Device

EAGER = -1
"""The number of a run that is neither captured nor replayed; others count from 1."""


class Replayer:
    """A session and its device. May be used by several threads, which take turns."""

    def __init__(self, session: ort.InferenceSession, device: Device) -> None:
        self._session = session
        self._device = device
        self._options: dict[tuple[int, bool], ort.RunOptions] = {}
        self._numbers = count(1)

    def new_number(self) -> int:
        """A number that no binding has yet."""
        return next(self._numbers)

    def binding(self) -> ort.IOBinding:
        """An empty set of inputs and outputs."""
        return self._session.io_binding()

    def run(self, binding: ort.IOBinding, number: int = EAGER, *, waits: bool = True) -> None:
        """Computes the bound outputs; without `waits` they are there after `finish`.

        Raises the runtime's own classes.
        """
        with self._device.turn:
            self._session.run_with_iobinding(binding, self._options_of(number, waits))

    def finish(self, binding: ort.IOBinding) -> None:
        """Waits until the outputs of its last run are there."""
        with self._device.turn:
            binding.synchronize_outputs()

    def _options_of(self, number: int, waits: bool) -> ort.RunOptions | None:
        if not self._device.replays:
            return None
        if (number, waits) not in self._options:
            options = ort.RunOptions()
            options.add_run_config_entry("gpu_graph_id", str(number))
            if not waits:
                options.add_run_config_entry("disable_synchronize_execution_providers", "1")
            self._options[number, waits] = options
        return self._options[number, waits]
