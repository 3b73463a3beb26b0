"""What an export job comes to, before it is accepted: its version and text by number, and every reason to refuse it.

Reads from the registry only what the answer needs: config, tokenizer, the beginning of the text.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from octavo.client import AsyncClient
from octavo.errors import InvalidArgument, NotFound
from octavo.formats.architecture import Architecture
from octavo.formats.bundle import CONFIG_FILE, GRAPH_FILE, REQUIRED_FILES, parse_json
from octavo.formats.tokenizer import TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, Tokenizer
from octavo.v1 import datasets_pb2, registry_pb2
from octavo.v1 import trainer_pb2 as pb
from services.trainer.machine import Machine
from services.trainer.yardstick import MAX_PERPLEXITY_INCREASE, calibration_tokens, held_out_tokens

# Enough to meet nearly all symbols of a text, read at once; the worker reads the rest.
_LOOKED_AT_BYTES: Final = 1 << 18
# The interpreter with torch and ONNX Runtime, and samples of activations.
_PROCESS_BYTES: Final = 768 << 20
# Weights in fp32 as they are, folded, turned for the search and in the session that runs them.
_COPIES: Final = 4
_START_S: Final = 5.0
# Searching scales and rounding takes as long as running this many tokens, measured with a GPT-2 of 124 M parameters.
_SEARCHED_TOKENS: Final = 15_000


async def plan_export(client: AsyncClient, spec: pb.ExportSpec, machine: Machine) -> pb.Plan:
    """The plan of an export; raises what the registry raises, and InvalidArgument by field."""
    version = await client.registry.ResolveVersion(registry_pb2.ResolveVersionRequest(reference=spec.version))
    architecture = await _architecture(client, version)
    dataset = await _dataset(client, version, spec.dataset)
    resolved = pb.ExportSpec()
    resolved.CopyFrom(spec)
    resolved.version = version.name
    resolved.dataset = f"{dataset.name.partition('/versions/')[0]}/versions/{dataset.version}"
    if resolved.dataset not in {one.dataset for one in version.lineage.datasets}:
        await _check_symbols(client, version, dataset)
    if not resolved.HasField("max_perplexity_increase"):
        resolved.max_perplexity_increase = MAX_PERPLEXITY_INCREASE
    if not resolved.HasField("threads"):
        resolved.threads = machine.threads
    return _plan(resolved, architecture, dataset, machine)


async def _architecture(client: AsyncClient, version: registry_pb2.Version) -> Architecture:
    missing = [name for name in (GRAPH_FILE, *REQUIRED_FILES) if _blob(version, name) is None]
    if missing:
        raise _wrong_version(
            f"{version.name} has no {', '.join(missing)}; what is exported needs a checkpoint and its fp32 graph"
        )
    try:
        return Architecture.from_config(parse_json(CONFIG_FILE, await _read(client, version, CONFIG_FILE)))
    except InvalidArgument as error:
        raise _wrong_version(f"{version.name} is not of a kind that can be exported: {error.message}") from error


async def _dataset(client: AsyncClient, version: registry_pb2.Version, asked: str) -> datasets_pb2.Dataset:
    name = asked or next((one.dataset for one in version.lineage.datasets), "")
    if not name:
        raise _wrong_dataset(f"is missing: {version.name} does not say what it was trained on; name a text")
    try:
        dataset = await client.datasets.GetDataset(datasets_pb2.GetDatasetRequest(name=name))
    except NotFound as error:
        if asked:
            raise
        raise _wrong_dataset(f"is missing: what {version.name} was trained on, {name}, is gone; name a text") from error
    if dataset.format != datasets_pb2.DATASET_FORMAT_TEXT:
        raise _wrong_dataset(f"{name} holds rows; scales are calibrated on plain text")
    return dataset


async def _check_symbols(client: AsyncClient, version: registry_pb2.Version, dataset: datasets_pb2.Dataset) -> None:
    """InvalidArgument where the beginning of the text has symbols that the model's vocabulary lacks."""
    tokenizer = Tokenizer.from_bytes(
        await _read(client, version, TOKENIZER_FILE), await _read(client, version, TOKENIZER_CONFIG_FILE)
    )
    length = min(_LOOKED_AT_BYTES, dataset.statistics.size_bytes)
    beginning = await client.read(dataset.blob, 0, length)
    try:
        tokenizer.encode(beginning.decode("utf-8", errors="ignore"))
    except InvalidArgument as error:
        raise _wrong_dataset(f"does not fit the tokenizer of {version.name}: {error.message}") from error


def _plan(
    resolved: pb.ExportSpec, architecture: Architecture, dataset: datasets_pb2.Dataset, machine: Machine
) -> pb.Plan:
    measured = held_out_tokens(architecture) * (1 + len(resolved.precisions))
    tokens = calibration_tokens(architecture) + measured + _SEARCHED_TOKENS * len(resolved.precisions)
    rate = machine.flops(is_bf16=False) * resolved.threads / machine.threads
    answer = pb.Plan(
        export=resolved,
        parameter_count=architecture.parameters,
        dataset_tokens=dataset.statistics.characters,
        memory_bytes=_PROCESS_BYTES + _COPIES * 4 * architecture.parameters,
        warnings=_warnings(resolved),
    )
    seconds = _START_S + tokens * architecture.flops_per_token() / rate
    answer.estimated_duration.FromNanoseconds(int(seconds * 1e9))
    return answer


def _warnings(resolved: pb.ExportSpec) -> Iterator[pb.PlanWarning]:
    for index, precision in enumerate(resolved.precisions):
        if precision == "bf16":
            yield pb.PlanWarning(
                field=f"export.precisions[{index}]",
                description="ONNX Runtime's CPU provider cannot run bf16, so it is written and not measured here",
                fix="ask for fp16, which can be measured",
                check="bf16_unmeasured",
            )


async def _read(client: AsyncClient, version: registry_pb2.Version, path: str) -> bytes:
    return await client.read(_blob(version, path) or "")


def _blob(version: registry_pb2.Version, path: str) -> str | None:
    return next((file.blob for file in version.files if file.path == path), None)


def _wrong_version(text: str) -> InvalidArgument:
    return InvalidArgument.field("job.export.version", text)


def _wrong_dataset(text: str) -> InvalidArgument:
    return InvalidArgument.field("job.export.dataset", text)
