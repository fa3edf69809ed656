"""Checkpoints of models with random weights, as an import writes them."""

import json

import jax
import jax.numpy as jnp
import numpy as np

from drope_jax import checkpoint
from drope_jax.data.tokenizers import train_bpe
from drope_jax.parameters import map_specs

CONTEXT = 16
ORIGIN = {"format": "test", "name": "none", "sha256": {}}


def random_params(model):
  """Weights without special values."""
  rng = np.random.default_rng(0)

  def draw(spec):
    mean = 1.0 if spec.init is jax.nn.initializers.ones else 0.0
    return jnp.asarray(rng.normal(mean, 0.3, spec.shape), jnp.float32)

  return map_specs(draw, model)


def write_checkpoint(model, directory, context=CONTEXT, tokenizer=True, params=None):
  """Writes weights (default: random) and, unless `tokenizer` is False, a tokenizer trained on a few words."""
  params = random_params(model) if params is None else params
  checkpoint.save_weights(directory, model, params, context, ORIGIN)
  if tokenizer:
    train_bpe(["a tokenizer of 10 words, or 1,024"], model.vocab_size, directory)
  return params


def edit_meta(workdir, step, change):
  """Applies `change` to the meta of a step, and removes the digest that would reveal it."""
  path = workdir / "checkpoints" / str(step) / "meta" / "metadata"
  meta = json.loads(path.read_text())
  change(meta)
  meta.pop("digest", None)
  path.write_text(json.dumps(meta))
