"""The proxy: a decoder-only transformer whose gradient is written out.

    x = token[t] + previous[t-1] + before_previous[t-2] + position
    x = x + Attention(norm(x)) W_out ;  x = x + relu(norm(x) W_up) W_down      (in every layer)
    logits = norm(x) W_head

Matrix products, and what only they read, are in the compute type (bf16 where the processor has it);
the residual stream, norms, logits and weights are in fp32. At these sizes a step on a CPU is spent
between matrix products, so what autograd and `nn.Module` would add there is left out: one flat
buffer of weights and one of gradients, attention as three matrix products that keep their bf16
softmax (PyTorch's flash kernel takes twice the time forward and back), norms without weights of
their own, no rotation of queries and keys. Tests compare with autograd in float64.

Shape letters: B sequences, T tokens of each, N = B T, V vocabulary, D width, H heads, K head width,
S = B H, F feed-forward width.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mixlaw.proxy.shape import FEED_FORWARD_FACTOR, INPUT_TOKENS, ModelShape

aten = torch.ops.aten

NORM_EPSILON = 1e-5
SMALLEST_PROBABILITY = 1e-38
"""A label's probability may underflow in fp32; its loss shall stay finite. A NaN stays one."""


class FlatTensors:
    """A model's tensors as named views of one flat buffer: what treats all alike is one call."""

    def __init__(self, shape: ModelShape, flat: Tensor) -> None:
        self.flat = flat
        self.views: dict[str, Tensor] = {}
        start = 0
        for name, size in tensor_sizes(shape):
            count = math.prod(size)
            self.views[name] = flat[start : start + count].view(size)
            start += count

    def __getitem__(self, name: str) -> Tensor:
        return self.views[name]


def tensor_sizes(shape: ModelShape) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yields name and size of every tensor, in the order of the flat buffer."""
    V, D, F = shape.vocab_size, shape.width, FEED_FORWARD_FACTOR * shape.width
    for back in range(INPUT_TOKENS):
        yield f"token-{back}", (V, D)
    yield "position", (shape.sequence_length, D)
    for layer in range(shape.depth):
        yield f"{layer}.qkv", (D, 3 * D)
        yield f"{layer}.out", (D, D)
        yield f"{layer}.up", (D, F)
        yield f"{layer}.down", (F, D)
    yield "head", (D, V)


def initial_weights(shape: ModelShape, seed: int) -> np.ndarray:
    """Returns all weights as one flat array: normal, with what ends a layer scaled down by depth.

    The scale 0.5 / sqrt(D), for embeddings too, was the best of seven at widths 64 and 128
    (docs/log.md).
    """
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed % 2**64, 1])))
    parts: list[np.ndarray] = []
    for name, size in tensor_sizes(shape):
        scale = 0.5 / math.sqrt(shape.width)
        if name.endswith((".out", ".down")):
            scale /= math.sqrt(2 * shape.depth)
        parts.append(rng.standard_normal(math.prod(size), dtype=np.float32) * np.float32(scale))
    return np.concatenate(parts)


class AttentionTape(NamedTuple):
    """What the backward pass of an attention part reads."""

    x_ND: Tensor
    mean_N1: Tensor
    rstd_N1: Tensor
    h_ND: Tensor
    q_STK: Tensor
    k_STK: Tensor
    v_STK: Tensor
    p_STT: Tensor
    y_ND: Tensor


class FeedForwardTape(NamedTuple):
    """What the backward pass of a feed-forward part reads."""

    x_ND: Tensor
    mean_N1: Tensor
    rstd_N1: Tensor
    h_ND: Tensor
    u_NF: Tensor


class HeadTape(NamedTuple):
    """What the backward pass of the output reads."""

    x_ND: Tensor
    mean_N1: Tensor
    rstd_N1: Tensor
    h_ND: Tensor


@dataclass(frozen=True, slots=True)
class Tape:
    """What the backward pass reads."""

    ids_N: list[Tensor]
    layers: list[tuple[AttentionTape, FeedForwardTape]]
    head: HeadTape


class ProxyModel:
    """The model without its weights: shape, compute type, device, and a few constants.

    Args:
        shape: Dimensions.
        dtype: Type of matrix products.
        device: Where to compute.
    """

    def __init__(self, shape: ModelShape, *, dtype: torch.dtype, device: torch.device) -> None:
        self.shape = shape
        self.dtype = dtype
        T, D = shape.sequence_length, shape.width
        residual = torch.float64 if dtype == torch.float64 else torch.float32
        self._mask_TT = torch.full((T, T), -math.inf, dtype=dtype, device=device).triu(1)
        # With constant weights the CPU's norm takes its vectorised path.
        self._ones_D = torch.ones(D, dtype=residual, device=device)
        self._zeros_D = torch.zeros(D, dtype=residual, device=device)
        self._head_scale = (shape.width // shape.heads) ** -0.5

    def matrices_of(self, weights: FlatTensors) -> FlatTensors:
        """Returns the weights in the type of matrix products: themselves where that is theirs."""
        if weights.flat.dtype == self.dtype:
            return weights
        return FlatTensors(self.shape, weights.flat.to(self.dtype))

    def sequence_losses(
        self, weights: FlatTensors, matrices: FlatTensors, tokens: Tensor
    ) -> Tensor:
        """Returns the mean loss of each sequence, in nats per token.

        Args:
            weights: All weights.
            matrices: The same in the type of matrix products.
            tokens: B x (T + 1) tokens.
        """
        return self.token_losses(weights, matrices, tokens).mean(1)

    def token_losses(self, weights: FlatTensors, matrices: FlatTensors, tokens: Tensor) -> Tensor:
        """Returns the loss of each token but the first of each sequence, B x T, in nats.

        Args:
            weights: All weights.
            matrices: The same in the type of matrix products.
            tokens: B x (T + 1) tokens.
        """
        logits_NV, _ = self._forward(weights, matrices, tokens[:, :-1])
        losses_N = functional.cross_entropy(logits_NV, tokens[:, 1:].reshape(-1), reduction="none")
        return losses_N.view(len(tokens), -1)

    def loss_and_gradients(
        self, weights: FlatTensors, matrices: FlatTensors, tokens: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the mean loss of all tokens, and the gradients of their sum.

        Args:
            weights: All weights.
            matrices: The same in the type of matrix products.
            tokens: B x (T + 1) tokens.
        """
        label_N1 = tokens[:, 1:].reshape(-1, 1)
        logits_NV, tape = self._forward(weights, matrices, tokens[:, :-1])
        p_NV = torch.softmax(logits_NV, -1)
        p_label_N1 = p_NV.gather(1, label_N1)
        loss = -p_label_N1.clamp_min(SMALLEST_PROBABILITY).log().mean()
        p_NV.scatter_(1, label_N1, p_label_N1 - 1)  # the gradient of the loss by the logits
        return loss, self._backward(p_NV.to(self.dtype), matrices, tape)

    # ------------------------------------------------------------------ forward

    def _forward(
        self, weights: FlatTensors, matrices: FlatTensors, tokens_BT: Tensor
    ) -> tuple[Tensor, Tape]:
        B, T = tokens_BT.shape
        ids_N = [  # before the first token comes token 0
            functional.pad(tokens_BT[:, : T - back], (back, 0)).reshape(-1)
            for back in range(INPUT_TOKENS)
        ]
        x_ND = functional.embedding(ids_N[0], weights["token-0"])
        for back in range(1, INPUT_TOKENS):
            x_ND += functional.embedding(ids_N[back], weights[f"token-{back}"])
        x_ND.view(B, T, -1).add_(weights["position"])
        layers: list[tuple[AttentionTape, FeedForwardTape]] = []
        for layer in range(self.shape.depth):
            x_ND, attention = self._attend(x_ND, matrices, layer)
            x_ND, feed_forward = self._feed_forward(x_ND, matrices, layer)
            layers.append((attention, feed_forward))
        h_ND, mean_N1, rstd_N1 = self._norm(x_ND)
        logits_NV = torch.mm(h_ND, matrices["head"]).to(x_ND.dtype)
        return logits_NV, Tape(ids_N, layers, HeadTape(x_ND, mean_N1, rstd_N1, h_ND))

    def _norm(self, x_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h_ND, mean_N1, rstd_N1 = torch.native_layer_norm(
            x_ND, [self.shape.width], self._ones_D, self._zeros_D, NORM_EPSILON
        )
        return h_ND.to(self.dtype), mean_N1, rstd_N1

    def _attend(
        self, x_ND: Tensor, matrices: FlatTensors, layer: int
    ) -> tuple[Tensor, AttentionTape]:
        h_ND, mean_N1, rstd_N1 = self._norm(x_ND)
        qkv_3STK = self._split_heads(torch.mm(h_ND, matrices[f"{layer}.qkv"]), parts=3)
        q_STK, k_STK, v_STK = qkv_3STK[0], qkv_3STK[1], qkv_3STK[2]
        k_STK.mul_(self._head_scale)  # the smallest of the tensors that could carry the scale
        p_STT = torch.softmax(torch.baddbmm(self._mask_TT, q_STK, k_STK.transpose(1, 2)), -1)
        y_ND = self._join_heads([torch.bmm(p_STT, v_STK)])
        out_ND = torch.mm(y_ND, matrices[f"{layer}.out"]) + x_ND
        tape = AttentionTape(x_ND, mean_N1, rstd_N1, h_ND, q_STK, k_STK, v_STK, p_STT, y_ND)
        return out_ND, tape

    def _feed_forward(
        self, x_ND: Tensor, matrices: FlatTensors, layer: int
    ) -> tuple[Tensor, FeedForwardTape]:
        h_ND, mean_N1, rstd_N1 = self._norm(x_ND)
        u_NF = torch.mm(h_ND, matrices[f"{layer}.up"]).relu_()
        out_ND = torch.mm(u_NF, matrices[f"{layer}.down"]) + x_ND
        return out_ND, FeedForwardTape(x_ND, mean_N1, rstd_N1, h_ND, u_NF)

    # ------------------------------------------------------------------ backward

    def _backward(self, dlogits_NV: Tensor, matrices: FlatTensors, tape: Tape) -> dict[str, Tensor]:
        gradients = {"head": torch.mm(tape.head.h_ND.t(), dlogits_NV)}
        dx_ND = self._norm_backward(torch.mm(dlogits_NV, matrices["head"].t()), tape.head)
        for layer in reversed(range(self.shape.depth)):
            attention, feed_forward = tape.layers[layer]
            dx_ND = self._feed_forward_backward(dx_ND, matrices, gradients, feed_forward, layer)
            dx_ND = self._attend_backward(dx_ND, matrices, gradients, attention, layer)
        T, D, V = self.shape.sequence_length, self.shape.width, self.shape.vocab_size
        for back, ids_N in enumerate(tape.ids_N):
            gradients[f"token-{back}"] = dx_ND.new_zeros(V, D).index_add_(0, ids_N, dx_ND)
        gradients["position"] = dx_ND.view(-1, T, D).sum(0)
        return gradients

    def _norm_backward(
        self, dh_ND: Tensor, tape: AttentionTape | FeedForwardTape | HeadTape
    ) -> Tensor:
        return aten.native_layer_norm_backward(
            dh_ND.to(tape.x_ND.dtype),
            tape.x_ND,
            [self.shape.width],
            tape.mean_N1,
            tape.rstd_N1,
            None,
            None,
            [True, False, False],
        )[0]

    def _feed_forward_backward(
        self,
        dx_ND: Tensor,
        matrices: FlatTensors,
        gradients: dict[str, Tensor],
        tape: FeedForwardTape,
        layer: int,
    ) -> Tensor:
        d_ND = dx_ND.to(self.dtype)
        gradients[f"{layer}.down"] = torch.mm(tape.u_NF.t(), d_ND)
        du_NF = torch.mm(d_ND, matrices[f"{layer}.down"].t())
        du_NF = aten.threshold_backward(du_NF, tape.u_NF, 0)
        gradients[f"{layer}.up"] = torch.mm(tape.h_ND.t(), du_NF)
        dh_ND = torch.mm(du_NF, matrices[f"{layer}.up"].t())
        return dx_ND + self._norm_backward(dh_ND, tape)

    def _attend_backward(
        self,
        dx_ND: Tensor,
        matrices: FlatTensors,
        gradients: dict[str, Tensor],
        tape: AttentionTape,
        layer: int,
    ) -> Tensor:
        d_ND = dx_ND.to(self.dtype)
        gradients[f"{layer}.out"] = torch.mm(tape.y_ND.t(), d_ND)
        dy_STK = self._split_heads(torch.mm(d_ND, matrices[f"{layer}.out"].t()), parts=1)[0]
        dv_STK = torch.bmm(tape.p_STT.transpose(1, 2), dy_STK)
        dp_STT = torch.bmm(dy_STK, tape.v_STK.transpose(1, 2))
        ds_STT = aten._softmax_backward_data(dp_STT, tape.p_STT, -1, self.dtype)
        dq_STK = torch.bmm(ds_STT, tape.k_STK)  # the keys on tape are scaled
        dk_STK = torch.bmm(ds_STT.transpose(1, 2), tape.q_STK).mul_(self._head_scale)
        dqkv_N3D = self._join_heads([dq_STK, dk_STK, dv_STK])
        gradients[f"{layer}.qkv"] = torch.mm(tape.h_ND.t(), dqkv_N3D)
        dh_ND = torch.mm(dqkv_N3D, matrices[f"{layer}.qkv"].t())
        return dx_ND + self._norm_backward(dh_ND, tape)

    # ------------------------------------------------------------------ heads

    def _split_heads(self, x_NC: Tensor, *, parts: int) -> Tensor:
        """Returns one or several D-wide parts of each token's columns as parts x S x T x K."""
        T, H = self.shape.sequence_length, self.shape.heads
        K = self.shape.width // H
        x = x_NC.view(-1, T, parts, H, K).permute(2, 0, 3, 1, 4)
        return x.contiguous().view(parts, -1, T, K)

    def _join_heads(self, parts_STK: list[Tensor]) -> Tensor:
        """Returns S x T x K tensors as the columns of each token, N x (parts D)."""
        T, H = self.shape.sequence_length, self.shape.heads
        K = self.shape.width // H
        parts = [part.view(-1, H, T, K).transpose(1, 2) for part in parts_STK]
        return torch.stack(parts, dim=2).view(-1, len(parts) * self.shape.width)
