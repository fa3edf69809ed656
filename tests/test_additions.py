"""Token shift and the log-n scale: nothing until they are trained, then what they say, within one document."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.eight_devices import on_eight_devices
from support.tiny_decoder import (
  POSITIONS,
  assert_close,
  compiled_logits_of,
  logits_of,
  random_params,
  random_tokens,
  tiny,
)

from drope_jax.additions import ADDITIONS, keys_seen, scaled_by_logn, shifted, with_additions
from drope_jax.errors import ConfigError
from drope_jax.interop.formats import choose
from drope_jax.interop.gguf_architectures import architecture_of
from drope_jax.model import init_params
from drope_jax.parameters import parameter_specs

ADDED = dict.fromkeys(ADDITIONS, True)
CONFIG = tiny(positions=POSITIONS["pattern"], **ADDED)  # windows, rotations, none, and a bias
SEGMENTS = jnp.asarray([[0, 0, 0, 0, 4, 4, 4, 4, 4], [3, 3, 7, 7, 7, 7, 7, 7, 7]])
PLACES = np.array([[0, 1, 2, 3, 0, 1, 2, 3, 4], [0, 1, 0, 1, 2, 3, 4, 5, 6]])


def test_they_change_nothing_before_they_are_trained():
  plain = tiny(positions=POSITIONS["pattern"])
  params, tokens = random_params(plain), random_tokens(2, 9)
  added = with_additions(params, parameter_specs(CONFIG))
  assert jax.tree.structure(added) == jax.tree.structure(parameter_specs(CONFIG))
  assert [added["layers"][name].shape for name in ADDITIONS] == [(2,), (2, 4)]
  # One operation at a time, so that no fusion rounds otherwise.
  np.testing.assert_array_equal(logits_of(added, CONFIG, tokens), logits_of(params, plain, tokens))
  fresh = init_params(CONFIG, jax.random.key(0))["layers"]
  assert not any(np.any(fresh[name]) for name in ADDITIONS)


def test_a_key_takes_a_share_of_the_one_before_it_in_its_document():
  k = np.random.default_rng(0).standard_normal((2, 9, 2, 6)).astype(np.float32)
  expected = k.copy()
  for row, place in zip(*np.nonzero(PLACES), strict=True):
    expected[row, place] += 0.3 * (k[row, place - 1] - k[row, place])
  assert_close(shifted(k, jnp.float32(0.3), SEGMENTS), expected)
  whole = k + 0.3 * (np.concatenate([k[:, :1], k[:, :-1]], 1) - k)
  assert_close(shifted(k, jnp.float32(0.3), None), whole)


def test_the_scale_counts_the_keys_that_a_query_sees():
  index = jnp.arange(9)[None]
  np.testing.assert_array_equal(keys_seen(index, SEGMENTS, None), PLACES + 1)
  np.testing.assert_array_equal(keys_seen(index, SEGMENTS, 3), np.minimum(PLACES + 1, 3))
  np.testing.assert_array_equal(keys_seen(index + 4, None, None), np.arange(5, 14)[None])  # behind four cached tokens
  q, strength = np.ones((1, 9, 2, 6), np.float32), np.array([0.0, 0.5], np.float32)
  scaled = scaled_by_logn(jnp.asarray(q), strength, keys_seen(index, None, None))
  assert_close(scaled[0, :, :, 0], 1 + np.log(np.arange(1, 10))[:, None] * strength)


def test_packed_documents_are_as_alone():
  params, tokens = random_params(CONFIG), random_tokens(2, 9)
  packed = compiled_logits_of(params, CONFIG, tokens, segments_BT=SEGMENTS, position_ids_BT=PLACES)
  for row, start in ((0, 4), (1, 2)):
    alone = compiled_logits_of(params, CONFIG, tokens[row : row + 1, start:])
    assert_close(packed[row, start:], alone[0], atol=1e-4)


@pytest.mark.parametrize("field", ADDITIONS)
def test_no_format_of_others_has_them(field):
  model = tiny(**{field: True})
  for refuses in (lambda: choose(None, model), lambda: architecture_of(model)):
    with pytest.raises(ConfigError, match=f"ModelConfig.{field} is True; "):
      refuses()


@pytest.mark.slow  # a process with eight devices
def test_rows_in_pieces_on_several_devices_give_the_same():
  answer = on_eight_devices("additions_mesh_script.py", jobs=[])
  assert answer["apart"] < 1e-4 < 0.1 < answer["matters"]
