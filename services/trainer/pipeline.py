"""The phases of a train job, in order; each can be done again, so a worker may be lost at any moment.

Prepare the corpus, measure a time budget, train, make and prove the bundle, register it, deploy it.
"""

from __future__ import annotations

from typing import Final

from octavo.errors import FailedPrecondition, InvalidArgument
from octavo.formats.checkpoint import Checkpoint, CheckpointFolder
from octavo.v1 import datasets_pb2
from octavo.v1 import trainer_pb2 as pb
from octavo.v1.errors_pb2 import Reason
from services.trainer.calibration import Pace, budgeted_plan
from services.trainer.corpus import Corpus, CorpusSpec
from services.trainer.environment import fingerprint
from services.trainer.job_run import JobRun
from services.trainer.loop import Training, configure_torch
from services.trainer.machine import Machine
from services.trainer.plan import TextFacts, architecture_of, plan
from services.trainer.publication import Release
from services.trainer.release import Origin, make_release
from services.trainer.training_phase import TrainingPhase

# Where a sample begins when no prompt is given: enough of the validation text to give it a direction.
_PROMPT_TOKENS: Final = 32


class Pipeline:
    """One train job in one worker."""

    def __init__(self, run: JobRun) -> None:
        self._run = run
        self._folder = CheckpointFolder(run.directory.checkpoints)

    def run(self, attempt: int) -> None:
        """Bring the job from where it is to its end. Raises Leaving, or what ends the job."""
        spec = self._run.job.plan.train
        configure_torch(threads=spec.threads)
        environment = fingerprint(spec.device, spec.threads)
        start, damages = self._folder.read_newest()
        step = start.entry.step if start is not None else 0
        self._run.begin(attempt, environment, step=step, damages=[damage.description for damage in damages])
        dataset = self._run.dataset(spec.dataset)
        corpus = self._prepare(spec, dataset)
        training, phase = self._training(corpus)
        self._train(training, phase, start)
        origin = Origin(
            job=self._run.job.name, dataset=training.spec.dataset, blob=dataset.blob, environment=environment
        )
        self._release(training, phase, corpus, origin)

    def _prepare(self, spec: pb.TrainSpec, dataset: datasets_pb2.Dataset) -> Corpus:
        wanted = CorpusSpec(
            blob=dataset.blob,
            tokenizer=spec.tokenizer.kind,
            vocab_size=spec.tokenizer.vocab_size,
            validation_fraction=spec.validation_fraction,
        )
        run = self._run
        return run.corpora.prepare(wanted, run.download, self._say_preparing, run.directory.path.name)

    def _say_preparing(self, message: str) -> None:
        self._run.say(pb.JOB_PHASE_PREPARE, message)

    def _training(self, corpus: Corpus) -> tuple[Training, TrainingPhase]:
        """The run by the plan that an earlier attempt fixed, or by one that is fixed now."""
        known = [event.plan for event in self._run.past if event.HasField("plan")]
        fixed = known[-1] if known else self._fix_plan(corpus)
        if not known:
            self._run.log.append(pb.JobEvent(plan=fixed))
        training = _new_training(fixed.train, corpus)
        phase = TrainingPhase(
            training,
            tokenizer=corpus.tokenizer,
            prompt=_prompt(fixed.train, corpus),
            folder=self._folder,
            log=self._run.log,
            control=self._run.control,
            past=self._run.past,
        )
        return training, phase

    def _fix_plan(self, corpus: Corpus) -> pb.Plan:
        """The plan from what is known now: the tokens there are and, for a time budget, how long a step takes."""
        spec = pb.TrainSpec()
        spec.CopyFrom(self._run.job.train)
        accepted = self._run.job.plan.train
        spec.dataset, spec.device, spec.threads = accepted.dataset, accepted.device, accepted.threads
        spec.tokenizer.CopyFrom(accepted.tokenizer)
        spec.precision = accepted.precision
        facts = TextFacts(
            train_tokens=corpus.facts.train_tokens,
            validation_tokens=corpus.facts.validation_tokens,
            vocab_size=corpus.facts.vocab_size,
        )
        machine = Machine.detect(device=spec.device, threads=spec.threads)
        if not spec.HasField("time_budget"):
            return plan(spec, facts, machine)
        self._run.say(pb.JOB_PHASE_CALIBRATE, "measuring how long a step takes")
        # Any number of steps will do: the duration of a step does not depend on it.
        provisional = plan(spec, facts, machine, step_s=1.0).train
        pace = Pace.measure(_new_training(provisional, corpus), _prompt(provisional, corpus))
        self._run.heed()
        fixed = budgeted_plan(spec, facts, machine, pace)
        self._run.log.log(
            pb.LOG_SEVERITY_INFO,
            f"a step takes {pace.step_s * 1e3:.1f} ms, an evaluation with its sample {pace.look_s:.2f} s: "
            f"{spec.time_budget.ToNanoseconds() / 1e9:g} s are {fixed.total_steps} steps",
        )
        return fixed

    def _train(self, training: Training, phase: TrainingPhase, start: Checkpoint | None) -> None:
        step = start.entry.step if start is not None else 0
        self._run.progress.begin_training(step, training.spec.steps, step * training.tokens_per_step)
        phase.run(start, self._run.progress)
        self._run.step = training.spec.steps

    def _release(self, training: Training, phase: TrainingPhase, corpus: Corpus, origin: Origin) -> None:
        spec = training.spec
        step = self._choose(training, phase)
        release = Release.read(self._run.directory) or make_release(
            self._run,
            training,
            corpus,
            evaluation=phase.evaluation(step),
            origin=origin,
        )
        self._run.publish(
            release,
            model=spec.model,
            message=f"step {step}, proven equal to its checkpoint",
            aliases=spec.aliases,
            deployment=spec.deployment,
        )

    def _choose(self, training: Training, phase: TrainingPhase) -> int:
        """The step whose weights are released: the best evaluated one that is kept, usually the last."""
        best = phase.best
        if best is None or best.step == training.spec.steps or best.step not in self._folder.steps():
            return training.spec.steps
        phase.load(self._folder.read(best.step))
        self._run.log.log(
            pb.LOG_SEVERITY_INFO,
            f"releasing step {best.step}, whose validation loss {best.validation_loss:.4f} is the lowest",
            best.step,
        )
        return best.step


def _new_training(spec: pb.TrainSpec, corpus: Corpus) -> Training:
    return Training(
        spec,
        architecture_of(spec),
        training_tokens=corpus.train,
        validation_tokens=corpus.validation,
        validation_bytes=corpus.facts.validation_bytes,
    )


def _prompt(spec: pb.TrainSpec, corpus: Corpus) -> list[int]:
    """Ids that samples begin with; found out before training whether the vocabulary has them."""
    if not spec.sample.prompt:
        return [int(code) for code in corpus.validation[:_PROMPT_TOKENS]]
    try:
        return corpus.tokenizer.encode(spec.sample.prompt)
    except InvalidArgument as error:
        raise FailedPrecondition(
            Reason.REASON_UNKNOWN_SYMBOL, f"job.train.sample.prompt: {error.message}", violations=error.violations
        ) from error
