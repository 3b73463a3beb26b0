from octavo.v1 import trainer_pb2 as pb
from services.trainer.publication import request_id_of


def job(seconds: int, name: str = "jobs/poet") -> pb.Job:
    made = pb.Job(name=name)
    made.create_time.FromSeconds(seconds)
    return made


def test_a_worker_that_starts_again_asks_with_the_same_id():
    assert request_id_of(job(1), "version") == request_id_of(job(1), "version")


def test_a_job_with_the_name_of_a_deleted_one_asks_with_an_id_of_its_own():
    assert request_id_of(job(2), "version") != request_id_of(job(1), "version")
    assert request_id_of(job(1, "jobs/other"), "version") != request_id_of(job(1), "version")
