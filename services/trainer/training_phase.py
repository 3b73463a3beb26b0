"""Drives a Training from its newest checkpoint to its last step: events, evaluations, samples, checkpoints, commands.

A resumed run repeats the steps after its checkpoint. They are the same to the last bit, so what the job's events
already hold is not written again: each kind of event is written for a step at most once, in the order of steps. A
repeated step whose loss differs from the one in the events means another environment; that is said once, in the log.

A step that is not finite, or that memory does not suffice for, ends in a recovery: what the events say of later steps
than the one it goes back to no longer holds, and those steps are written anew.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterable

import numpy as np
import psutil
import torch

from octavo.errors import DataLoss, FailedPrecondition
from octavo.formats.checkpoint import Checkpoint, CheckpointEntry, CheckpointFolder
from octavo.v1 import trainer_pb2 as pb
from octavo.v1.errors_pb2 import Reason
from services.trainer import live_settings
from services.trainer.control import Control
from services.trainer.digests import history_after, history_of, state_digest
from services.trainer.events import EventLog, now
from services.trainer.history import valid
from services.trainer.loop import Diverged, Training
from services.trainer.memory_shortage import is_out_of_memory
from services.trainer.progress import ProgressReporter
from services.trainer.recovery import Recoveries, is_sound
from services.trainer.sampling import Prompter, sampling_seed
from services.trainer.stopping import early_stop, farewell


class TrainingPhase:
    """The training of one job in one worker. `past` are the job's events so far."""

    def __init__(
        self,
        training: Training,
        *,
        prompter: Prompter,
        folder: CheckpointFolder,
        log: EventLog,
        control: Control,
        past: Iterable[pb.JobEvent],
        first_step: int = 0,
        peak_flops: float = 0.0,
    ) -> None:
        """`first_step` is the step of the parent's checkpoint that a fork began with. `peak_flops` is what the machine
        can reach, per second; 0 where it is not known.
        """
        self._training = training
        self._planned = training.spec
        self._prompter = prompter
        self._prompts = prompter.prompts(training.spec.sample)
        self._live = pb.LiveSettings()
        self._folder = folder
        self._log = log
        self._control = control
        events = list(past)
        self._past = _Past(valid(events))
        self._recoveries = Recoveries(self._spec, [one.recovery for one in events if one.HasField("recovery")])
        self._process = psutil.Process()
        architecture = training.model.architecture
        self._step_flops = training.tokens_per_step * architecture.flops_per_token(is_training=True)
        self._first_step = first_step
        self._peak_flops = peak_flops
        self._update_ratio = 0.0
        self._said_deviation = False
        self._history = ""

    @property
    def best(self) -> pb.Evaluation | None:
        """The evaluation with the lowest validation loss."""
        return min(self._past.evaluations.values(), key=lambda one: (one.validation_loss, one.step), default=None)

    def evaluation(self, step: int) -> pb.Evaluation:
        """The evaluation that was made after `step`."""
        return self._past.evaluations[step]

    def run(self, start: Checkpoint | None, progress: ProgressReporter) -> int:
        """Train from `start` to the last step, which is evaluated and saved; returns it.

        Raises Leaving where it has to stop.
        """
        step = 0
        if start is not None:
            step = start.entry.step
            self.load(start)
        else:
            self._history = state_digest(self._training.state_dict())
        self._heed(step)
        while not self._is_over(step):
            recovery = self._advance(step + 1)
            if recovery is not None:
                step = self._go_back(recovery, progress)
                continue
            step += 1
            self._heed(step)
            progress.step(step, self._spec.steps, step * self._training.tokens_per_step)
        self._conclude(step, progress)
        return step

    @property
    def _spec(self) -> pb.TrainSpec:
        """The spec in force."""
        return self._training.spec

    def _is_over(self, step: int) -> bool:
        return step > 0 and (step >= self._spec.steps or self._early_stop(step) is not None)

    def _early_stop(self, step: int) -> pb.TrainingStop | None:
        return early_stop(step, self._spec, self._live, self._past.evaluations, self._planned.steps)

    def _conclude(self, step: int, progress: ProgressReporter) -> None:
        """The last step is evaluated, sampled and saved whatever the intervals, and an early end is explained."""
        self._evaluate(step)
        self._sample(step)
        if step not in self._past.checkpoints or step not in self._folder.steps():
            self.save(step)
        stop = self._early_stop(step)
        if stop is not None and not self._past.is_stopped:
            self._log.log(pb.LOG_SEVERITY_INFO, farewell(stop, self._spec), step)
        progress.end_training(step, stop)

    def _adopt(self, live: pb.LiveSettings) -> None:
        """Compute with other settings from here on."""
        if live == self._live:
            return
        if live.sample != self._live.sample:
            self._prompts, wrong = self._prompter.known_prompts(live_settings.in_force(self._planned, live).sample)
            for fault in wrong:
                self._log.log(pb.LOG_SEVERITY_WARNING, f"a prompt is left out: {fault}")
        self._live = live
        self._training.spec = live_settings.in_force(self._planned, live)

    def _advance(self, step: int) -> pb.Recovery | None:
        """Do a step and look at it; where it cannot be done, what to change, or the error where nothing will do."""
        try:
            if self._is_short_of_memory(step):
                return self._after_shortage(step)
            self._look(step)
            if self._is_over(step):
                self._evaluate(step)  # here, where it can still be answered
        except Diverged as error:
            return self._after_divergence(error)
        return None

    def _is_short_of_memory(self, step: int) -> bool:
        """Train one step; whether memory did not suffice for it, so that it is still to be done."""
        try:
            self._train(step)
            return False
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or not self._recoveries.can_split:
                raise
        # Out here nothing refers to the tensors of the failed step any more.
        self._training.free_gradients()
        return True

    def _after_shortage(self, step: int) -> pb.Recovery:
        if self._training.is_whole:
            return self._recoveries.split(step, step=step - 1)
        return self._recoveries.split(step, step=0, checkpoint=self._last_good(step))

    def _after_divergence(self, error: Diverged) -> pb.Recovery:
        """Raises the error where the policy has no rollback left."""
        done = self._recoveries.rollback_count
        if done < self._spec.recovery.max_rollbacks:
            checkpoint = self._last_good(error.step)
            return self._recoveries.rollback(
                error.step, loss=error.loss, gradient_norm=error.gradient_norm, checkpoint=checkpoint
            )
        if done:
            raise error.after_rollbacks(done, self._recoveries.learning_rate_factor(error.step)) from error
        raise error

    def _last_good(self, before_step: int) -> CheckpointEntry | None:
        """The newest checkpoint from which it is worth going on; None for the beginning, which a fork has not."""
        fallback: CheckpointEntry | None = None
        for step in reversed([one for one in self._folder.steps() if one < before_step]):
            if self._recoveries.is_hopeless(step):
                continue
            try:
                checkpoint = self._folder.read(step)
            except DataLoss:
                continue
            if not all(np.isfinite(array).all() for array in checkpoint.tensors.values()):
                continue
            if is_sound(self._past.losses, step):
                return checkpoint.entry
            # Where all are about to be lost, the oldest is the farthest from it.
            fallback = checkpoint.entry
        if fallback is None and self._first_step:
            raise FailedPrecondition(
                Reason.REASON_CHECKPOINT_NOT_FOUND,
                f"step {before_step} cannot be done, and no checkpoint is left that is worth going on from; fork the "
                "parent again, from an earlier step or with lower learning rates",
                step=before_step,
            )
        return fallback

    def _go_back(self, recovery: pb.Recovery, progress: ProgressReporter) -> int:
        """Make a recovery durable, then do what it says; returns the step from which the run goes on."""
        self._recoveries.add(recovery)
        self._log.append(pb.JobEvent(recovery=recovery))
        self._log.log(pb.LOG_SEVERITY_WARNING, recovery.message, recovery.step)
        self._log.sync()
        self._folder.remove_after(recovery.step)
        self._past.forget_after(recovery.step)
        if recovery.HasField("checkpoint"):
            self.load(self._folder.read(recovery.step))
        elif recovery.step == 0:
            self._training.restart()
            self._history = state_digest(self._training.state_dict())
        self._control.go_back(recovery.step)
        self._heed(recovery.step)
        progress.begin_training(recovery.step, self._spec.steps, recovery.step * self._training.tokens_per_step)
        return recovery.step

    def load(self, checkpoint: Checkpoint) -> None:
        """Take over the state of a checkpoint."""
        # Copied into the run's own tensors; torch only warns that the mapped arrays cannot be written.
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in checkpoint.tensors.items()}
        self._training.load_state_dict(tensors)
        self._history = history_of(checkpoint.entry)

    def _train(self, step: int) -> None:
        live_scale = self._live.learning_rate_scale if self._live.HasField("learning_rate_scale") else 1.0
        self._training.learning_rate_factor = live_scale * self._recoveries.learning_rate_factor(step)
        self._training.microbatch_size = self._recoveries.microbatch_size(step)
        metric = self._training.step(step)
        self._history = history_after(self._history, metric)
        self._tell(metric)

    def _tell(self, metric: pb.TrainingMetric) -> None:
        """Write a step that is done for the first time; compare one that is done again."""
        step, known = metric.step, self._past.losses.get(metric.step)
        if known is None:
            self._complete(metric)
            self._log.append(pb.JobEvent(metric=metric))
            self._past.losses[step] = metric.loss
        elif known != metric.loss and not self._said_deviation:
            self._said_deviation = True
            self._log.log(
                pb.LOG_SEVERITY_WARNING,
                f"step {step}, done again, has the loss {metric.loss!r}, not {known!r} as before: this environment "
                "does not compute the same bits, so from here on the weights are not those of an unbroken run",
                step,
            )

    def _look(self, step: int) -> None:
        """Evaluate, sample and save where this step calls for it."""
        interval = self._spec.evaluation_interval_steps
        is_best = False
        if _is_multiple(step, interval):
            is_best = self._evaluate(step)
            self._sample(step)
        policy = self._spec.checkpoints
        is_due = _is_multiple(step, policy.interval_steps) or _is_multiple(step, policy.milestone_interval_steps)
        if is_due or (is_best and policy.keep_best):
            self.save(step)

    def _evaluate(self, step: int) -> bool:
        """Whether this is the best evaluation so far."""
        evaluation = self._past.evaluations.get(step)
        if evaluation is None:
            evaluation = self._training.evaluate(step)
            if not math.isfinite(evaluation.validation_loss):
                # The update of this step made the weights what they are; the next one would find out too late.
                raise Diverged(step, evaluation.validation_loss, math.nan)
            since = max((one for one in self._past.evaluations if one < step), default=0)
            losses = [self._past.losses[one] for one in range(since + 1, step + 1) if one in self._past.losses]
            evaluation.training_loss = math.fsum(losses) / max(1, len(losses))
            self._log.append(pb.JobEvent(evaluation=evaluation))
            self._past.evaluations[step] = evaluation
        best = self.best
        return best is not None and best.step == step

    def _sample(self, step: int) -> None:
        sample = self._spec.sample
        # A text has no end to learn; rows do.
        end_id = self._prompter.end_id if self._spec.HasField("data") else None
        for ids in self._prompts if sample.length else ():
            prompt = self._prompter.text(ids)
            if (step, prompt) in self._past.samples:
                continue
            made = self._training.sample(
                ids,
                max_tokens=sample.length,
                temperature=sample.temperature,
                seed=sampling_seed(self._spec.seed, step),
                end_id=end_id,
            )
            text = pb.SampleText(step=step, prompt=prompt, text=self._prompter.text(made))
            self._log.append(pb.JobEvent(sample=text))
            self._past.samples.add((step, prompt))

    def save(self, step: int) -> None:
        """Make the state after `step` durable, the events up to it first."""
        start = time.perf_counter()
        self._log.sync()
        tensors = {name: tensor.numpy() for name, tensor in self._training.state_dict().items()}
        facts = {"specification": specification_digest(self._planned), "history": self._history}
        entry = self._folder.write(step, tensors, facts)
        self._folder.retain(self._spec.checkpoints.keep_latest, self._kept_for_good())
        if step in self._past.checkpoints:
            return
        self._past.checkpoints.add(step)
        checkpoint = pb.Checkpoint(step=step, digest=entry.digest, size_bytes=entry.size_bytes, create_time=now())
        checkpoint.state_digest, checkpoint.history_digest = entry.state_digest, self._history
        if step in self._past.evaluations:
            checkpoint.validation_loss = self._past.evaluations[step].validation_loss
        checkpoint.duration.FromNanoseconds(int((time.perf_counter() - start) * 1e9))
        self._log.append(pb.JobEvent(checkpoint=checkpoint))

    def _kept_for_good(self) -> set[int]:
        """The best step and the milestones among those that are kept."""
        policy, best = self._spec.checkpoints, self.best
        kept = {step for step in self._folder.steps() if _is_multiple(step, policy.milestone_interval_steps)}
        return kept | {best.step} if best is not None and policy.keep_best else kept

    def _heed(self, step: int) -> None:
        self._control.heed(step, lambda: self.save(step))
        self._adopt(self._control.live(step))

    def _complete(self, metric: pb.TrainingMetric) -> None:
        """Add what the training itself does not know."""
        metric.memory_bytes = self._memory_bytes()
        if metric.parts:
            self._update_ratio = metric.update_ratio
        metric.update_ratio = self._update_ratio
        if self._peak_flops:
            step_s = metric.step_duration.ToNanoseconds() / 1e9
            metric.flops_utilization = self._step_flops / (max(step_s, 1e-9) * self._peak_flops)

    def _memory_bytes(self) -> int:
        if self._spec.device.startswith("cuda"):
            return int(torch.cuda.max_memory_allocated(self._spec.device))
        return int(self._process.memory_info().rss)


class _Past:
    """What of a job's events must not be written twice."""

    def __init__(self, events: Iterable[pb.JobEvent]) -> None:
        self.losses: dict[int, float] = {}
        self.evaluations: dict[int, pb.Evaluation] = {}
        self.samples: set[tuple[int, str]] = set()
        self.checkpoints: set[int] = set()
        self.is_stopped = False
        for event in events:
            match event.WhichOneof("event"):
                case "metric":
                    self.losses[event.metric.step] = event.metric.loss
                case "evaluation":
                    self.evaluations[event.evaluation.step] = event.evaluation
                case "sample":
                    self.samples.add((event.sample.step, event.sample.prompt))
                case "checkpoint":
                    self.checkpoints.add(event.checkpoint.step)
                case "progress":
                    self.is_stopped |= event.progress.HasField("stop")

    def forget_after(self, step: int) -> None:
        """What was said of later steps no longer holds."""
        self.losses = {one: loss for one, loss in self.losses.items() if one <= step}
        self.evaluations = {one: seen for one, seen in self.evaluations.items() if one <= step}
        self.samples = {one for one in self.samples if one[0] <= step}
        self.checkpoints = {one for one in self.checkpoints if one <= step}


def _is_multiple(step: int, interval: int) -> bool:
    """Whether a step is due; an interval of 0 is never."""
    return bool(interval) and step % interval == 0


def specification_digest(spec: pb.TrainSpec) -> str:
    """`sha256:…` of a resolved spec."""
    return f"sha256:{hashlib.sha256(spec.SerializeToString(deterministic=True)).hexdigest()}"
