"""Extend the context of language models by dropping their positional embeddings (DroPE, arXiv 2512.12167)."""

import importlib
from typing import TYPE_CHECKING, Any

from drope_jax import interrupts

interrupts.while_importing()

if TYPE_CHECKING:
  from drope_jax.checkpoint import load
  from drope_jax.drope import insert_qk_norm, temperature
  from drope_jax.generation import generate
  from drope_jax.model import Decoder
  from drope_jax.model_config import ModelConfig
  from drope_jax.positions import ALiBi, RoPE
  from drope_jax.scalings import NTK, PI, YaRN
  from drope_jax.transitions import drop

__version__ = "0.1.0"

__all__ = [
  "NTK",
  "PI",
  "ALiBi",
  "Decoder",
  "ModelConfig",
  "RoPE",
  "YaRN",
  "drop",
  "generate",
  "insert_qk_norm",
  "load",
  "temperature",
]

# Names are imported on first use, because a command that restarts itself (cpu.py) would otherwise import JAX, Flax,
# grain and orbax twice.
_MODULES = {
  "checkpoint": ("load",),
  "drope": ("insert_qk_norm", "temperature"),
  "generation": ("generate",),
  "model": ("Decoder",),
  "model_config": ("ModelConfig",),
  "positions": ("ALiBi", "RoPE"),
  "scalings": ("NTK", "PI", "YaRN"),
  "transitions": ("drop",),
}


def __getattr__(name: str) -> Any:
  home = next((module for module, names in _MODULES.items() if name in names), None)
  if home is None:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  return getattr(importlib.import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
