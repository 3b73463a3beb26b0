"""A run that cannot do a step goes on by itself, and whoever follows its events computes the same bits."""

import math

import numpy as np
import pytest
import torch

from octavo.errors import FailedPrecondition
from octavo.formats.architecture import Architecture
from octavo.formats.checkpoint import CheckpointFolder, arrays_equal
from octavo.formats.tokenizer import Tokenizer
from octavo.v1 import errors_pb2
from octavo.v1 import trainer_pb2 as pb
from services.trainer import commands
from services.trainer.control import Control, Leaving
from services.trainer.events import EventLog, EventReader
from services.trainer.history import fold, unfinished_recovery, valid
from services.trainer.loop import Training
from services.trainer.progress import ProgressReporter
from services.trainer.recovery import Recoveries, is_sound
from services.trainer.sampling import Prompter
from services.trainer.training_phase import TrainingPhase

STEPS = 90
TOKENIZER = Tokenizer.train_characters("abcdefghijklmnop ")


def spec(**changes):
    """A run whose weight decay flips and grows the weights of every step, once its rate has warmed up."""
    options = {
        "batch_size": 4,
        "microbatch_size": 4,
        "steps": STEPS,
        "seed": 5,
        "device": "cpu",
        "precision": pb.TRAINING_PRECISION_FP32,
        "optimizer": pb.OptimizerSpec(
            matrix_learning_rate=0.1, learning_rate=4.0, beta1=0.8, beta2=0.95, momentum=0.95, weight_decay=0.7
        ),
        "schedule": pb.ScheduleSpec(warmup_steps=30, final_fraction=1.0),
        "checkpoints": pb.CheckpointPolicy(interval_steps=5, keep_latest=3, keep_best=True),
        "evaluation_interval_steps": 40,
        "recovery": pb.RecoveryPolicy(max_rollbacks=3, learning_rate_factor=0.5, split_microbatch=True),
    }
    return pb.TrainSpec(**(options | changes))


def training(one):
    shape = Architecture.derive("qwen3", vocab_size=17, context_length=16, width=32, layers=2, heads=2)
    text = np.tile(np.random.default_rng(0).integers(0, 17, 40), 60).astype(np.uint16)
    return Training(one, shape, training_tokens=text[:2000], validation_tokens=text[2000:], validation_bytes=400)


class Run:
    """What a worker does with a job's directory, as often as it is started."""

    def __init__(self, directory, one, first_step=0):
        self.directory, self.spec, self.first_step = directory, one, first_step
        self.folder = CheckpointFolder(directory / "checkpoints")

    def events(self):
        return EventReader(self.directory).read_all()

    def start(self):
        """Trains from the newest checkpoint to the end; the final state."""
        past = self.events()
        recovery = unfinished_recovery(past)
        if recovery is not None:
            self.folder.remove_after(recovery.step)
        run = training(self.spec)
        with EventLog(self.directory, attempt=1) as log:
            control = Control(self.directory, log, past)
            phase = TrainingPhase(
                run,
                prompter=Prompter(TOKENIZER, [1]),
                folder=self.folder,
                log=log,
                control=control,
                past=past,
                first_step=self.first_step,
            )
            phase.run(self.folder.read_newest()[0], ProgressReporter(log))
        return arrays(run)

    def recoveries(self):
        return [event.recovery for event in self.events() if event.HasField("recovery")]


def arrays(run):
    return {name: tensor.numpy() for name, tensor in run.state_dict().items()}


@pytest.fixture(scope="module")
def diverged(tmp_path_factory):
    """A run that diverged, recovered and came to its end."""
    run = Run(tmp_path_factory.mktemp("diverged"), spec())
    return run, run.start()


def test_a_fork_without_a_good_checkpoint_fails_rather_than_begin_without_its_parent(tmp_path):
    run = Run(tmp_path, spec(checkpoints=pb.CheckpointPolicy(interval_steps=0, keep_latest=3)), first_step=10)
    with pytest.raises(FailedPrecondition, match="fork the parent again") as refusal:
        run.start()
    assert refusal.value.reason == errors_pb2.REASON_CHECKPOINT_NOT_FOUND
    assert not run.recoveries()


def test_a_run_that_diverges_goes_back_to_its_last_good_checkpoint_and_ends_with_lower_rates(diverged):
    run, state = diverged
    recovery = run.recoveries()[0]
    assert recovery.cause == pb.RECOVERY_CAUSE_NOT_FINITE
    assert not (math.isfinite(recovery.loss) and math.isfinite(recovery.gradient_norm))
    assert 0 < recovery.step < recovery.failed_step <= STEPS
    assert recovery.checkpoint.step == recovery.step
    assert recovery.learning_rate_factor == 0.5
    assert all(np.isfinite(array).all() for array in state.values())
    metrics = [event.metric for event in valid(run.events()) if event.HasField("metric")]
    assert [metric.step for metric in metrics] == list(range(1, STEPS + 1))
    factor = run.recoveries()[-1].learning_rate_factor
    assert metrics[-1].learning_rate == pytest.approx(4.0 * factor)
    assert all(math.isfinite(metric.loss) for metric in metrics)


def test_whoever_follows_the_events_of_a_recovered_run_computes_the_same_bits(diverged):
    run, state = diverged
    recoveries = Recoveries(run.spec, run.recoveries())
    again = training(run.spec)
    for step in range(1, STEPS + 1):
        again.learning_rate_factor = recoveries.learning_rate_factor(step)
        again.step(step)
    assert arrays_equal(arrays(again), state)


@pytest.mark.parametrize("stopped_at", [3, 40, 64, 80])
def test_a_recovered_run_that_was_interrupted_ends_with_the_same_bits(diverged, tmp_path, stopped_at):
    run = Run(tmp_path, spec())
    with pytest.MonkeyPatch.context() as patch:
        step = Training.step

        def interrupted(self, number):
            if number == stopped_at:
                raise Leaving(None, "the worker is lost")
            return step(self, number)

        patch.setattr(Training, "step", interrupted)
        with pytest.raises(Leaving):
            run.start()
    assert arrays_equal(run.start(), diverged[1])
    assert [content(one) for one in run.recoveries()] == [content(one) for one in diverged[0].recoveries()]


def content(recovery):
    copy = pb.Recovery()
    copy.CopyFrom(recovery)
    copy.ClearField("message")
    return copy.SerializeToString(deterministic=True)


def test_a_worker_lost_between_a_recovery_and_what_it_does_does_it_when_it_starts_again(diverged, tmp_path):
    run = Run(tmp_path, spec())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CheckpointFolder, "remove_after", lambda self, step: (_ for _ in ()).throw(Leaving(None, "lost")))
        with pytest.raises(Leaving):
            run.start()
    assert run.folder.steps()[-1] > run.recoveries()[-1].step
    assert arrays_equal(run.start(), diverged[1])


def test_live_commands_are_multiplied_by_a_recovery(tmp_path):
    run = Run(tmp_path, spec())
    commands.append(tmp_path, pb.JobCommand(live=pb.LiveSettings(learning_rate_scale=1.1)))
    run.start()
    factor = run.recoveries()[-1].learning_rate_factor
    last = next(event.metric for event in reversed(run.events()) if event.HasField("metric"))
    assert last.learning_rate == pytest.approx(4.0 * 1.1 * factor)


def test_without_a_checkpoint_a_run_begins_again_with_lower_rates(tmp_path):
    run = Run(tmp_path, spec(checkpoints=pb.CheckpointPolicy(interval_steps=0, keep_latest=2), steps=70))
    run.spec.evaluation_interval_steps = 0
    run.start()
    assert run.recoveries()[0].step == 0
    assert not run.recoveries()[0].HasField("checkpoint")
    again = training(run.spec)
    again.learning_rate_factor = run.recoveries()[-1].learning_rate_factor
    first = again.step(1)
    seen = [event.metric for event in run.events() if event.metric.step == 1]
    assert seen[-1].loss == first.loss
    assert seen[-1].learning_rate == first.learning_rate


def test_a_run_fails_where_lower_rates_do_not_help(tmp_path):
    run = Run(tmp_path, spec(recovery=pb.RecoveryPolicy(max_rollbacks=2, learning_rate_factor=1.0)))
    with pytest.raises(FailedPrecondition, match="after 2 rollbacks") as stopped:
        run.start()
    assert stopped.value.reason == errors_pb2.REASON_TRAINING_DIVERGED
    assert len(run.recoveries()) == 2


def test_a_policy_without_rollbacks_fails_at_the_first_step_that_is_not_finite(tmp_path):
    run = Run(tmp_path, spec(recovery=pb.RecoveryPolicy(max_rollbacks=0)))
    with pytest.raises(FailedPrecondition, match="half of"):
        run.start()
    assert run.recoveries() == []


def test_a_job_knows_its_recoveries_and_forgets_what_no_longer_holds(diverged):
    job = pb.Job()
    run, _ = diverged
    at = next(index for index, event in enumerate(run.events()) if event.HasField("recovery"))
    for event in run.events()[: at + 1]:
        fold(job, event)
    recovery = run.recoveries()[0]
    assert list(job.recoveries) == [recovery]
    assert job.latest_checkpoint.step == recovery.step
    assert job.progress.step == recovery.step
    assert max(job.latest_metric.step, job.latest_evaluation.step, job.best_evaluation.step) <= recovery.step


def test_a_later_recovery_takes_the_place_of_those_behind_which_it_goes_back():
    recoveries = Recoveries(spec(batch_size=12, microbatch_size=12), [])
    recoveries.add(recoveries.split(9, step=8))
    assert [recoveries.microbatch_size(step) for step in (8, 9)] == [12, 6]
    recoveries.add(recoveries.rollback(12, loss=math.nan, gradient_norm=math.nan, checkpoint=None))
    assert [recoveries.microbatch_size(step) for step in (1, 9)] == [6, 6]
    assert [recoveries.learning_rate_factor(step) for step in (1, 9)] == [0.5, 0.5]
    recoveries.add(recoveries.split(15, step=14))
    assert [recoveries.microbatch_size(step) for step in (14, 15)] == [6, 3]
    assert recoveries.learning_rate_factor(15) == 0.5
    recoveries.add(recoveries.split(16, step=15))
    assert recoveries.microbatch_size(16) == 1
    assert not recoveries.can_split


@pytest.mark.parametrize(
    ("losses", "is_good"), [([], True), ([4.0, 3.0, 2.0] * 5, True), ([4.0, 2.0, 1.5, 1.4, 1.3, 9, 9, 9, 9, 9], False)]
)
def test_a_state_is_sound_while_its_losses_are_near_the_lowest(losses, is_good):
    assert is_sound(dict(enumerate(losses, 1)), len(losses)) == is_good


def test_a_smaller_microbatch_gives_the_same_steps_up_to_rounding():
    whole, split = training(spec(steps=20)), training(spec(steps=20))
    for step in range(1, 11):
        split.microbatch_size = 4 if step < 4 else 1
        assert split.step(step).loss == pytest.approx(whole.step(step).loss, rel=1e-4)
    for name, tensor in whole.weights().items():
        torch.testing.assert_close(split.weights()[name], tensor, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
async def test_a_job_that_diverges_recovers_and_everybody_who_looks_can_see_it(suite):
    spec = suite.spec(
        optimizer=pb.OptimizerSpec(matrix_learning_rate=0.1, learning_rate=4.0, weight_decay=0.7),
        schedule=pb.ScheduleSpec(warmup_steps=30, final_fraction=1.0),
        precision=pb.TRAINING_PRECISION_FP32,
    )
    spec.steps = STEPS
    spec.evaluation_interval_steps = 45
    async with suite.trainer() as client:
        await suite.add_dataset(client)
        job = await suite.create(client, spec)
        assert job.plan.train.recovery == pb.RecoveryPolicy(
            max_rollbacks=3, learning_rate_factor=0.5, split_microbatch=True
        )
        events = await suite.finished(client, job.name)
        job = await client.trainer.GetJob(pb.GetJobRequest(name=job.name))
        metrics = await client.trainer.ListMetrics(pb.ListMetricsRequest(parent=job.name))
        logs = await client.trainer.ListLogs(pb.ListLogsRequest(parent=job.name))
        diagnosis = await client.trainer.DiagnoseJob(pb.DiagnoseJobRequest(name=job.name))

    # Whether weights that were so far off are worth an export is the export's to say.
    assert "TRAINING_DIVERGED" not in str(job.error)
    assert [event.recovery for event in events if event.HasField("recovery")] == list(job.recoveries)
    assert job.recoveries[0].cause == pb.RECOVERY_CAUSE_NOT_FINITE
    assert [metric.step for metric in metrics.metrics] == list(range(1, STEPS + 1))
    assert all(metric.flops_utilization > 0 for metric in metrics.metrics)
    assert metrics.metrics[-1].update_ratio > 0
    assert any("going back to step" in line.message for line in logs.lines)
    assert any(line.type == "evaluation" for line in logs.lines)
    assert (suite.directory / "trainer" / job.name / "log.jsonl").exists()
    assert diagnosis.findings[0].verdict == pb.DIAGNOSIS_VERDICT_UNSTABLE
    assert diagnosis.HasField("readiness")
    assert job.latest_resource_usage.process_memory_bytes > 0
