"""Who runs where, who waits, and for what."""

from octavo.v1 import trainer_pb2 as pb
from services.trainer.places import place_of, share_places


def job(name, device=""):
    made = pb.Job(name=f"jobs/{name}")
    if device:
        made.plan.train.device = device
    return made


def test_the_first_device_is_meant_where_none_is_named_and_what_does_not_train_is_on_the_cpu():
    assert [place_of(job("a", device)) for device in ("cpu", "cuda", "cuda:0", "cuda:1")] == [
        "cpu",
        "cuda:0",
        "cuda:0",
        "cuda:1",
    ]
    assert place_of(pb.Job(export=pb.ExportSpec())) == "cpu"


def test_jobs_of_different_devices_run_side_by_side_and_a_busy_device_is_waited_for():
    queue = [job("a", "cuda"), job("b", "cuda:0"), job("c", "cuda:1"), job("d", "cpu"), job("e", "cuda:0")]
    starting, waiting = share_places([], queue, 1)
    assert starting == ["jobs/a", "jobs/c", "jobs/d"]
    assert waiting == {
        "jobs/b": "waits for cuda:0, which jobs/a has",
        "jobs/e": "waits for cuda:0, which jobs/a has; 1 job is before it",
    }


def test_the_cpu_has_as_many_places_as_the_trainer_is_set_to():
    starting, waiting = share_places([job("a", "cpu")], [job("b", "cpu"), job("c"), job("d", "cpu")], 2)
    assert starting == ["jobs/b"]
    assert waiting["jobs/c"] == "waits for a place on the CPU, which jobs/a and jobs/b have"
    assert waiting["jobs/d"].endswith("have; 1 job is before it")
