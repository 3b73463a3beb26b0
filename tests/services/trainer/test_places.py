"""Who runs where, who waits, and for what."""

from octavo.v1 import trainer_pb2 as pb
from services.trainer.places import places_of, share_places


def job(name, device="", processes=1):
    made = pb.Job(name=f"jobs/{name}")
    if device:
        made.plan.train.device = device
        made.plan.train.processes = processes
    return made


def test_the_first_device_is_meant_where_none_is_named_and_what_does_not_train_is_on_the_cpu():
    assert [places_of(job("a", device)) for device in ("cpu", "cuda", "cuda:0", "cuda:1")] == [
        ["cpu"],
        ["cuda:0"],
        ["cuda:0"],
        ["cuda:1"],
    ]
    assert places_of(pb.Job(export=pb.ExportSpec())) == ["cpu"]


def test_processes_take_a_device_each_and_on_the_cpu_one_place_together():
    assert places_of(job("a", "cuda", processes=3)) == ["cuda:0", "cuda:1", "cuda:2"]
    assert places_of(job("a", "cpu", processes=3)) == ["cpu"]


def test_a_job_that_waits_for_one_of_its_devices_keeps_the_others_from_those_after_it():
    queue = [job("b", "cuda", processes=2), job("c", "cuda:1"), job("d", "cuda:2")]
    starting, waiting = share_places([job("a", "cuda:0")], queue, 1)
    assert starting == ["jobs/d"]
    assert waiting == {"jobs/b": "waits for cuda:0, which jobs/a has", "jobs/c": "waits for cuda:1, which jobs/b has"}


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
