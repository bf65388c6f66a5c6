# ruff: noqa: D101, D102, D103 - the docstring of `Choices` says what they are
"""What `throughput.py` compares the proxy with: a textbook decoder, and steps from it to ours.

Everything here is straightforward `nn.Module` code in fp32, unless a flag says otherwise.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, kw_only=True, slots=True)
class Choices:
    """A decoder between the textbook's and ours."""

    width: int
    depth: int
    heads: int
    vocab_size: int = 256
    sequence_length: int = 128
    rotary: bool = True
    """Rotary position embeddings; else learned positions."""
    rms_norm: bool = True
    """RMSNorm with a gain, composed of basic operations; else LayerNorm without weights."""
    gelu: bool = True
    """GELU; else ReLU."""
    input_tokens: int = 1
    """Input embeddings of so many last tokens."""
    bf16: bool = False
    """Matrix products in bf16, attention in fp32."""


class RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.gain


class Linear(nn.Linear):
    """A matrix product, in bf16 where that is chosen."""

    def __init__(self, inputs: int, outputs: int, *, bf16: bool) -> None:
        super().__init__(inputs, outputs, bias=False)
        self.bf16 = bf16

    def forward(self, x: Tensor) -> Tensor:
        if not self.bf16:
            return super().forward(x)
        return functional.linear(x.bfloat16(), self.weight.bfloat16())


def make_norm(choices: Choices) -> nn.Module:
    if choices.rms_norm:
        return RMSNorm(choices.width)
    return nn.LayerNorm(choices.width, elementwise_affine=False)


class Block(nn.Module):
    def __init__(self, choices: Choices) -> None:
        super().__init__()
        D, bf16 = choices.width, choices.bf16
        self.choices = choices
        self.attention_norm, self.feed_forward_norm = make_norm(choices), make_norm(choices)
        self.qkv = Linear(D, 3 * D, bf16=bf16)
        self.out = Linear(D, D, bf16=bf16)
        self.up = Linear(D, 4 * D, bf16=bf16)
        self.down = Linear(4 * D, D, bf16=bf16)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        B, T, D = x.shape
        qkv = self.qkv(self.attention_norm(x)).float()
        q, k, v = qkv.view(B, T, 3, self.choices.heads, -1).permute(2, 0, 3, 1, 4)
        if self.choices.rotary:
            q, k = rotate(q, cosine, sine), rotate(k, cosine, sine)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(B, T, D))
        hidden = self.up(self.feed_forward_norm(x))
        hidden = functional.gelu(hidden) if self.choices.gelu else functional.relu(hidden)
        return x + self.down(hidden)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cosine + torch.cat((-second, first), -1) * sine


class Decoder(nn.Module):
    def __init__(self, choices: Choices) -> None:
        super().__init__()
        D, T, V = choices.width, choices.sequence_length, choices.vocab_size
        self.choices = choices
        self.tokens = nn.ModuleList(nn.Embedding(V, D) for _ in range(choices.input_tokens))
        self.position = None if choices.rotary else nn.Embedding(T, D)
        self.blocks = nn.ModuleList(Block(choices) for _ in range(choices.depth))
        self.norm = make_norm(choices)
        self.head = Linear(D, V, bf16=choices.bf16)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)
        K = D // choices.heads
        angles = torch.outer(torch.arange(T).float(), 10000 ** (-torch.arange(0, K, 2) / K))
        self.register_buffer("cosine", torch.cat((angles.cos(), angles.cos()), -1))
        self.register_buffer("sine", torch.cat((angles.sin(), angles.sin()), -1))

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns the loss of each token."""
        ids, labels = tokens[:, :-1], tokens[:, 1:]
        T = ids.shape[1]
        x = self.tokens[0](ids)
        for back in range(1, len(self.tokens)):
            x = x + self.tokens[back](functional.pad(ids, (back, 0))[:, :T])
        if self.position is not None:
            x = x + self.position(torch.arange(T))
        for block in self.blocks:
            x = block(x, self.cosine, self.sine)
        logits = self.head(self.norm(x)).float()
        return functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), reduction="none"
        ).view_as(labels)

    @property
    def params_non_embedding(self) -> int:
        return sum(p.numel() for p in self.blocks.parameters() if p.dim() == 2)

    @property
    def params_total(self) -> int:
        return sum(p.numel() for p in self.parameters())


class PlainTrainer:
    """A training step as the tutorials write it."""

    def __init__(self, choices: Choices, *, learning_rate: float) -> None:
        torch.manual_seed(0)
        self.model = Decoder(choices)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.1
        )

    def step(self, tokens: Tensor, *, learning_rate: float | None = None) -> None:
        if learning_rate is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate
        self.optimizer.zero_grad()
        self.model(tokens).mean().backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()

    def losses(self, tokens: Tensor) -> Tensor:
        with torch.inference_mode():
            return self.model(tokens).mean(1)
