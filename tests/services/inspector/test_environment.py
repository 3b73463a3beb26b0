"""An environment is valid when nothing that is needed is missing, too old or broken."""

from importlib import metadata

import pytest

from octavo.v1 import inspector_pb2 as pb
from services.inspector import environment

PASSED, WARNED, FAILED = pb.CHECK_OUTCOME_PASSED, pb.CHECK_OUTCOME_WARNED, pb.CHECK_OUTCOME_FAILED


def test_the_environment_these_tests_run_in_has_the_software_it_needs():
    checks = {check.code: check for check in environment.check_software()}
    assert checks["python-version"].outcome == PASSED
    assert checks["onnx-version"].required == "1.21 or newer"
    assert checks["onnx-version"].found == metadata.version("onnx")
    assert not [check for check in checks.values() if check.outcome == FAILED]
    assert "buf-bin-version" not in checks


@pytest.mark.parametrize(
    ("requires", "code", "outcome"),
    [
        (["numpy>=999"], "numpy-version", FAILED),
        (["not-a-package>=1"], "not-a-package-version", FAILED),
        (['not-a-package>=1; extra == "trainer"'], "not-a-package-version", WARNED),
        (['numpy>=999; extra == "trainer"'], "numpy-version", FAILED),
        (["numpy"], "numpy-version", PASSED),
        (["numpy>=1.9"], "numpy-version", PASSED),
        (['numpy>=1; sys_platform != "win32"'], "numpy-version", PASSED),
    ],
)
def test_what_is_missing_or_old_is_found(monkeypatch, requires, code, outcome):
    monkeypatch.setattr(environment.metadata, "requires", lambda name: requires)
    check = list(environment.check_software())[1]
    assert (check.code, check.outcome) == (code, outcome)
    assert bool(check.advice) == (outcome != PASSED)


def test_findings_about_the_machine_decide_its_checks():
    diagnosis = pb.SystemDiagnosis(storage=[pb.StorageDescription(purpose="data", path="/d")])
    diagnosis.findings.add(subject="memory", severity=pb.FINDING_SEVERITY_ERROR, message="none", advice="buy some")
    diagnosis.findings.add(subject="storage: /d", severity=pb.FINDING_SEVERITY_WARNING, message="little")
    diagnosis.findings.add(subject="processor", severity=pb.FINDING_SEVERITY_INFO, message="fine")
    outcomes = {check.code: check.outcome for check in environment.check_machine(diagnosis)}
    assert outcomes == {
        "processor": PASSED,
        "memory": FAILED,
        "limits": PASSED,
        "onnxruntime": PASSED,
        "storage-data": WARNED,
    }


def test_one_failure_makes_the_environment_invalid_and_comes_first():
    checks = [
        pb.EnvironmentCheck(code="a", outcome=PASSED),
        pb.EnvironmentCheck(code="b", outcome=WARNED),
        environment.check_registry(is_reachable=False, address="nowhere:1"),
    ]
    result = environment.validation(checks)
    assert not result.is_valid
    assert [check.code for check in result.checks] == ["registry", "b", "a"]
    assert "OCTAVO_REGISTRY" in result.checks[0].advice
    assert environment.validation(checks[:2]).is_valid


def test_an_artifact_needs_a_graph_soundness_and_room():
    sound = pb.ArtifactInspection(files=[pb.FileInspection(path="model.onnx", format=pb.FILE_FORMAT_ONNX)])
    assert {check.outcome for check in environment.check_artifact(sound, None)} == {PASSED}
    broken = pb.ArtifactInspection()
    broken.findings.add(severity=pb.FINDING_SEVERITY_ERROR, message="hole")
    memory = pb.MemoryEstimate()
    memory.findings.add(subject="serving", severity=pb.FINDING_SEVERITY_ERROR, message="too large")
    memory.findings.add(subject="training", severity=pb.FINDING_SEVERITY_WARNING, message="too large")
    checks = list(environment.check_artifact(broken, memory))
    assert [(check.code, check.outcome) for check in checks] == [
        ("artifact", FAILED),
        ("artifact-graph", FAILED),
        ("artifact-memory", FAILED),
    ]
