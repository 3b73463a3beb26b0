"""One training run as an object: `step(n)` is a function of its state and n alone, so a resumed run is bit-identical.

Batches come from (seed, step), dropout from (seed, step, microbatch), rates from the step: no random state is kept.
Knows nothing of files, events or processes; the worker drives it.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from octavo.errors import FailedPrecondition, InvalidArgument
from octavo.formats.architecture import Architecture
from octavo.v1 import trainer_pb2 as pb
from octavo.v1.errors_pb2 import Reason
from services.trainer import evaluation, schedule, vitals
from services.trainer.batches import Batches, BatchSource
from services.trainer.model import Dropout, Transformer
from services.trainer.optimizer import Matrix, Optimizer, Rates
from services.trainer.packed_batches import PackedBatches, Packs
from services.trainer.token_rows import Examples
from services.trainer.vitals import Vitals

# Word of the key of every dropout stream.
_DROPOUT_STREAM = 2
_CALIBRATION_WARMUP_STEPS = 3


def configure_torch(*, threads: int) -> None:
    """Set what torch keeps per process: threads, and kernels that give the same bits each time."""
    torch.set_num_threads(threads)
    if torch.cuda.is_available():
        torch.use_deterministic_algorithms(True)


class Diverged(FailedPrecondition):
    """A loss or a gradient that is not finite; the weights are as before the step."""

    def __init__(self, step: int, loss: float, gradient_norm: float) -> None:
        super().__init__(
            Reason.REASON_TRAINING_DIVERGED,
            f"the loss of step {step} is {loss:g} and the norm of its gradient {gradient_norm:g}, which is not finite; "
            f"the weights are those of step {step - 1}. Fork the job from an earlier checkpoint with half of "
            "optimizer.matrix_learning_rate and optimizer.learning_rate, or set optimizer.gradient_clip to 1",
            step=step,
            loss=loss,
        )
        self.step = step
        self.loss = loss
        self.gradient_norm = gradient_norm

    def after_rollbacks(self, count: int, factor: float) -> FailedPrecondition:
        """The error where lower rates did not help: `count` times, down to `factor` of those planned."""
        return FailedPrecondition(
            self.reason,
            f"step {self.step} is not finite, with {factor:g} of the planned learning rates, after {count} rollbacks. "
            "Lower optimizer.matrix_learning_rate and optimizer.learning_rate tenfold, set optimizer.gradient_clip to "
            "1, and look at the text: ReadRows shows what is learnt from",
            step=self.step,
            loss=self.loss,
            rollbacks=count,
        )


class Training:
    """A model in training, its optimizer and its data. Steps count from 1.

    `learning_rate_factor` multiplies both peak rates and `microbatch_size` is how many sequences one pass takes;
    both may change at a step boundary. `is_whole` is False while an update is half applied: where memory runs out in
    the middle of one, the state is that of no step.
    """

    def __init__(
        self,
        spec: pb.TrainSpec,
        architecture: Architecture,
        *,
        training_tokens: npt.NDArray[np.integer[Any]] | Examples | BatchSource,
        validation_tokens: npt.NDArray[np.integer[Any]] | Examples,
        validation_bytes: int,
        base_weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        """`spec` is resolved: every field set, `steps` included. `base_weights` start a fine-tuning.

        A text is an array of tokens, rows are examples; batches that are made already are taken as they are.
        `validation_bytes` is the text of the validation tokens that bear loss, in UTF-8.
        """
        self.spec = spec
        self.learning_rate_factor = 1.0
        self.microbatch_size = spec.microbatch_size
        self.is_whole = True
        self._base_weights = base_weights
        self._device = torch.device(spec.device or "cpu")
        self._dtype = torch.bfloat16 if spec.precision == pb.TRAINING_PRECISION_BF16 else torch.float32
        self._validation_tokens = validation_tokens
        self._validation_bytes = validation_bytes
        self._batches = _batches(spec, training_tokens, architecture.context_length)
        self.model = Transformer(architecture)
        self.model.initialize(spec.seed)
        if base_weights is not None:
            self.model.load_weights(base_weights)
        self.model.to(self._device)
        self._parameters = dict(self.model.named_parameters())
        self._optimizer = _optimizer(self.model, spec.optimizer, self._dtype)
        self._average = {n: p.detach().clone() for n, p in self._parameters.items()} if spec.ema_decay else {}

    @property
    def tokens_per_step(self) -> int:
        return self.spec.batch_size * self.model.architecture.context_length

    def step(self, step: int) -> pb.TrainingMetric:
        """Do optimizer step `step`: its loss is that of its batch before the update.

        Diverged, with the weights as before the step, when its loss or its gradient is not finite.
        """
        start = time.perf_counter()
        rates = self.rates(step)
        for parameter in self._parameters.values():
            parameter.grad = None
        total, target_count = self._gradients(step)
        gradients: list[Tensor] = [p.grad for p in self._parameters.values() if p.grad is not None]
        norms = torch._foreach_norm(gradients)
        norm = torch.linalg.vector_norm(torch.stack(norms))
        # The one time that the host waits for the device.
        total_loss, gradient_norm = torch.stack((total, norm)).tolist()
        loss = total_loss / target_count
        if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
            raise Diverged(step, loss, gradient_norm)
        if 0 < self.spec.optimizer.gradient_clip < gradient_norm:
            torch._foreach_mul_(gradients, self.spec.optimizer.gradient_clip / gradient_norm)
        signs = Vitals(self._parameters, norms) if vitals.is_due(step) else None
        self.is_whole = False
        self._optimizer.step(rates)
        if self._average:
            torch._foreach_lerp_(
                list(self._average.values()),
                [p.detach() for p in self._parameters.values()],
                1.0 - self.spec.ema_decay,
            )
        self.is_whole = True
        metric = pb.TrainingMetric(
            step=step,
            tokens=step * self.tokens_per_step,
            loss=loss,
            gradient_norm=gradient_norm,
            learning_rate=rates.learning_rate,
            matrix_learning_rate=rates.matrix_learning_rate,
        )
        if signs is not None:
            metric.parts.extend(signs.read())
            metric.update_ratio = vitals.update_ratio(metric.parts)
        elapsed_s = time.perf_counter() - start
        metric.step_duration.FromNanoseconds(int(elapsed_s * 1e9))
        metric.tokens_per_second = self.tokens_per_step / elapsed_s
        return metric

    def rates(self, step: int) -> Rates:
        """Learning rates and momentum of a step."""
        optimizer, shape = self.spec.optimizer, self.spec.schedule
        factor = self.learning_rate_factor * schedule.learning_rate_scale(
            step,
            total_steps=self.spec.steps,
            warmup_steps=shape.warmup_steps,
            cooldown_fraction=shape.cooldown_fraction,
            final_fraction=shape.final_fraction,
        )
        return Rates(
            matrix_learning_rate=optimizer.matrix_learning_rate * factor,
            learning_rate=optimizer.learning_rate * factor,
            momentum=schedule.momentum(step, peak=optimizer.momentum),
            weight_decay=optimizer.weight_decay,
        )

    def _gradients(self, step: int) -> tuple[Tensor, int]:
        """Add up the gradients of the mean loss over all targets of the batch; the sum of the losses, and how many."""
        batch = self._batches.batch(step).to(self._device)
        total = torch.zeros((), device=self._device)
        for index, (tokens, targets, positions) in enumerate(batch.split(self.microbatch_size)):
            dropout = self._dropout(step, index)
            loss = self.model.loss(tokens, targets, positions=positions, dtype=self._dtype, dropout=dropout)
            # Divided by the targets of the whole batch: the same gradient however the batch is split.
            (loss / batch.target_count).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total, batch.target_count

    def _dropout(self, step: int, microbatch: int) -> Dropout | None:
        if not self.spec.dropout:
            return None
        key = np.random.SeedSequence((self.spec.seed & (1 << 64) - 1, _DROPOUT_STREAM, step, microbatch))
        generator = torch.Generator(self._device).manual_seed(int(key.generate_state(1, np.uint64)[0] >> 1))
        return Dropout(self.spec.dropout, generator)

    def measure_step_s(self, *, at_least_s: float = 1.0) -> float:
        """Median duration of a step on this machine now, seconds. Leaves the run exactly as it was.

        Takes `at_least_s` or two steps, whichever is longer; the first steps, which build kernels, do not count.
        """
        state = self.state_dict()
        durations: list[float] = []
        first = time.perf_counter()
        while len(durations) < 2 or time.perf_counter() - first < at_least_s:
            start = time.perf_counter()
            self.step(len(durations) + 1)
            durations.append(time.perf_counter() - start)
        self.load_state_dict(state)
        return statistics.median(durations[min(_CALIBRATION_WARMUP_STEPS, len(durations) - 1) :])

    def evaluate(self, step: int, *, dtype: torch.dtype | None = None) -> pb.Evaluation:
        """Measure the weights that would be exported now on the whole validation part.

        `dtype` is what the products are computed in; None computes as training does.
        """
        with self._exported_weights():
            result = evaluation.evaluate(
                self.model,
                self._validation_tokens,
                text_bytes=self._validation_bytes,
                dtype=self._dtype if dtype is None else dtype,
            )
        result.step = step
        return result

    @torch.inference_mode()
    def sample(
        self, prompt: list[int], *, max_tokens: int, temperature: float, seed: int, end_id: int | None = None
    ) -> list[int]:
        """Token ids that go on from `prompt`, at least one id; temperature 0 takes the likeliest each time.

        Ends before `end_id`.
        """
        generator = torch.Generator().manual_seed(seed & (1 << 63) - 1)
        context = self.model.architecture.context_length
        ids = list(prompt)
        with self._exported_weights():
            for _ in range(max_tokens):
                logits = self._next_logits(ids[-context:])
                if temperature == 0:
                    chosen = int(logits.argmax())
                else:
                    probabilities = (logits / temperature).softmax(-1)
                    chosen = int(torch.multinomial(probabilities, 1, generator=generator))
                if chosen == end_id:
                    break
                ids.append(chosen)
        return ids[len(prompt) :]

    def _next_logits(self, window: list[int]) -> Tensor:
        # Padded to few distinct lengths: oneDNN builds a kernel for each new shape, which costs more than the pad.
        length = min(self.model.architecture.context_length, math.ceil(len(window) / 64) * 64)
        padded = torch.tensor([window + [0] * (length - len(window))], device=self._device)
        logits: Tensor = self.model(padded, dtype=self._dtype)[0, len(window) - 1]
        return logits.float().cpu()

    def weights(self) -> dict[str, Tensor]:
        """The weights to export, averaged if the spec says so: Hugging Face names, fp32, on the CPU, copies."""
        with self._exported_weights():
            return self.model.weights()

    def _exported_weights(self) -> _Swapped:
        return _Swapped(self._parameters, self._average)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, beside the spec and the step: copies on the CPU."""
        return {name: tensor.detach().cpu().clone() for name, tensor in self._state().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over a `state_dict`; InvalidArgument, with nothing changed, where it is of another run."""
        own = self._state()
        wrong = dict.fromkeys(own.keys() - state.keys(), "is missing from the checkpoint")
        wrong |= dict.fromkeys(state.keys() - own.keys(), "is not part of this run's state")
        for name in own.keys() & state.keys():
            has, needs = list(state[name].shape), list(own[name].shape)
            if has != needs:
                wrong[name] = f"has shape {has}, not {needs}"
        if wrong:
            raise InvalidArgument.fields(wrong)
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(state[name])
        self.is_whole = True

    def restart(self) -> None:
        """Go back to before the first step."""
        self.model.initialize(self.spec.seed)
        if self._base_weights is not None:
            self.model.load_weights(self._base_weights)
        with torch.no_grad():
            for tensor in self._optimizer.state().values():
                tensor.zero_()
            for name, tensor in self._average.items():
                tensor.copy_(self._parameters[name])
        self.is_whole = True

    def free_gradients(self) -> None:
        """Let go of what an interrupted step has taken."""
        for parameter in self._parameters.values():
            parameter.grad = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _state(self) -> dict[str, Tensor]:
        return (
            {f"model.{name}": parameter for name, parameter in self._parameters.items()}
            | {f"average.{name}": tensor for name, tensor in self._average.items()}
            | {f"optimizer.{name}": tensor for name, tensor in self._optimizer.state().items()}
        )


class _Swapped:
    """Puts averaged weights in the place of the trained ones for the length of a `with` block."""

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter], average: Mapping[str, Tensor]) -> None:
        self._pairs = [(parameters[name], tensor) for name, tensor in average.items()]

    def __enter__(self) -> None:
        self._trained: list[Tensor] = [parameter.data for parameter, _ in self._pairs]
        for parameter, tensor in self._pairs:
            parameter.data = tensor

    def __exit__(self, *exception: object) -> None:
        for (parameter, _), data in zip(self._pairs, self._trained, strict=True):
            parameter.data = data


def _batches(
    spec: pb.TrainSpec, data: npt.NDArray[np.integer[Any]] | Examples | BatchSource, context_length: int
) -> BatchSource:
    if isinstance(data, np.ndarray):
        return Batches(data, context_length=context_length, batch_size=spec.batch_size, seed=spec.seed)
    if not isinstance(data, Examples):
        return data
    packs = Packs(data, context_length=context_length, seed=spec.seed, is_packing=spec.data.packing)
    return PackedBatches(packs, batch_size=spec.batch_size, seed=spec.seed)


def _optimizer(model: Transformer, spec: pb.OptimizerSpec, dtype: torch.dtype) -> Optimizer:
    packed = model.packed_rows()
    parameters = dict(model.named_parameters())
    return Optimizer(
        [Matrix(name, parameters[name], rows) for name, rows in packed.items()],
        {name: p for name, p in parameters.items() if name not in packed},
        betas=(spec.beta1, spec.beta2),
        dtype=dtype,
    )
