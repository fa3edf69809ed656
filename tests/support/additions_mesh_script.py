"""Run by test_additions.py with eight devices: logits of rows that are cut over them, against those of one device."""

import json
import sys

import jax
import jax.numpy as jnp
from support.tiny_decoder import random_params, random_tokens, tiny

from drope_jax.config import MeshConfig
from drope_jax.model import hidden_states, unembed
from drope_jax.parameters import map_specs
from drope_jax.sharding import make_mesh, named_sharding

CONFIG = tiny(vocab_size=16, positions=None, token_shift=True, logn_scale=True)


def main() -> None:
  json.load(sys.stdin)
  params, tokens = random_params(CONFIG), random_tokens(2, 32)
  segments = jnp.asarray([[0] * 5 + [1] * 27, [2] * 16 + [3] * 16])  # within a piece of a row, and at the end of one

  @jax.jit
  def gradient(params, tokens, segments):
    def loss(params):
      return jnp.square(unembed(params, hidden_states(params, CONFIG, tokens, segments_BT=segments).states_BTD)).sum()

    return jax.value_and_grad(loss)(params)

  alone = gradient(params, tokens, segments)
  mesh = make_mesh(MeshConfig(data=1, tensor=2, context=4))
  with jax.set_mesh(mesh):
    shardings = map_specs(lambda spec: named_sharding(mesh, spec.dimensions), CONFIG)
    rows = jax.device_put((tokens, segments), named_sharding(mesh, ("batch", "length")))
    cut = gradient(jax.device_put(params, shardings), *rows)

  def apart(ours, theirs):
    return jax.tree.reduce(max, jax.tree.map(lambda a, b: float(abs(a - b).max() / abs(a).max()), ours, theirs))

  layers = params["layers"]
  off = {**params, "layers": {**layers, "token_shift": 0 * layers["token_shift"]}}
  print(
    json.dumps(
      {
        "devices": jax.device_count(),
        "apart": apart(alone, jax.device_get(cut)),
        "matters": apart(alone, gradient(off, tokens, segments)),
      }
    )
  )


if __name__ == "__main__":
  main()
