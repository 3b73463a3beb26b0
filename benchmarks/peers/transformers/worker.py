"""Hugging Face transformers: `generate` over a padded batch, its default key-value cache."""

from pathlib import Path

import torch
import transformers

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def version() -> str:
    return transformers.__version__


class Model:
    """A causal language model in one of torch's precisions."""

    def __init__(self, directory: Path, *, precision: str, threads: int, device: str, **_: object) -> None:
        torch.set_num_threads(threads)
        model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=DTYPES[precision])
        self._device = device
        self._model = model.to(device).eval()

    @torch.inference_mode()
    def generate(self, prompts: list[list[int]], new: int) -> list[list[int]]:
        ids = torch.tensor(prompts, device=self._device)
        lengths = {"max_new_tokens": new, "min_new_tokens": new}
        rows = self._model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, eos_token_id=None, pad_token_id=0, **lengths
        )
        return rows[:, ids.shape[1] :].tolist()
