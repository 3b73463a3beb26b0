"""What an exported graph scores is what the model scores on the same tokens."""

import numpy as np
import pytest
import torch

from octavo.formats.bundle import graph_file
from octavo.formats.manifest import WEIGHTS_FILE
from octavo.formats.tensor_file import read_header, read_tensor
from services.trainer.evaluation import evaluate
from services.trainer.graph_evaluation import measure
from services.trainer.graph_session import GraphSession
from services.trainer.model import Transformer
from services.trainer.onnx_export import export_graph
from tests.services.trainer.small_models import architecture, write_model


@pytest.mark.parametrize("count", [2, 256, 257, 1000, 1025])
def test_the_figures_are_those_of_the_checkpoint_whatever_the_length_of_the_text(tmp_path, count):
    a = architecture("qwen3")
    directory = write_model(tmp_path, a)
    export_graph(directory)
    model = Transformer(a)
    header = read_header(directory / WEIGHTS_FILE)
    model.load_weights(
        {
            name: torch.from_numpy(np.array(read_tensor(directory / WEIGHTS_FILE, entry)))
            for name, entry in header.tensors.items()
        }
    )
    tokens = np.random.default_rng(1).integers(0, a.vocab_size, count)
    wanted = evaluate(model, tokens, text_bytes=count)
    calls = []
    session = GraphSession(directory / graph_file("fp32"), a)
    found = measure(session, a, tokens, text_bytes=count, heed=lambda: calls.append(1))
    assert found.tokens == wanted.tokens == count - 1
    assert found.perplexity == pytest.approx(wanted.perplexity, rel=1e-4)
    assert found.bits_per_byte == pytest.approx(wanted.bits_per_byte, rel=1e-4)
    assert found.accuracy == pytest.approx(wanted.accuracy, abs=2 / count)
    assert calls
