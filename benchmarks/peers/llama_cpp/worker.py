"""llama.cpp through llama-cpp-python: all sequences in one llama_decode, tokens by its own greedy sampler."""

import sys
import tempfile
from pathlib import Path

import llama_cpp

sys.path.insert(0, str(Path(__file__).parent))
import gguf_file


def version() -> str:
    return llama_cpp.__version__


class Model:
    """A context with a cache for so many sequences of the model's whole context."""

    def __init__(
        self,
        directory: Path,
        *,
        precision: str,
        threads: int,
        sequences: int,
        context: int,
        device: str,
        **_: object,
    ) -> None:
        llama_cpp.llama_backend_init()
        with tempfile.TemporaryDirectory() as name:
            path = gguf_file.write(directory, precision, Path(name))
            options = llama_cpp.llama_model_default_params()
            options.n_gpu_layers = 999 if device == "cuda" else 0
            self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), options)
            if not self._model:
                raise ValueError("llama_model_load_from_file failed")
        parameters = llama_cpp.llama_context_default_params()
        # Each sequence takes at most 192 tokens here; a cache for less is not slower.
        parameters.n_ctx = sequences * context
        parameters.n_batch = parameters.n_ubatch = max(512, sequences)
        parameters.n_seq_max = sequences
        parameters.n_threads = parameters.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, parameters)
        if not self._context:
            raise ValueError("llama_init_from_model failed")
        self._width = parameters.n_batch
        self._batch = llama_cpp.llama_batch_init(self._width, 0, 1)
        self._sampler = llama_cpp.llama_sampler_init_greedy()

    def generate(self, prompts: list[list[int]], new: int) -> list[list[int]]:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), False)
        completions = [[token] for token in self._read(prompts)]
        length = len(prompts[0])
        for position in range(length, length + new - 1):
            last = [(completion[-1], position, row, True) for row, completion in enumerate(completions)]
            for completion, token in zip(completions, self._step(last), strict=True):
                completion.append(token)
        return completions

    def _read(self, prompts: list[list[int]]) -> list[int]:
        """The first tokens: whole prompts side by side, as many as a batch holds."""
        entries = [
            (token, position, row, position == len(prompt) - 1)
            for row, prompt in enumerate(prompts)
            for position, token in enumerate(prompt)
        ]
        first = []
        for start in range(0, len(entries), self._width):
            first += self._step(entries[start : start + self._width])
        return first

    def _step(self, entries: list[tuple[int, int, int, bool]]) -> list[int]:
        """One llama_decode of (token, position, sequence, whether it is answered); the most probable tokens."""
        batch = self._batch
        batch.n_tokens = len(entries)
        for index, (token, position, row, is_answered) in enumerate(entries):
            batch.token[index] = token
            batch.pos[index] = position
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = row
            batch.logits[index] = is_answered
        if code := llama_cpp.llama_decode(self._context, batch):
            raise ValueError(f"llama_decode answered {code}")
        answered = [index for index, entry in enumerate(entries) if entry[3]]
        return [llama_cpp.llama_sampler_sample(self._sampler, self._context, index) for index in answered]
