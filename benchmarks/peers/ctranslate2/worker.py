"""CTranslate2: its own converter and `generate_batch`."""

import json
import tempfile
from pathlib import Path

import ctranslate2
from ctranslate2.converters import TransformersConverter

COMPUTE_TYPES = {"fp32": "float32", "fp16": "float16", "int8": "int8"}


def version() -> str:
    return ctranslate2.__version__


class Model:
    """A generator over converted weights. It takes tokens by their names."""

    def __init__(self, directory: Path, *, precision: str, threads: int, device: str, **_: object) -> None:
        compute_type = COMPUTE_TYPES[precision]
        with tempfile.TemporaryDirectory() as name:
            converted = Path(name) / "model"
            TransformersConverter(str(directory)).convert(str(converted), quantization=compute_type)
            _name_special_tokens(converted / "config.json")
            self._tokens: list[str] = json.loads((converted / "vocabulary.json").read_text())
            self._generator = ctranslate2.Generator(
                str(converted), device=device, compute_type=compute_type, inter_threads=1, intra_threads=threads
            )

    def generate(self, prompts: list[list[int]], new: int) -> list[list[int]]:
        named = [[self._tokens[code] for code in prompt] for prompt in prompts]
        results = self._generator.generate_batch(
            named,
            beam_size=1,
            sampling_topk=1,
            min_length=new,
            max_length=new,
            include_prompt_in_result=False,
        )
        return [result.sequences_ids[0] for result in results]


def _name_special_tokens(path: Path) -> None:
    """The runtime refuses a model without an unknown token; our tokenizers know every byte."""
    config = json.loads(path.read_text())
    config |= {name: "" for name, value in config.items() if name.endswith("_token") and value is None}
    path.write_text(json.dumps(config))
