"""vLLM for CPUs: its engine in this process, without prefix reuse, since no two prompts here have one in common."""

import os
from pathlib import Path

os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GiB
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import vllm

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def version() -> str:
    return vllm.__version__


class Model:
    """An engine for so many sequences at once."""

    def __init__(
        self, directory: Path, *, precision: str, threads: int, sequences: int, context: int, **_: object
    ) -> None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        self._engine = vllm.LLM(
            model=str(directory),
            dtype=DTYPES[precision],
            max_model_len=context,
            max_num_seqs=sequences,
            enable_prefix_caching=False,
            disable_log_stats=True,
        )

    def generate(self, prompts: list[list[int]], new: int) -> list[list[int]]:
        sampling = vllm.SamplingParams(temperature=0.0, max_tokens=new, ignore_eos=True, detokenize=False)
        inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
        outputs = self._engine.generate(inputs, sampling, use_tqdm=False)
        return [output.outputs[0].token_ids for output in outputs]
