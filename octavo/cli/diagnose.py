"""`octavo diagnose`: the machine, as the inspector sees it."""

import typer

from octavo.cli import options, screen, wording
from octavo.cli.inspect_command import print_findings
from octavo.cli.options import AsJson
from octavo.v1 import inspector_pb2 as pb


def diagnose(context: typer.Context, as_json: AsJson = False) -> None:
    """Describes this machine: processor, memory, storage, GPUs, versions, and what stands in the way.

    Example: `octavo diagnose`
    """
    with options.connected(context) as client:
        diagnosis = client.inspector.DiagnoseSystem(pb.DiagnoseSystemRequest())
    if as_json:
        screen.print_json(diagnosis)
        return
    screen.print_facts(_facts(diagnosis))
    print_findings(list(diagnosis.findings))


def _facts(diagnosis: pb.SystemDiagnosis) -> list[tuple[str, screen.Cell]]:
    processor, memory = diagnosis.processor, diagnosis.memory
    facts: list[tuple[str, screen.Cell]] = [
        ("processor", f"{processor.model} ({processor.architecture})"),
        ("cores", f"{processor.usable_core_count:g} usable of {processor.logical_core_count}"),
        ("instructions", ", ".join(processor.features)),
        ("load", f"{processor.load_average:.2f}"),
        ("memory", f"{wording.size(memory.available_bytes)} free of {wording.size(memory.total_bytes)}"),
    ]
    for place in diagnosis.storage:
        free = f"{wording.size(place.available_bytes)} free of {wording.size(place.total_bytes)}"
        facts.append((place.purpose, f"{place.path}  {free}{'' if place.is_writable else '  not writable'}"))
    for gpu in diagnosis.accelerators:
        free = f"{wording.size(gpu.memory_available_bytes)} free of {wording.size(gpu.memory_total_bytes)}"
        facts.append((f"gpu {gpu.index}", f"{gpu.model}  {free}  driver {gpu.driver_version}"))
    facts += [
        ("providers", ", ".join(diagnosis.execution_providers)),
        ("versions", ", ".join(f"{name} {version}" for name, version in sorted(diagnosis.versions.items()))),
        ("platform", diagnosis.platform),
        ("answered in", wording.lasting(wording.seconds(diagnosis.elapsed))),
    ]
    return facts
