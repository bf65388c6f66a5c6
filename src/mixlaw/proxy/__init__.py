"""Proxies: the small language models that are trained on different mixtures.

`shape` (which model a number of parameters means), `recipe` (what a run's spec needs to know),
`data` (batches), `model` and `optimizer` (PyTorch), `train` (the loop), `trainer` (what an attempt
calls). Only `model`, `optimizer`, `checkpoint` and `train` import PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mixlaw.proxy.data import bits_per_byte
    from mixlaw.proxy.recipe import ProxyRecipe, proxy_recipe
    from mixlaw.proxy.shape import ModelShape, nearest_shape
    from mixlaw.proxy.trainer import ProxyTrainer

_HOMES = {
    "ModelShape": "shape",
    "ProxyRecipe": "recipe",
    "ProxyTrainer": "trainer",
    "bits_per_byte": "data",
    "nearest_shape": "shape",
    "proxy_recipe": "recipe",
}

__all__ = [
    "ModelShape",
    "ProxyRecipe",
    "ProxyTrainer",
    "bits_per_byte",
    "nearest_shape",
    "proxy_recipe",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"mixlaw.proxy.{_HOMES[name]}"), name)
