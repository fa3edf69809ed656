"""Extend the context of language models by dropping their positional embeddings (DroPE, arXiv 2512.12167)."""

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
