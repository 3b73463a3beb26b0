"""An ONNX graph in short, and what is worth knowing about it: operators, external data, foreign code.

Reads no values and follows no location.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from octavo.v1 import inspector_pb2 as pb
from services.inspector import external_data, findings
from services.inspector.contents import Contents
from services.inspector.onnx_graph import OnnxGraph
from services.inspector.operators import KNOWN_DOMAINS

_LIST_LIMIT: Final = 1000

_ADVICE: Final = "do not load it; export the model again"


def summarize(contents: Contents, path: str) -> pb.GraphSummary:
    """The graph in short; lists are cut at a thousand entries, counts are not."""
    graph = contents.graph(path)
    usages = _external_data(contents, path, graph)
    backed = sum(usage.initializer_count for usage in usages)
    return pb.GraphSummary(
        ir_version=graph.ir_version,
        producer=graph.producer,
        operator_sets=[
            pb.OperatorSet(domain=domain, version=version)
            for domain, version in list(graph.operator_sets.items())[:_LIST_LIMIT]
        ],
        operators=[
            pb.OperatorUsage(domain=domain, operator=operator, node_count=count)
            for (domain, operator), count in graph.operators.most_common(_LIST_LIMIT)
        ],
        node_count=graph.node_count,
        inputs=graph.inputs[:_LIST_LIMIT],
        outputs=graph.outputs[:_LIST_LIMIT],
        initializer_count=len(graph.initializers),
        embedded_bytes=sum(item.size_bytes for item in graph.initializers if item.location is None),
        external_data=usages[:_LIST_LIMIT],
        is_backed_by_safetensors=backed > 0 and backed == sum(usage.matched_tensor_count for usage in usages),
        function_count=graph.function_count,
    )


def judge(contents: Contents, path: str, summary: pb.GraphSummary) -> Iterator[pb.InspectionFinding]:
    """What is wrong with the graph, or foreign in it."""
    graph = contents.graph(path)
    for usage in summary.external_data:
        yield from _judge_usage(path, usage)
    for location in sorted(graph.nested_locations)[:_LIST_LIMIT]:
        yield findings.error(
            "external-data-nested",
            path,
            f"a constant inside a node reads from {location[:200]!r}; no exporter needs that",
            _ADVICE,
        )
    foreign = sorted({domain for domain, _ in graph.operators} - KNOWN_DOMAINS)
    if foreign and not graph.function_count:
        yield findings.warning(
            "custom-operators",
            path,
            f"operators of {', '.join(foreign)[:400]} need a library of native code beside ONNX Runtime",
            "load such a library only from a source you trust",
        )
    undeclared = sorted({domain for domain, _ in graph.operators} - graph.operator_sets.keys() - set(foreign))
    if undeclared:
        yield findings.error(
            "operator-set-missing", path, f"it uses {', '.join(undeclared)} without naming its version", _ADVICE
        )
    if graph.has_training_info:
        yield findings.info("training-info", path, "it carries instructions for training, which are ignored")


def _external_data(contents: Contents, path: str, graph: OnnxGraph) -> list[pb.ExternalDataUsage]:
    artifact = contents.artifact
    locations = {item.location for item in graph.initializers if item.location is not None}
    paths = {external_data.locate(artifact, path, location)[0] for location in locations}
    tensors = {data_path: contents.tensors_by_offset(data_path) for data_path in paths}
    return external_data.usage(artifact, path, graph.initializers, tensors)


def _judge_usage(path: str, usage: pb.ExternalDataUsage) -> Iterator[pb.InspectionFinding]:
    where = repr(usage.location[:200])
    count = f"{usage.initializer_count} initializers"
    match usage.state:
        case pb.EXTERNAL_DATA_STATE_ESCAPES:
            yield findings.error(
                "external-data-escapes", path, f"{count} read from {where}, outside the artifact", _ADVICE
            )
        case pb.EXTERNAL_DATA_STATE_MISSING:
            yield findings.error(
                "external-data-missing", path, f"{count} read from {where}, which the artifact lacks", _ADVICE
            )
        case pb.EXTERNAL_DATA_STATE_OUT_OF_RANGE:
            yield findings.error("external-data-out-of-range", path, f"{count} read beyond the end of {where}", _ADVICE)
        case pb.EXTERNAL_DATA_STATE_UNRESOLVED:
            yield findings.info(
                "external-data-unresolved", path, f"{count} are in {where}, which a blob alone does not have"
            )
