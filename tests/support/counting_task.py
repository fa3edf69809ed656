"""A checkpoint of a tiny model, and a task that counts how often it is measured."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from support.tiny_run import tiny_model, tiny_run

from drope_jax.checkpoint import Checkpoint
from drope_jax.data.tokenizers import ByteTokenizer
from drope_jax.errors import ConfigError
from drope_jax.evaluate.figures import Figure
from drope_jax.evaluate.methods import Inference
from drope_jax.evaluate.subject import Subject
from drope_jax.parameters import map_specs
from drope_jax.positions import RoPE

TOKENIZER = ByteTokenizer()
BOS_TOKENIZER = ByteTokenizer()
BOS_TOKENIZER.bos_id = 260  # an id that no text has
MODEL = tiny_model(positions=RoPE())
_RNG = np.random.default_rng(0)
PARAMS = map_specs(lambda spec: jnp.asarray(_RNG.normal(not spec.decay, 0.3, spec.shape), jnp.float32), MODEL)


def subject(**fields) -> Subject:
  return Subject(**{"params": PARAMS, "how": Inference(MODEL), "tokenizer": TOKENIZER, "train_context": 16, **fields})


def dropped_checkpoint() -> Checkpoint:
  """Of a model without embedding, trained at a context of 16."""
  config = tiny_run("nowhere", model=dataclasses.replace(MODEL, positions=None))
  return Checkpoint(config.model, PARAMS, config, 1, 1, config.data.context)


class Counting:
  """A task that records its measurements, and can be interrupted once."""

  def __init__(self, name, fails_at=None, samples=10, bounded=True):
    self.name, self.fails_at, self.samples, self.bounded = name, fails_at, samples, bounded
    self.measured, self.checked = [], []

  def settings(self, length):
    return {"samples": self.samples}

  def check(self, length, crop):
    self.checked.append((length, crop))
    if length == 1:
      raise ConfigError(f"{self.name}: too short")

  def measure(self, subject, length):
    if (subject.how.logit_scale, length) == self.fails_at:
      self.fails_at = None
      raise KeyboardInterrupt
    self.measured.append(length)
    return [Figure("score", 0.5, 10, 0.4, 0.6), Figure("score", 1.0, 5, by="depth", at=0.0)]
