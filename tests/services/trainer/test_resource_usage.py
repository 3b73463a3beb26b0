"""What a worker uses is sampled beside its work, and what the machine can do is measured."""

import json
import time

import pytest
import torch

from services.trainer.events import EventLog, EventReader
from services.trainer.peak_flops import peak_flops
from services.trainer.resource_usage import UsageGauge, UsageSampler


def test_usage_is_that_of_this_process_and_this_machine(tmp_path):
    gauge = UsageGauge(tmp_path)
    (tmp_path / "written").write_bytes(bytes(1 << 20))
    deadline_s = time.process_time() + 0.05
    while time.process_time() < deadline_s:
        pass
    usage = gauge.read()
    gauge.close()
    assert usage.process_cpu_cores > 0
    assert 0 <= usage.cpu_utilization <= 1
    assert 0 < usage.process_memory_bytes < usage.memory_total_bytes
    assert 0 < usage.memory_used_bytes < usage.memory_total_bytes
    assert 0 < usage.disk_used_bytes <= usage.disk_total_bytes


def test_samples_are_events_numbered_among_those_of_the_worker(tmp_path):
    with EventLog(tmp_path, attempt=1) as log, UsageSampler(log, tmp_path, interval_s=0.001):
        while len([event for event in EventReader(tmp_path).read_all() if event.HasField("resource_usage")]) < 5:
            log.log(2, "work")
    events = EventReader(tmp_path).read_all()
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))


def test_the_peak_of_a_machine_is_measured_and_the_highest_is_kept(tmp_path):
    cache = tmp_path / "peak_flops.json"
    measured = peak_flops("cpu", is_bf16=False, threads=1, cache=cache)
    assert measured > 1e8
    (key,) = json.loads(cache.read_text())
    cache.write_text(json.dumps({key: 1e18}))
    assert peak_flops("cpu", is_bf16=False, threads=1, cache=cache) == 1e18
    assert len(json.loads(cache.read_text())) == 1
    cache.write_text("not JSON")
    assert peak_flops("cpu", is_bf16=False, threads=1, cache=cache) == pytest.approx(measured, rel=20)
    assert torch.get_num_threads() == 1
