"""README.md of a bundle, the model card: facts about one version in Hugging Face's format, nothing else.

Knows nothing of how the facts came about; what is not given is left out, never guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from octavo.formats.architecture import Architecture
from octavo.formats.lineage import Lineage
from octavo.formats.tokenizer import Tokenizer

CARD_FILE: Final = "README.md"


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """`metrics` are measured numbers by name with their unit in it: `validation_loss_nats`, `bits_per_byte`.

    `proof` is the parity record of fp32, with what was measured of other precisions under `precisions`.
    """

    title: str
    architecture: Architecture
    tokenizer: Tokenizer
    lineage: Lineage
    metrics: Mapping[str, float] = field(default_factory=dict)
    proof: Mapping[str, Any] | None = None

    def write(self, directory: Path) -> None:
        """Write README.md."""
        (directory / CARD_FILE).write_text(self.text(), "utf-8")

    def text(self) -> str:
        """The card in Markdown with its YAML head."""
        head = "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n- octavo\n"
        # A title is someone's input: on one line it can neither end the heading nor open another.
        sections = [head + f"- {self.architecture.family}\n---\n", f"# {' '.join(self.title.split())}\n"]
        sections += [self._summary(), _table("Architecture", self._dimensions())]
        if self.metrics:
            sections.append(_table("Measured", {name: f"{value:.6g}" for name, value in self.metrics.items()}))
        sections += [_table("Origin", self._origin()), self._proven(), self._precisions(), _USE]
        return "\n".join(section for section in sections if section)

    def _summary(self) -> str:
        level = "characters" if self.tokenizer.is_character_level else "byte-level BPE tokens"
        return (
            f"A {self.architecture.family} of {self.architecture.parameters:,} parameters over "
            f"{self.tokenizer.vocab_size:,} {level}, with a context of {self.architecture.context_length:,}.\n"
        )

    def _dimensions(self) -> dict[str, str]:
        a = self.architecture
        return {
            "layers": str(a.layers),
            "width": str(a.width),
            "heads": f"{a.heads} of {a.head_size}, {a.kv_heads} for keys and values",
            "MLP width": str(a.mlp_width),
            "positions": "learned" if a.rope_theta is None else f"rotary, theta {a.rope_theta:g}",
            "output head": "tied to the embedding" if a.tie_embeddings else "its own matrix",
        }

    def _origin(self) -> dict[str, str]:
        line = self.lineage
        facts = {f"data {entry.name}": f"`{entry.digest}`" for entry in line.datasets}
        facts |= {"step": str(line.step), "seed": str(line.seed), "Octavo": line.code_version}
        facts |= {"specification": f"`{line.specification_digest}`"}
        facts |= {"environment": f"`{line.environment_fingerprint}`"}
        optional = {"job": line.job, "made from": line.parent_version}
        return facts | {name: value for name, value in optional.items() if value}

    def _proven(self) -> str:
        if self.proof is None or "largest_difference" not in self.proof:
            return ""
        return (
            "## Proof\n\nmodel.onnx computes what the checkpoint computes: the largest difference of a logit was "
            f"{self.proof['largest_difference']:.2g} (allowed {self.proof['tolerance']:.2g}) over "
            f"{self.proof['positions']:,} positions, and {self.proof['greedy_tokens']:,} greedy tokens were the "
            "same.\n"
        )

    def _precisions(self) -> str:
        found = (self.proof or {}).get("precisions", {})
        if not found:
            return ""
        rows = {f"`model.{precision}.onnx`": _change(figures) for precision, figures in found.items()}
        return _table("Precisions, on held-out text", rows)


def _change(found: Mapping[str, Any]) -> str:
    if not found["is_measured"]:
        return f"not measured: {found['reason']}"
    return (
        f"perplexity {found['perplexity']:.4f} ({found['perplexity_increase']:+.2%} against fp32), bits per byte "
        f"{found['bits_per_byte']:.4f} ({found['bits_per_byte_change']:+.4f}), {found['held_out_tokens']:,.0f} tokens"
    )


_USE: Final = """## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = AutoModelForCausalLM.from_pretrained(".")
```
"""


def _table(title: str, rows: Mapping[str, str]) -> str:
    lines = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return f"## {title}\n\n| | |\n|--|--|\n{lines}\n"
