"""A training in one process: it ends when it should, heeds what is changed, and repeats it when it goes on."""

import numpy as np
import pytest

from octavo.formats.architecture import Architecture
from octavo.formats.checkpoint import CheckpointFolder, arrays_equal
from octavo.formats.tokenizer import Tokenizer
from octavo.v1 import trainer_pb2 as pb
from services.trainer import commands
from services.trainer.control import Control, Leaving
from services.trainer.events import EventLog, EventReader
from services.trainer.loop import Training
from services.trainer.progress import ProgressReporter
from services.trainer.sampling import Prompter
from services.trainer.training_phase import TrainingPhase

TEXT = "the quick brown fox jumps over the lazy dog. " * 60


def planned(**changes):
    spec = pb.TrainSpec(
        steps=40,
        batch_size=2,
        microbatch_size=2,
        evaluation_interval_steps=5,
        seed=1,
        device="cpu",
        precision=pb.TRAINING_PRECISION_FP32,
        optimizer=pb.OptimizerSpec(matrix_learning_rate=0.02, learning_rate=0.004, beta1=0.8, beta2=0.95, momentum=0.9),
        schedule=pb.ScheduleSpec(warmup_steps=2, cooldown_fraction=0.5),
        checkpoints=pb.CheckpointPolicy(interval_steps=10, keep_latest=5),
        sample=pb.SampleSpec(length=4),
    )
    spec.MergeFrom(pb.TrainSpec(**changes))
    return spec


class Run:
    """The training of one job in a directory, one attempt after the other."""

    def __init__(self, directory, spec):
        self.directory, self.spec = directory, spec
        directory.mkdir()
        self.folder = CheckpointFolder(directory / "checkpoints")
        self.tokenizer = Tokenizer.train_characters(TEXT)
        self.codes = np.array(self.tokenizer.encode(TEXT), dtype=np.uint16)

    def attempt(self, leave_after=None):
        """Trains to the end, or until after a step; returns the last step."""
        shape = Architecture.derive(
            "qwen3", vocab_size=self.tokenizer.vocab_size, context_length=16, width=16, layers=1, heads=1
        )
        training = Training(
            self.spec,
            shape,
            training_tokens=self.codes[:2000],
            validation_tokens=self.codes[2000:2200],
            validation_bytes=200,
        )
        past = self.events()
        with EventLog(self.directory, 1) as log:
            phase = TrainingPhase(
                training,
                prompter=Prompter(self.tokenizer, [1, 2]),
                folder=self.folder,
                log=log,
                control=Control(self.directory, log, past),
                past=past,
            )
            reporter = Interrupting(log, leave_after)
            start, _ = self.folder.read_newest()
            return phase.run(start, reporter)

    def tell(self, **settings):
        commands.append(self.directory, pb.JobCommand(live=pb.LiveSettings(**settings)))

    def events(self):
        return EventReader(self.directory).read_all()

    def steps_of(self, kind):
        return [getattr(event, kind).step for event in self.events() if event.HasField(kind)]

    def logs(self):
        return [event.log.message for event in self.events() if event.HasField("log")]

    def state(self, step):
        return self.folder.read(step).tensors


class Interrupting(ProgressReporter):
    """As if the worker were lost after a step: nothing is saved."""

    def __init__(self, log, leave_after):
        super().__init__(log)
        self._leave_after = leave_after

    def step(self, step, total_steps, tokens):
        super().step(step, total_steps, tokens)
        if step == self._leave_after:
            raise Leaving(None, "lost")


@pytest.fixture
def new_run(tmp_path):
    return lambda name="run", **changes: Run(tmp_path / name, planned(**changes))


def test_it_ends_where_the_target_is_reached_and_says_that_the_cool_down_was_cut(new_run):
    run = new_run(target_loss=100)
    assert run.attempt() == 5
    assert run.steps_of("evaluation") == run.steps_of("checkpoint") == [5]
    stop = next(event.progress.stop for event in run.events() if event.progress.HasField("stop"))
    assert (stop.reason, stop.step, stop.planned_steps) == (pb.TRAINING_STOP_REASON_TARGET_LOSS, 5, 40)
    assert any("cool-down was cut" in line for line in run.logs())
    before = len(run.events())
    assert run.attempt() == 5
    again = run.events()[before:]
    assert [event.WhichOneof("event") for event in again] == ["progress"]


def test_it_ends_when_evaluations_no_longer_improve(new_run):
    run = new_run(early_stopping=pb.EarlyStopping(patience=2, min_delta=50))
    assert run.attempt() == 15


def test_every_prompt_is_sampled_with_each_evaluation(new_run):
    run = new_run(steps=10, sample=pb.SampleSpec(prompts=["the", "dog"]))
    run.attempt()
    samples = [(e.sample.step, e.sample.prompt) for e in run.events() if e.HasField("sample")]
    assert samples == [(5, "the"), (5, "dog"), (10, "the"), (10, "dog")]


def test_what_is_changed_is_in_force_from_the_next_step_written_down_and_repeated_by_a_resumed_run(new_run):
    run = new_run()
    with pytest.raises(Leaving):
        run.attempt(leave_after=13)
    run.tell(weight_decay=0.5, evaluation_interval_steps=4, learning_rate_scale=0.5, steps=60)
    with pytest.raises(Leaving):
        run.attempt(leave_after=25)  # from the checkpoint of step 10: what is done again is done as before
    applied = [event.command_applied for event in run.events() if event.HasField("command_applied")]
    assert [one.step for one in applied] == [13]
    assert any("from step 14 on: learning_rate_scale 0.5, weight_decay 0.5" in line for line in run.logs())
    assert run.attempt() == 60
    assert run.steps_of("metric") == list(range(1, 61))
    assert run.steps_of("evaluation") == [5, 10, *range(16, 61, 4)]
    assert not [line for line in run.logs() if "does not compute" in line]

    unbroken = new_run("unbroken")
    unbroken.directory.joinpath("events.log").write_bytes(b"")
    with EventLog(unbroken.directory, 1) as log:
        log.append(pb.JobEvent(command_applied=applied[0]))
    assert unbroken.attempt() == 60
    assert arrays_equal(run.state(60), unbroken.state(60))


def test_it_finishes_at_once_when_it_is_asked_to(new_run):
    run = new_run()
    with pytest.raises(Leaving):
        run.attempt(leave_after=12)
    run.tell(finish=True)
    assert run.attempt() == 12
    assert run.steps_of("evaluation")[-1] == run.steps_of("checkpoint")[-1] == 12


def test_a_prompt_that_the_vocabulary_lacks_is_left_out_and_reported(new_run):
    run = new_run(steps=10)
    run.tell(sample=pb.SampleSpec(prompts=["Ω", "dog"]))
    run.attempt()
    assert {event.sample.prompt for event in run.events() if event.HasField("sample")} == {"dog"}
    assert any("a prompt is left out" in line and "Ω" in line for line in run.logs())
