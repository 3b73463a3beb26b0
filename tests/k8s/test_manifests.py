"""The manifests render, agree with the code about ports and settings, and ask for no privilege."""

import dataclasses
import importlib
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
import yaml

from octavo.addresses import PORTS

OVERLAYS = Path(__file__).parents[2] / "k8s" / "overlays"
WORKLOADS = {"Deployment", "StatefulSet"}

pytestmark = pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl renders the manifests and is not here")


@cache
def rendered(overlay):
    command = ["kubectl", "kustomize", OVERLAYS / overlay]
    return list(yaml.safe_load_all(subprocess.run(command, capture_output=True, text=True, check=True).stdout))


def of_kind(overlay, *kinds):
    return [thing for thing in rendered(overlay) if thing["kind"] in kinds]


def container(workload):
    (only,) = workload["spec"]["template"]["spec"]["containers"]
    return only


@pytest.fixture(params=["local", "production"])
def overlay(request):
    return request.param


def test_every_program_is_deployed_with_an_account_a_service_and_a_budget(overlay):
    for kinds in (WORKLOADS, {"Service"}, {"ServiceAccount"}, {"PodDisruptionBudget"}):
        assert {thing["metadata"]["name"] for thing in of_kind(overlay, *kinds)} == set(PORTS)


def test_ports_are_those_of_the_code(overlay):
    for service in of_kind(overlay, "Service"):
        assert [port["port"] for port in service["spec"]["ports"]] == [PORTS[service["metadata"]["name"]]]
    for workload in of_kind(overlay, *WORKLOADS):
        assert container(workload)["ports"][0]["containerPort"] == PORTS[workload["metadata"]["name"]]


def test_each_container_starts_its_own_program(overlay):
    for workload in of_kind(overlay, *WORKLOADS):
        name = workload["metadata"]["name"]
        assert container(workload)["args"] == (["gateway"] if name == "gateway" else ["services", name])


def test_no_pod_asks_for_a_privilege(overlay):
    for workload in of_kind(overlay, *WORKLOADS):
        pod = workload["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        security = container(workload)["securityContext"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["readOnlyRootFilesystem"] is True
        assert security["capabilities"] == {"drop": ["ALL"]}


def test_every_pod_is_probed_limited_and_pinned(overlay):
    for workload in of_kind(overlay, *WORKLOADS):
        only = container(workload)
        assert {"startupProbe", "readinessProbe", "livenessProbe", "resources"} <= set(only)
        assert re.search(r":[\w.]+$", only["image"])
        assert not only["image"].endswith(":latest")


def test_every_variable_is_a_setting_of_some_program(overlay):
    known = {"OCTAVO_METRICS_PORT"}
    for name in PORTS:
        room = importlib.import_module("gateway" if name == "gateway" else f"services.{name}")
        for field in dataclasses.fields(room.Settings):
            known |= {f"OCTAVO_{field.name.upper()}", f"OCTAVO_{name.upper()}_{field.name.upper()}"}
    (config,) = of_kind(overlay, "ConfigMap")
    assert set(config["data"]) <= known
