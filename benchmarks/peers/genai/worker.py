"""onnxruntime-genai: its model builder and generator. The builder knows no GPT-2: it gets a Llama of the same size."""

import tempfile
from pathlib import Path

import numpy as np
import onnxruntime_genai as genai
from onnxruntime_genai.models.builder import create_model, parse_extra_options


def version() -> str:
    return genai.__version__


class Model:
    """A built model. A generator is made for each batch: it has no way to begin again with another."""

    def __init__(self, directory: Path, *, precision: str, threads: int, device: str, **_: object) -> None:
        with tempfile.TemporaryDirectory() as name:
            arguments = ("", str(directory), name, precision, device, str(Path(name) / "cache"))
            create_model(*arguments, **parse_extra_options(*arguments, []))
            config = genai.Config(name)
            config.overlay(_thread_options(threads))
            self._model = genai.Model(config)

    def generate(self, prompts: list[list[int]], new: int) -> list[list[int]]:
        length = len(prompts[0])
        parameters = genai.GeneratorParams(self._model)
        total = length + new
        parameters.set_search_options(batch_size=len(prompts), min_length=total, max_length=total, do_sample=False)
        generator = genai.Generator(self._model, parameters)
        generator.append_tokens(np.array(prompts, np.int32))
        for _ in range(new):
            generator.generate_next_token()
        return [list(generator.get_sequence(row)[length:]) for row in range(len(prompts))]


def _thread_options(threads: int) -> str:
    return f'{{"model": {{"decoder": {{"session_options": {{"intra_op_num_threads": {threads}}}}}}}}}'
