"""What is left of a job that could not be taken up: nothing, so that it can be sent again."""

import errno
import logging

import pytest

from octavo.v1 import trainer_pb2 as pb
from services.trainer.guard import Limits
from services.trainer.job_directory import JobDirectory, Launch
from services.trainer.jobs import JobStore
from services.trainer.supervisor import Supervisor

REQUEST = "0b9d5c1e-5a0e-4a51-8a3f-6f7b8f0c1d2e"


@pytest.fixture
def store(tmp_path):
    store = JobStore(tmp_path / "jobs.sqlite")
    store.open()
    yield store
    store.close()


@pytest.fixture
def supervisor(tmp_path, store):
    """Accepts jobs and starts none of them."""
    limits = Limits(max_running_jobs=0, max_queued_jobs=9, max_restarts=0, restart_delay_s=1.0, stop_grace_s=1.0)
    launch = Launch(registry="127.0.0.1:1", api_key="secret", corpora=str(tmp_path), registry_patience_s=1.0)
    return Supervisor(tmp_path, store, launch, logging.getLogger(__name__), limits=limits)


def test_a_job_that_is_refused_by_a_full_disk_is_not_there_and_can_be_sent_again(supervisor, store, monkeypatch):
    def full(directory, launch):
        raise OSError(errno.ENOSPC, "no space left")

    with monkeypatch.context() as patched:
        patched.setattr(JobDirectory, "write_launch", full)
        with pytest.raises(OSError, match="no space left"):
            supervisor.submit(pb.Job(name="jobs/poet"), REQUEST, b"digest")
    assert store.list_newest() == []
    assert not supervisor.directory("jobs/poet").path.exists()
    made = supervisor.submit(pb.Job(name="jobs/poet"), REQUEST, b"digest")
    assert made.state == pb.JOB_STATE_QUEUED
    assert list(supervisor.queue()) == ["jobs/poet"]


def test_a_request_that_is_sent_again_finds_the_job_it_made(supervisor):
    made = supervisor.submit(pb.Job(name="jobs/poet"), REQUEST, b"digest")
    assert supervisor.submit(pb.Job(name="jobs/other"), REQUEST, b"digest").name == made.name
    assert list(supervisor.queue()) == ["jobs/poet"]


def test_a_key_is_not_in_what_is_printed_of_a_launch(supervisor):
    assert "secret" not in repr(supervisor._launch)
