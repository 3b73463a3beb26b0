"""A run is one history, whoever stops it, where and how often: the same losses, the same states, the same digests."""

from __future__ import annotations

import contextlib
import hashlib
import random
from pathlib import Path

import numpy as np
import pytest

from octavo.formats.architecture import Architecture
from octavo.formats.checkpoint import CheckpointFolder
from octavo.formats.tokenizer import Tokenizer
from octavo.v1 import trainer_pb2 as pb
from services.trainer.control import Control, Leaving
from services.trainer.events import EventLog, EventReader
from services.trainer.loop import Training
from services.trainer.progress import ProgressReporter
from services.trainer.sampling import Prompter
from services.trainer.training_phase import TrainingPhase

TEXT = "a rose is a rose is a rose, said she; and so it is. " * 60
STEPS = 24


def spec(**changes: object) -> pb.TrainSpec:
    options: dict[str, object] = {
        "batch_size": 4,
        "microbatch_size": 2,
        "steps": STEPS,
        "seed": 5,
        "dropout": 0.1,
        "ema_decay": 0.5,
        "device": "cpu",
        "precision": pb.TRAINING_PRECISION_BF16,
        "evaluation_interval_steps": 6,
        "sample": pb.SampleSpec(length=0, temperature=0.8),
        "checkpoints": pb.CheckpointPolicy(interval_steps=5, keep_latest=2, keep_best=True),
        "optimizer": pb.OptimizerSpec(
            matrix_learning_rate=0.02, learning_rate=0.004, beta1=0.8, beta2=0.95, momentum=0.95, gradient_clip=1.0
        ),
        "schedule": pb.ScheduleSpec(warmup_steps=2, cooldown_fraction=0.5, final_fraction=0.0),
    }
    return pb.TrainSpec(**(options | changes))


class Run:
    """The training of a job in a directory: each `attempt` is a worker that begins where the last one was lost."""

    def __init__(self, directory: Path, chosen: pb.TrainSpec) -> None:
        self.directory = directory
        self.spec = chosen
        self.folder = CheckpointFolder(directory / "checkpoints")
        directory.mkdir(exist_ok=True)

    def attempt(self, lost_after: int = 1 << 60) -> None:
        """Trains to the end, or until step `lost_after` is done: nothing is saved then, as when it is killed."""
        tokenizer = Tokenizer.train_characters(TEXT)
        tokens = tokenizer.encode_corpus(TEXT)
        shape = Architecture.derive(
            "qwen3", vocab_size=tokenizer.vocab_size, context_length=16, width=32, layers=1, heads=2
        )
        training = Training(
            self.spec,
            shape,
            training_tokens=tokens[:2600],
            validation_tokens=tokens[2600:],
            validation_bytes=len(TEXT) - 2600,
        )
        past = EventReader(self.directory).read_all()
        with EventLog(self.directory, attempt=1) as log:
            control = Lost(self.directory, log, past, after=lost_after)
            phase = TrainingPhase(
                training, prompter=Prompter(tokenizer, [1]), folder=self.folder, log=log, control=control, past=past
            )
            newest, _ = self.folder.read_newest()
            with contextlib.suppress(Leaving):
                phase.run(newest, ProgressReporter(log))

    def events(self, kind: str) -> list:
        return [getattr(event, kind) for event in EventReader(self.directory).read_all() if event.HasField(kind)]

    def losses(self) -> list[tuple[int, float]]:
        return [(metric.step, metric.loss) for metric in self.events("metric")]

    def digests(self) -> list[tuple[int, str, str]]:
        return [(one.step, one.state_digest, one.history_digest) for one in self.events("checkpoint")]

    def last(self) -> pb.Checkpoint:
        return self.events("checkpoint")[-1]


class Lost(Control):
    """Loses the worker after a step."""

    def __init__(self, *arguments: object, after: int) -> None:
        super().__init__(*arguments)
        self._after = after

    def heed(self, step: int, save: object = None) -> None:
        if step >= self._after:
            raise Leaving(None, "lost")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tmp_path_factory.mktemp("unbroken"), spec())
    run.attempt()
    return run


def test_a_run_that_is_lost_again_and_again_has_the_history_of_an_unbroken_one(unbroken: Run, tmp_path: Path) -> None:
    run = Run(tmp_path, spec())
    for after in sorted(random.Random(7).sample(range(1, STEPS), 5)):
        run.attempt(lost_after=after)
    run.attempt()
    assert run.losses() == unbroken.losses()
    assert [one.validation_loss for one in run.events("evaluation")] == [
        one.validation_loss for one in unbroken.events("evaluation")
    ]
    digests = [
        [(one.step, one.state_digest, one.history_digest) for one in r.events("checkpoint")] for r in (run, unbroken)
    ]
    assert digests[0] == digests[1]
    assert [entry for entry in run.events("log") if "does not compute" in entry.message] == []


@pytest.mark.parametrize("interval", [0, 1, 7])
def test_when_checkpoints_are_written_changes_neither_state_nor_history(
    interval: int, unbroken: Run, tmp_path: Path
) -> None:
    policy = pb.CheckpointPolicy(interval_steps=interval, keep_latest=2)
    run = Run(tmp_path, spec(checkpoints=policy))
    run.attempt(lost_after=15)
    run.attempt()
    assert run.losses() == unbroken.losses()
    assert run.last().state_digest == unbroken.last().state_digest
    assert run.last().history_digest == unbroken.last().history_digest


def test_another_seed_is_another_history_from_the_first_state_on(unbroken: Run, tmp_path: Path) -> None:
    run = Run(tmp_path, spec(seed=6))
    run.attempt(lost_after=5)
    first = next(one for one in unbroken.events("checkpoint") if one.step == 5)
    assert run.last().step == 5
    assert run.last().history_digest != first.history_digest


def test_the_state_digest_is_that_of_the_file_and_the_history_can_be_checked_by_hand(unbroken: Run) -> None:
    last = unbroken.last()
    entry = unbroken.folder.read(STEPS).entry
    assert last.state_digest == f"sha256:{hashlib.sha256((entry.path / 'state.safetensors').read_bytes()).hexdigest()}"
    first = next(one for one in unbroken.events("checkpoint") if one.step == 5)
    history = first.history_digest
    for metric in unbroken.events("metric")[5:]:
        figures = (metric.loss, metric.gradient_norm, metric.learning_rate, metric.matrix_learning_rate)
        line = " ".join([history, str(metric.step), *map(float.hex, figures)])
        history = f"sha256:{hashlib.sha256(line.encode()).hexdigest()}"
    assert history == last.history_digest


def test_kept_are_the_newest_the_best_and_the_milestones(tmp_path: Path) -> None:
    policy = pb.CheckpointPolicy(interval_steps=2, keep_latest=2, keep_best=True, milestone_interval_steps=9)
    run = Run(tmp_path, spec(checkpoints=policy))
    run.attempt()
    best = min(run.events("evaluation"), key=lambda one: one.validation_loss).step
    assert run.folder.steps() == sorted({9, 18, 22, 24, best})


def test_the_digest_of_a_state_does_not_need_a_file(unbroken: Run) -> None:
    from octavo.formats.tensor_file import digest_safetensors

    checkpoint = unbroken.folder.read(STEPS)
    state = {name: np.array(array) for name, array in checkpoint.tensors.items()}
    assert digest_safetensors(state) == checkpoint.entry.state_digest
    state["model.final_gain"][0] = np.nextafter(state["model.final_gain"][0], np.float32(2))
    assert digest_safetensors(state) != checkpoint.entry.state_digest
