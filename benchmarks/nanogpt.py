"""The yardstick: the CPU recipe that nanoGPT's README gives for Tiny Shakespeare, written anew in plain PyTorch.

4 layers, 4 heads, width 128, context 64, batch 12, 2000 iterations, AdamW at 1e-3 with a cosine to 1e-4, no dropout:
https://github.com/karpathy/nanoGPT, "I only have a macbook". Eager, fp32, fused where its author fuses (SDPA), the
library's default thread settings and optimizer: what a user of that recipe gets.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

LAYERS, HEADS, WIDTH, CONTEXT, BATCH, ITERATIONS = 4, 4, 128, 64, 12, 2000
PEAK_RATE, FINAL_RATE, WARMUP_ITERATIONS = 1e-3, 1e-4, 100


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH, bias=False)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.output = nn.Linear(WIDTH, WIDTH, bias=False)
        self.norm2 = nn.LayerNorm(WIDTH, bias=False)
        self.up = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).split(width, dim=2)
        q, k, v = (z.view(batch, length, HEADS, width // HEADS).transpose(1, 2) for z in (q, k, v))
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.output(y.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class Model(nn.Module):
    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, WIDTH)
        self.positions = nn.Embedding(CONTEXT, WIDTH)
        self.layers = nn.Sequential(*(Layer() for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                is_branch_end = name.endswith(("output.weight", "down.weight"))
                std = 0.02 / math.sqrt(2 * LAYERS) if is_branch_end else 0.02
                nn.init.normal_(parameter, std=std)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of targets [B, T], nats."""
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
        logits = functional.linear(self.norm(self.layers(x)), self.tokens.weight)
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def rate(iteration: int) -> float:
    if iteration < WARMUP_ITERATIONS:
        return PEAK_RATE * (iteration + 1) / (WARMUP_ITERATIONS + 1)
    progress = (iteration - WARMUP_ITERATIONS) / (ITERATIONS - WARMUP_ITERATIONS)
    return FINAL_RATE + 0.5 * (1 + math.cos(math.pi * progress)) * (PEAK_RATE - FINAL_RATE)


def train(text: Tensor, vocab_size: int, seed: int) -> Model:
    """The whole recipe on the int64 token ids `text`."""
    torch.manual_seed(seed)
    model = Model(vocab_size)
    for _ in _steps_of(model, text):
        pass
    return model


def steps(text: Tensor, vocab_size: int, seed: int) -> Iterator[None]:
    """The same, one iteration each time."""
    torch.manual_seed(seed)
    return _steps_of(Model(vocab_size), text)


def _steps_of(model: Model, text: Tensor) -> Iterator[None]:
    decayed = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        betas=(0.9, 0.99),
    )
    for iteration in range(ITERATIONS):
        for group in optimizer.param_groups:
            group["lr"] = rate(iteration)
        starts = torch.randint(len(text) - CONTEXT, (BATCH,))
        windows = torch.stack([text[i : i + CONTEXT + 1] for i in starts])
        loss = model(windows[:, :-1], windows[:, 1:])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield


@torch.inference_mode()
def validation_loss(model: Model, text: Tensor) -> float:
    """Mean loss over every token of `text` but the first and an incomplete last window, nats: our own protocol."""
    count = (len(text) - 1) // CONTEXT
    inputs = text[: count * CONTEXT].view(count, CONTEXT)
    targets = text[1 : count * CONTEXT + 1].view(count, CONTEXT)
    chunks = zip(inputs.split(64), targets.split(64), strict=True)
    return sum(model(i, t).item() * len(i) for i, t in chunks) / count
