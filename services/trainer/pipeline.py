"""The phases of a train job, in order; each can be done again, so a worker may be lost at any moment.

Prepare the corpus, measure a time budget, train, make and prove the bundle, register it, deploy it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from octavo.formats.checkpoint import Checkpoint, CheckpointFolder
from octavo.v1 import datasets_pb2
from octavo.v1 import trainer_pb2 as pb
from services.trainer.calibration import Pace, budgeted_plan
from services.trainer.corpus import Corpus, CorpusFacts, CorpusSpec
from services.trainer.environment import fingerprint
from services.trainer.history import unfinished_recovery
from services.trainer.job_run import JobRun
from services.trainer.loop import Training, configure_torch
from services.trainer.machine import Machine
from services.trainer.peak_flops import peak_flops
from services.trainer.plan import architecture_of, plan, settled
from services.trainer.publication import Release
from services.trainer.release import Origin, make_release
from services.trainer.sampling import Prompter, beginning
from services.trainer.text_facts import TextFacts
from services.trainer.token_rows import Examples
from services.trainer.training_phase import TrainingPhase


class Pipeline:
    """One train job in one worker."""

    def __init__(self, run: JobRun, make_training: Callable[..., Training] = Training) -> None:
        self._run = run
        self._make_training = make_training
        self._folder = CheckpointFolder(run.directory.checkpoints)

    def run(self, attempt: int) -> None:
        """Bring the job from where it is to its end. Raises Leaving, or what ends the job."""
        spec = self._run.job.plan.train
        configure_torch(threads=spec.threads)
        environment = fingerprint(spec.device, spec.threads)
        recovery = unfinished_recovery(self._run.past)
        if recovery is not None:
            self._folder.remove_after(recovery.step)
        start, damages = self._folder.read_newest()
        step = start.entry.step if start is not None else 0
        self._run.begin(attempt, environment, step=step, damages=[damage.description for damage in damages])
        dataset = self._run.dataset(spec.dataset)
        corpus = self._prepare(spec, dataset)
        training, phase = self._training(corpus)
        step = self._train(training, phase, start)
        origin = Origin(
            job=self._run.job.name, dataset=training.spec.dataset, blob=dataset.blob, environment=environment
        )
        self._release(training, phase, corpus, origin, step)

    def _prepare(self, spec: pb.TrainSpec, dataset: datasets_pb2.Dataset) -> Corpus:
        start = time.monotonic()
        corpus = prepared_corpus(self._run, spec, dataset)
        if not self._run.past_plan():
            self._report(corpus.facts, time.monotonic() - start)
        return corpus

    def _report(self, facts: CorpusFacts, duration_s: float) -> None:
        """What became of the dataset, once a job."""
        rows = f" in {facts.train_rows + facts.validation_rows:,} rows" if facts.train_rows else ""
        tokens = facts.train_tokens + facts.validation_tokens
        self._run.log.log(
            pb.LOG_SEVERITY_INFO,
            f"{facts.characters:,} characters{rows} are {tokens:,} tokens of {facts.vocab_size:,}, ready after "
            f"{duration_s:.1f} s",
        )
        for why, count in sorted(facts.dropped_rows.items()):
            self._run.warn(f"{count:,} rows are left out: {why}")

    def _training(self, corpus: Corpus) -> tuple[Training, TrainingPhase]:
        """The run by the plan that an earlier attempt fixed, or by one that is fixed now."""
        known = self._run.past_plan()
        fixed = known or self._fix_plan(corpus)
        if known is None:
            self._run.log.append(pb.JobEvent(plan=fixed))
        warn = self._run.warn if known is None else say_nothing
        training = new_training(fixed.train, corpus, warn, self._make_training)
        phase = TrainingPhase(
            training,
            prompter=prompter_of(corpus),
            folder=self._folder,
            log=self._run.log,
            control=self._run.control,
            past=self._run.past,
            first_step=self._run.job.parent_step,
            peak_flops=peak_flops(
                fixed.train.device,
                is_bf16=fixed.train.precision == pb.TRAINING_PRECISION_BF16,
                threads=fixed.train.threads,
                cache=self._run.peaks,
            ),
        )
        return training, phase

    def _fix_plan(self, corpus: Corpus) -> pb.Plan:
        """The plan from what is known now: the tokens there are and, for a time budget, how long a step takes."""
        spec = settled(self._run.job)
        facts = TextFacts.of(corpus.facts)
        machine = Machine.detect(device=spec.device, threads=spec.threads)
        if not spec.HasField("time_budget"):
            return plan(spec, facts, machine)
        self._run.say(pb.JOB_PHASE_CALIBRATE, "measuring how long a step takes")
        # About as many steps as it will be: dropout, which costs time, follows from their number.
        provisional = plan(spec, facts, machine).train
        budget_s = spec.time_budget.ToNanoseconds() / 1e9
        prompts = prompter_of(corpus).prompts(provisional.sample)
        tried = new_training(provisional, corpus, say_nothing, self._make_training)
        pace = Pace.measure(tried, prompts, budget_s=budget_s)
        self._run.heed()
        fixed = budgeted_plan(spec, facts, machine, pace)
        self._run.log.log(
            pb.LOG_SEVERITY_INFO,
            f"a step takes {pace.step_s * 1e3:.1f} ms, an evaluation with its sample {pace.look_s:.2f} s: "
            f"{budget_s:g} s are {fixed.total_steps} steps",
        )
        return fixed

    def _train(self, training: Training, phase: TrainingPhase, start: Checkpoint | None) -> int:
        """Returns the last step."""
        step = start.entry.step if start is not None else 0
        self._run.progress.begin_training(step, training.spec.steps, step * training.tokens_per_step)
        self._run.step = phase.run(start, self._run.progress)
        return self._run.step

    def _release(
        self, training: Training, phase: TrainingPhase, corpus: Corpus, origin: Origin, last_step: int
    ) -> None:
        spec = training.spec
        step = self._choose(phase, last_step)
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

    def _choose(self, phase: TrainingPhase, last_step: int) -> int:
        """The step whose weights are released: the best evaluated one that is kept, usually the last."""
        best = phase.best
        if best is None or best.step == last_step or best.step not in self._folder.steps():
            return last_step
        phase.load(self._folder.read(best.step))
        self._run.log.log(
            pb.LOG_SEVERITY_INFO,
            f"releasing step {best.step}, whose validation loss {best.validation_loss:.4f} is the lowest",
            best.step,
        )
        return best.step


def prepared_corpus(run: JobRun, spec: pb.TrainSpec, dataset: datasets_pb2.Dataset) -> Corpus:
    """The tokens of a dataset as a spec asks for them, made if they are not there yet."""
    wanted = CorpusSpec.of(spec, dataset)
    return run.corpora.prepare(wanted, run.download, lambda message: run.say(pb.JOB_PHASE_PREPARE, message))


def new_training(
    spec: pb.TrainSpec, corpus: Corpus, warn: Callable[[str], None], make: Callable[..., Training] = Training
) -> Training:
    """A run before its first step, by a resolved spec; `warn` hears what of the rows is cut or left out."""
    if corpus.rows is None:
        return make(
            spec,
            architecture_of(spec),
            training_tokens=corpus.train,
            validation_tokens=corpus.validation,
            validation_bytes=corpus.facts.validation_bytes,
        )
    context_length = spec.architecture.context_length
    train, validation = (Examples.of(rows, spec.data, context_length) for rows in corpus.rows)
    truncated, dropped = train.truncated + validation.truncated, train.dropped + validation.dropped
    if truncated:
        warn(f"{truncated:,} rows do not fit {context_length} tokens: their prompts are cut from the left")
    if dropped:
        warn(f"{dropped:,} rows are left out: they do not fit {context_length} tokens")
    return make(
        spec,
        architecture_of(spec),
        training_tokens=train,
        validation_tokens=validation,
        validation_bytes=corpus.tokenizer.size_bytes(validation.learnt.tolist()),
    )


def say_nothing(_: str) -> None:
    """What was said once need not be said again."""


def prompter_of(corpus: Corpus) -> Prompter:
    """Who knows what samples of a corpus go on from."""
    # The whole prompt of a row, so that what follows is an answer; a text has none.
    asked = int(corpus.rows[1].prompts[0]) if corpus.rows else 0
    return Prompter(corpus.tokenizer, beginning(corpus.validation, asked))
