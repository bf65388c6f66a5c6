# ruff: noqa: E402 - without PyTorch the module is skipped before its imports
from collections.abc import Mapping

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import Tensor
from torch.nn import functional

from mixlaw.proxy.model import FlatTensors, ProxyModel, initial_weights, tensor_sizes
from mixlaw.proxy.optimizer import EMA_GAMMA, Optimizer, schedule_factor
from mixlaw.proxy.shape import ModelShape

pytestmark = pytest.mark.train

SHAPE = ModelShape(width=64, depth=2, vocab_size=41, sequence_length=12)
WIDE = ModelShape(width=96, depth=1, vocab_size=300, sequence_length=7)
CPU = torch.device("cpu")


def make_model(
    shape: ModelShape, dtype: torch.dtype
) -> tuple[ProxyModel, FlatTensors, FlatTensors]:
    model = ProxyModel(shape, dtype=dtype, device=CPU)
    flat = 3 * torch.from_numpy(initial_weights(shape, 0))
    weights = FlatTensors(shape, flat.double() if dtype == torch.float64 else flat)
    return model, weights, model.matrices_of(weights)


def make_tokens(shape: ModelShape, sequences: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    size = (sequences, shape.sequence_length + 1)
    return torch.randint(0, shape.vocab_size, size, generator=generator)


def textbook_losses(shape: ModelShape, w: Mapping[str, Tensor], tokens: Tensor) -> Tensor:
    """The same model by PyTorch's own layers, differentiated by autograd."""
    ids, D = tokens[:, :-1], shape.width
    B, T = ids.shape
    x = w["position"] + sum(
        w[f"token-{back}"][functional.pad(ids, (back, 0))[:, :T]] for back in range(3)
    )
    for layer in range(shape.depth):
        qkv = functional.layer_norm(x, [D]) @ w[f"{layer}.qkv"]
        q, k, v = qkv.view(B, T, 3, shape.heads, -1).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + y.transpose(1, 2).reshape(B, T, D) @ w[f"{layer}.out"]
        x = x + torch.relu(functional.layer_norm(x, [D]) @ w[f"{layer}.up"]) @ w[f"{layer}.down"]
    logits = functional.layer_norm(x, [D]) @ w["head"]
    return functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")


@pytest.mark.parametrize("shape", [SHAPE, WIDE])
def test_losses_and_gradients_are_those_of_autograd(shape: ModelShape) -> None:
    model, weights, matrices = make_model(shape, torch.float64)
    tokens = make_tokens(shape)
    leaves = {name: view.clone().requires_grad_() for name, view in weights.views.items()}
    expected = textbook_losses(shape, leaves, tokens)
    expected.sum().backward()
    with torch.inference_mode():
        loss, gradients = model.loss_and_gradients(weights, matrices, tokens)
        losses = model.sequence_losses(weights, matrices, tokens)
    torch.testing.assert_close(loss, expected.detach().mean(), rtol=1e-12, atol=0)
    torch.testing.assert_close(losses, expected.detach().mean(1), rtol=1e-12, atol=0)
    assert gradients.keys() == leaves.keys()
    for name, leaf in leaves.items():
        torch.testing.assert_close(gradients[name], leaf.grad, rtol=1e-9, atol=1e-12)


def test_a_token_never_sees_what_comes_after_it() -> None:
    model, weights, matrices = make_model(SHAPE, torch.float64)
    tokens = make_tokens(SHAPE, sequences=1)
    changed = tokens.clone()
    changed[0, 6:] = (changed[0, 6:] + 1) % SHAPE.vocab_size
    logits, _ = model._forward(weights, matrices, tokens[:, :-1])
    other, _ = model._forward(weights, matrices, changed[:, :-1])
    assert torch.equal(logits[:6], other[:6])
    assert not torch.equal(logits[6], other[6])


def test_bf16_gradients_err_no_more_than_those_of_autocast() -> None:
    tokens = make_tokens(SHAPE, sequences=32)
    model, weights, matrices = make_model(SHAPE, torch.float32)
    rough_model, _, rough_matrices = make_model(SHAPE, torch.bfloat16)
    loss, gradients = model.loss_and_gradients(weights, matrices, tokens)
    rough_loss, rough_gradients = rough_model.loss_and_gradients(weights, rough_matrices, tokens)
    leaves = {name: view.clone().requires_grad_() for name, view in weights.views.items()}
    with torch.autocast("cpu", torch.bfloat16):
        autocast_losses = textbook_losses(SHAPE, leaves, tokens)
    autocast_losses.sum().backward()
    assert float(rough_loss) == pytest.approx(float(loss), rel=2**-9)
    for name, gradient in gradients.items():
        error = (rough_gradients[name].float() - gradient).norm()
        autocast_error = (leaves[name].grad - gradient).norm()
        assert float(error) < 1.25 * float(autocast_error), name


def test_untrained_weights_guess_about_uniformly() -> None:
    shape = ModelShape(width=64, depth=1, vocab_size=256, sequence_length=32)
    model = ProxyModel(shape, dtype=torch.float32, device=CPU)
    weights = FlatTensors(shape, torch.from_numpy(initial_weights(shape, 0)))
    losses = model.sequence_losses(weights, weights, make_tokens(shape, 64))
    assert float(losses.mean()) == pytest.approx(np.log(256), rel=0.03)


def test_initial_weights_follow_the_seed() -> None:
    assert np.array_equal(initial_weights(SHAPE, 5), initial_weights(SHAPE, 5))
    assert not np.array_equal(initial_weights(SHAPE, 5), initial_weights(SHAPE, 6))
    assert initial_weights(SHAPE, -1).dtype == np.float32
    assert len(initial_weights(SHAPE, 0)) == SHAPE.params_total


def test_every_tensor_starts_at_a_cache_line() -> None:
    # MKL's sums may depend on alignment; 64 bytes hold 32 numbers in bf16.
    start = 0
    for _, size in tensor_sizes(SHAPE):
        assert start % 32 == 0
        start += size[0] * size[1]


def test_a_label_of_vanishing_probability_has_a_finite_loss_and_a_nan_stays_one() -> None:
    model, weights, _ = make_model(SHAPE, torch.float32)
    weights["head"].mul_(1e4)
    tokens = make_tokens(SHAPE)
    loss, _ = model.loss_and_gradients(weights, weights, tokens)
    assert np.isfinite(float(loss))
    weights["head"][0, 0] = torch.nan
    loss, _ = model.loss_and_gradients(weights, weights, tokens)
    assert np.isnan(float(loss))


@pytest.mark.parametrize(
    ("schedule", "step", "factor"),
    [
        ("constant", 0, 1 / 50),
        ("constant", 49, 1.0),
        ("constant", 999, 1.0),
        ("cosine", 0, 1 / 50),
        ("cosine", 500, 0.55),
        ("cosine", 999, 0.1),
        ("wsd", 24, 0.5),
        ("wsd", 800, 1.0),
        ("wsd", 900, 0.5),
        ("wsd", 999, 0.005),
    ],
)
def test_schedules_have_their_textbook_values(schedule: str, step: int, factor: float) -> None:
    found = schedule_factor(schedule, step=step, steps=1000)
    assert found == pytest.approx(factor, abs=1e-5)


def test_a_constant_schedule_does_not_know_where_the_run_ends() -> None:
    short = [schedule_factor("constant", step=s, steps=200) for s in range(200)]
    assert short == [schedule_factor("constant", step=s, steps=9999) for s in range(200)]


def test_updates_are_those_of_adamw_on_the_clipped_mean_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    flat = torch.randn(1000, generator=generator)
    expected = torch.nn.Parameter(flat.clone())
    adamw = torch.optim.AdamW([expected], lr=1e-2, betas=(0.9, 0.98), weight_decay=0.1)
    gradient = torch.empty(1000)
    optimizer = Optimizer(flat, gradient)
    average = None
    for step in range(20):
        drawn = torch.randn(1000, generator=generator) * (1 if step % 2 else 1e-3)
        gradient.copy_(drawn * 64)
        optimizer.update(step=step, learning_rate=1e-2, tokens=64)
        expected.grad = drawn.clone()
        torch.nn.utils.clip_grad_norm_([expected], 1.0)
        adamw.step()
        kept = (1 - 1 / (step + 1)) ** (EMA_GAMMA + 1)
        weights = expected.detach().double()
        average = weights if average is None else kept * average + (1 - kept) * weights
    torch.testing.assert_close(flat, expected.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(optimizer.average.double(), average, rtol=1e-5, atol=1e-6)
