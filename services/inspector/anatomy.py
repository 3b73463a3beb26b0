"""A model taken apart layer by layer: from its architecture and the table of its tensors.

Knows nothing of files; reads no values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from octavo.formats.architecture import Architecture
from octavo.v1 import inspector_pb2 as pb
from services.inspector import findings
from services.inspector.contents import identity, is_trained

Kind = pb.LayerKind
Role = pb.TensorRole

# The parts of a transformer block in the order in which a token passes through them.
_BLOCK_PARTS: Final[Mapping[str, tuple[pb.LayerKind.ValueType, frozenset[int]]]] = {
    "attention_norm": (Kind.LAYER_KIND_NORM, frozenset({Role.TENSOR_ROLE_ATTENTION_NORM})),
    "attention": (
        Kind.LAYER_KIND_ATTENTION,
        frozenset(
            {
                Role.TENSOR_ROLE_ATTENTION_QUERY,
                Role.TENSOR_ROLE_ATTENTION_KEY,
                Role.TENSOR_ROLE_ATTENTION_VALUE,
                Role.TENSOR_ROLE_ATTENTION_QUERY_KEY_VALUE,
                Role.TENSOR_ROLE_ATTENTION_OUTPUT,
                Role.TENSOR_ROLE_ATTENTION_QUERY_NORM,
                Role.TENSOR_ROLE_ATTENTION_KEY_NORM,
            }
        ),
    ),
    "feed_forward_norm": (Kind.LAYER_KIND_NORM, frozenset({Role.TENSOR_ROLE_FEED_FORWARD_NORM})),
    "feed_forward": (
        Kind.LAYER_KIND_FEED_FORWARD,
        frozenset(
            {
                Role.TENSOR_ROLE_FEED_FORWARD_GATE,
                Role.TENSOR_ROLE_FEED_FORWARD_UP,
                Role.TENSOR_ROLE_FEED_FORWARD_DOWN,
            }
        ),
    ),
}
_EMBEDDINGS: Final = frozenset({Role.TENSOR_ROLE_TOKEN_EMBEDDING, Role.TENSOR_ROLE_POSITION_EMBEDDING})


def describe(architecture: Architecture, tensors: Sequence[pb.TensorDescription]) -> pb.ModelAnatomy:
    """The model's dimensions and layers; layers hold the tensors that are there, whatever should be."""
    return pb.ModelAnatomy(
        family=architecture.family,
        vocabulary_size=architecture.vocab_size,
        context_length=architecture.context_length,
        width=architecture.width,
        layer_count=architecture.layers,
        head_count=architecture.heads,
        key_value_head_count=architecture.kv_heads,
        head_size=architecture.head_size,
        feed_forward_width=architecture.mlp_width,
        has_tied_embeddings=architecture.tie_embeddings,
        layers=_layers(architecture, tensors),
        cache_bytes_per_token=architecture.kv_cache_bytes_per_token(element_bytes=2),
        flops_per_token=round(architecture.flops_per_token(1)),
    )


def disagreements(
    architecture: Architecture, tensors: Sequence[pb.TensorDescription], path: str
) -> Iterator[pb.InspectionFinding]:
    """Where the weights are not what the configuration says: missing, misshapen and surplus tensors."""
    stored = {tensor.name: tuple(tensor.shape) for tensor in tensors}
    expected = architecture.tensors()
    for name, shape in expected.items():
        if name not in stored:
            yield findings.error(
                "tensor-missing",
                f"{path}: {name}",
                f"config.json implies a tensor {name} of shape {list(shape)}, the weights have none",
                "export the model again, or correct config.json",
            )
        elif stored[name] != shape:
            yield findings.error(
                "tensor-misshapen",
                f"{path}: {name}",
                f"{name} has the shape {list(stored[name])}, config.json implies {list(shape)}",
                "export the model again, or correct config.json",
            )
    surplus = [tensor.name for tensor in tensors if tensor.name not in expected and is_trained(tensor)]
    if surplus:
        yield findings.warning(
            "tensors-unexpected",
            path,
            f"{len(surplus)} tensors have no place in the {architecture.family} of config.json: "
            f"{', '.join(surplus[:5])}{' …' if len(surplus) > 5 else ''}",
            "they are ignored when the model is loaded; remove them or correct config.json",
        )


def _layers(architecture: Architecture, tensors: Sequence[pb.TensorDescription]) -> list[pb.ModelLayer]:
    seen: set[tuple[str, str, int]] = set()
    groups: dict[tuple[int | None, str], list[pb.TensorDescription]] = {}
    for tensor in tensors:
        groups.setdefault(_place(tensor), []).append(tensor)

    def layer(name: str, kind: pb.LayerKind.ValueType, block: int | None = None, flops: int = 0) -> pb.ModelLayer:
        part = name.rsplit(".", 1)[-1]
        return _layer(name, kind, groups.get((block, part), []), seen, block=block, flops=flops)

    layers = [layer("embedding", Kind.LAYER_KIND_EMBEDDING)]
    for block in range(architecture.layers):
        for part, (kind, _) in _BLOCK_PARTS.items():
            # Scores and values over the one position there is: a multiply and an add for each, twice.
            flops = 4 * architecture.attention_width if part == "attention" else 0
            layers.append(layer(f"blocks.{block}.{part}", kind, block, flops))
    layers.append(layer("output_norm", Kind.LAYER_KIND_NORM))
    tied_flops = 2 * architecture.vocab_size * architecture.width if architecture.tie_embeddings else 0
    layers.append(layer("output", Kind.LAYER_KIND_OUTPUT, flops=tied_flops))
    other = _layer("other", Kind.LAYER_KIND_OTHER, _homeless(architecture, groups), seen)
    return [*layers, other] if other.tensors else layers


def _place(tensor: pb.TensorDescription) -> tuple[int | None, str]:
    """Block and part that a tensor belongs to."""
    block = tensor.block if tensor.HasField("block") else None
    if block is not None:
        part = next((part for part, (_, roles) in _BLOCK_PARTS.items() if tensor.role in roles), "other")
        return block, part
    if tensor.role in _EMBEDDINGS:
        return None, "embedding"
    outside = {Role.TENSOR_ROLE_OUTPUT_NORM: "output_norm", Role.TENSOR_ROLE_OUTPUT: "output"}
    return None, outside.get(tensor.role, "other")


def _homeless(
    architecture: Architecture, groups: Mapping[tuple[int | None, str], list[pb.TensorDescription]]
) -> list[pb.TensorDescription]:
    """Tensors without a role, or of blocks beyond those of the architecture."""
    return [
        tensor
        for (block, part), group in groups.items()
        if part == "other" or (block is not None and block >= architecture.layers)
        for tensor in group
    ]


def _layer(
    name: str,
    kind: pb.LayerKind.ValueType,
    tensors: Sequence[pb.TensorDescription],
    seen: set[tuple[str, str, int]],
    *,
    block: int | None = None,
    flops: int = 0,
) -> pb.ModelLayer:
    """One layer; tensors whose bytes an earlier layer has count there."""
    own = [tensor for tensor in tensors if identity(tensor) not in seen]
    seen.update(identity(tensor) for tensor in own)
    trained = [tensor for tensor in own if is_trained(tensor)]
    matrices = sum(tensor.element_count for tensor in tensors if len(tensor.shape) == 2)
    return pb.ModelLayer(
        name=name,
        kind=kind,
        block=block,
        tensors=[tensor.name for tensor in tensors],
        parameter_count=sum(tensor.element_count for tensor in trained),
        size_bytes=sum(tensor.size_bytes for tensor in own),
        flops_per_token=flops + (0 if kind == Kind.LAYER_KIND_EMBEDDING else 2 * matrices),
    )
