"""Artifacts in memory, a real bundle, and questions asked of them without a network."""

import hashlib
import json
from dataclasses import dataclass, field

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from octavo.errors import NotFound
from octavo.formats.architecture import Architecture
from octavo.formats.tensor_file import read_header, write_safetensors
from octavo.v1 import errors_pb2
from services.inspector.artifacts import Artifact, ArtifactFile
from services.inspector.contents import Contents
from services.inspector.reader import Budget, Reader


class BytesSource:
    """Bytes at hand, which remember what was fetched of them."""

    def __init__(self, data, label="file"):
        self.data = data
        self.label = label
        self.fetches = []

    @property
    def size_bytes(self):
        return len(self.data)

    def fetch(self, offset, length):
        assert 0 <= offset <= offset + length <= len(self.data)
        self.fetches.append((offset, length))
        return self.data[offset : offset + length]


@dataclass
class MemoryArtifacts:
    """The registry's part in a dictionary: files by artifact name and path."""

    files: dict[str, dict[str, bytes]]
    digests: dict[str, str] = field(default_factory=dict)

    async def resolve(self, name, field="artifact"):
        return self.artifact(name)

    def artifact(self, name):
        if name not in self.files:
            raise NotFound(errors_pb2.REASON_VERSION_NOT_FOUND, f"there is no {name}")
        listed = tuple(
            ArtifactFile(path, f"sha256:{hashlib.sha256(data).hexdigest()}", len(data))
            for path, data in self.files[name].items()
        )
        return Artifact(name, listed, self.digests)

    def opener(self):
        blobs = {
            f"sha256:{hashlib.sha256(data).hexdigest()}": data
            for files in self.files.values()
            for data in files.values()
        }
        return lambda file: BytesSource(blobs[file.digest], file.path)


@pytest.fixture
def source():
    """Makes a source of bytes."""
    return BytesSource


@pytest.fixture
def make_reader():
    """Makes a reader of bytes with a generous budget."""
    return lambda data, **options: Reader(BytesSource(data), Budget(1 << 30), **options)


@pytest.fixture
def read():
    """Makes a reader of bytes with a generous budget and a name."""
    return lambda data, label="file": Reader(BytesSource(data, label), Budget(1 << 30))


@pytest.fixture
def open_files():
    """Opens a dictionary of files as one version; `digests` are those of its tensors."""

    def opened(files, digests=None, name="models/poet/versions/1"):
        artifacts = MemoryArtifacts({name: files}, digests or {})
        return Contents(artifacts.artifact(name), artifacts.opener(), Budget(1 << 30))

    return opened


@pytest.fixture(scope="session")
def architecture():
    return Architecture.derive("gpt2", vocab_size=65, context_length=32, width=64, layers=2, heads=4)


@pytest.fixture(scope="session")
def bundle(architecture, tmp_path_factory):
    """The files of a small GPT-2: config, weights, and a graph whose external data are the weights."""
    path = tmp_path_factory.mktemp("bundle") / "model.safetensors"
    random = np.random.default_rng(7)
    tensors = {name: random.normal(0, 0.02, shape).astype(np.float32) for name, shape in architecture.tensors().items()}
    header = write_safetensors(path, tensors, {"format": "pt"})
    assert header == read_header(path)
    return {
        "config.json": json.dumps(architecture.to_config()).encode(),
        "model.safetensors": path.read_bytes(),
        "model.onnx": graph_of(header).SerializeToString(),
        "README.md": "# Poet – a tiny one\n".encode(),
    }


def graph_of(header, location="model.safetensors"):
    """A graph that embeds tokens, with every tensor of the header as an initializer in external data."""
    initializers = [
        external_tensor(name, TensorProto.FLOAT, entry.shape, location, entry.offset, entry.size_bytes)
        for name, entry in header.tensors.items()
    ]
    nodes = [
        helper.make_node("Gather", ["transformer.wte.weight", "input_ids"], ["x"]),
        helper.make_node("Gelu", ["x"], ["y"]),
        helper.make_node(
            "MatMulNBits",
            ["y", "packed", "packed_scales"],
            ["z"],
            domain="com.microsoft",
            K=64,
            N=8,
            bits=4,
            block_size=32,
        ),
    ]
    packed = helper.make_tensor("packed", TensorProto.UINT8, (8, 2, 16), bytes(256), raw=True)
    scales = helper.make_tensor("packed_scales", TensorProto.FLOAT, (8, 2), [1.0] * 16)
    graph = helper.make_graph(
        nodes,
        "poet",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", 4])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", 4, 8])],
        [*initializers, packed, scales],
    )
    sets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=sets, producer_name="octavo", producer_version="1")
    helper.set_model_props(model, {"octavo.precision": "fp32"})
    return model


def external_tensor(name, data_type, shape, location, offset, length):
    tensor = TensorProto(name=name, data_type=data_type, dims=shape, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.append(onnx.StringStringEntryProto(key=key, value=str(value)))
    return tensor


@pytest.fixture(scope="session")
def make_external():
    return external_tensor
