"""Every key of transformers' rotations: read, passed over with a warning, or refused."""

import inspect
import logging
import re

import numpy as np
import pytest
from support.pretrained import THETA, transformers

from drope_jax.errors import ConfigError
from drope_jax.interop.families import FAMILIES
from drope_jax.interop.rope_parameters import NEUTRAL_FACTOR, READ_KEYS, read_rope
from drope_jax.interop.rope_writing import as_rope, write_rope
from drope_jax.positions import RoPE
from drope_jax.scalings import NTK, PI, DynamicNTK, Llama3, NTKByParts, YaRN

rope_utils = pytest.importorskip("transformers.modeling_rope_utils")

CONTEXT, HEAD_DIM = 64, 12
LLAMA = FAMILIES["llama"]
ORIGINAL = {"original_max_position_embeddings": 16}
ONES = [1.0] * (HEAD_DIM // 2)
LOWEST = {  # rope_type: what it cannot be without
  "default": {},
  "linear": {"factor": 4.0},
  "dynamic": {"factor": 4.0},
  "yarn": {"factor": 4.0, **ORIGINAL},
  "llama3": {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **ORIGINAL},
  "longrope": {"short_factor": ONES, "long_factor": ONES, "attention_factor": 1.0, **ORIGINAL},
  "proportional": {"partial_rotary_factor": 0.5},
}
# A value of each key that would change a rotation which reads it.
CHANGED = {
  "rope_theta": 50.0,
  "rope_type": "linear",
  "partial_rotary_factor": 0.75,
  "factor": 2.0,
  "original_max_position_embeddings": 32,
  "attention_factor": 1.5,
  "beta_fast": 8.0,
  "beta_slow": 2.0,
  "short_factor": [2.0] * (HEAD_DIM // 2),
  "long_factor": [2.0] * (HEAD_DIM // 2),
  "low_freq_factor": 2.0,
  "high_freq_factor": 8.0,
  "mscale": 0.7,
  "mscale_all_dim": 0.5,
  "truncate": False,
  "mrope_section": [2, 2, 2],
}

# With one list for all lengths and an attention factor, they change nothing there either.
WITHOUT_EFFECT = {("longrope", "factor"), ("longrope", "original_max_position_embeddings")}


def read(**given):
  config = {"rope_parameters": {"rope_theta": THETA, **given}}
  return read_rope(config, 10_000.0, CONTEXT, HEAD_DIM, "config.json")


def test_every_key_and_every_kind_of_transformers_is_known():
  source = inspect.getsource(rope_utils)
  named = set(re.findall(r"rope_parameters(?:_dict)?(?:\.get\(|\[)\"(\w+)\"", source))
  assert named | set(rope_utils.RopeParameters.__annotations__) == CHANGED.keys() | {"type"}
  assert {*rope_utils.ROPE_INIT_FUNCTIONS, "default"} == READ_KEYS.keys() == LOWEST.keys()


def read_there(kind):
  """The keys that the function of a kind reads, by its source."""
  if kind == "default":
    return {"rope_theta"}
  source = inspect.getsource(rope_utils.ROPE_INIT_FUNCTIONS[kind])
  return set(re.findall(r"rope_parameters(?:_dict)?(?:\.get\(|\[)\"(\w+)\"", source))


@pytest.mark.parametrize("kind", LOWEST)
def test_what_becomes_of_each_key(kind, caplog):
  """A key that the class reads changes our rotation or is refused; one that it does not read is passed over."""
  lowest = {"rope_type": kind, **LOWEST[kind]}
  plain = read(**lowest)
  assert not caplog.text
  became = {}
  for key in CHANGED.keys() - {"rope_type"}:
    caplog.clear()
    more = {"mscale": 0.7, "mscale_all_dim": 0.5} if key.startswith("mscale") else {}
    try:
      changed = read(**{**lowest, **more, key: CHANGED[key]})
    except ConfigError as error:
      assert key in str(error) or (kind == "longrope" and "factor" in str(error))
      became[key] = "refused"
    else:
      became[key] = "passed over" if f"rope_parameters.{key}" in caplog.text else "read"
      assert (changed != plain) == (became[key] == "read") or (kind, key) in WITHOUT_EFFECT, key
  there = read_there(kind) | {"partial_rotary_factor"}  # which the class itself reads for "default"
  assert {key for key, what in became.items() if what == "passed over"} == became.keys() - there


def test_a_kind_that_is_unknown_is_refused():
  with pytest.raises(ConfigError, match=r"rope_parameters.rope_type is 'axial'; allowed: default"):
    read(rope_type="axial")


def test_null_is_no_value(caplog):
  assert read(rope_type="yarn", factor=None, **ORIGINAL, mscale=None, finetuned=None) == RoPE(THETA, YaRN(4.0, 16))
  assert not caplog.text


def test_one_warning_names_all_keys_that_are_passed_over(caplog):
  with caplog.at_level(logging.WARNING):
    read(rope_type="yarn", factor=4.0, **ORIGINAL, attn_factor=0.9, finetuned=True)
  (record,) = caplog.records
  assert "attn_factor" in record.message and "finetuned" in record.message


def test_deepseeks_mscale_is_the_attention_factor_of_transformers():
  given = {"rope_type": "yarn", "factor": 4.0, **ORIGINAL, "mscale": 0.7, "mscale_all_dim": 0.5}
  config = transformers.LlamaConfig(
    head_dim=HEAD_DIM, max_position_embeddings=CONTEXT, rope_parameters={**given, "rope_theta": THETA}
  )
  omega, factor = rope_utils.ROPE_INIT_FUNCTIONS["yarn"](config)
  table = read(**given).frequencies(HEAD_DIM)
  assert table.factor == pytest.approx(factor, rel=1e-6)
  np.testing.assert_allclose(table.omega, omega, rtol=1e-5)


CONTRADICTIONS = {
  "theta": ({"rope_theta": 20.0, "rope_parameters": {"rope_theta": 30.0}}, ("rope_theta is 20.0", "30.0")),
  "theta of version 4": (
    {"rope_theta": 20.0, "rope_scaling": {"type": "linear", "factor": 2.0, "rope_theta": 30.0}},
    ("rope_theta is 20.0", "rope_scaling.rope_theta is 30.0"),
  ),
  "original": (
    {"original_max_position_embeddings": 8, "rope_scaling": {"rope_type": "yarn", "factor": 2.0, **ORIGINAL}},
    ("is 8", "rope_scaling.original_max_position_embeddings is 16"),
  ),
  "names of the kind": ({"rope_scaling": {"rope_type": "linear", "type": "dynamic", "factor": 2.0}}, ("linear",)),
  "both objects": (
    {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "linear", "factor": 4.0}},
    ("rope_parameters.factor is 4.0", "rope_scaling.factor is 2.0"),
  ),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_two_places_that_differ_are_refused_by_name(name):
  config, said = CONTRADICTIONS[name]
  with pytest.raises(ConfigError) as error:
    read_rope(config, 10_000.0, CONTEXT, HEAD_DIM, "config.json")
  assert all(part in str(error.value) for part in said) and str(error.value).startswith("config.json: ")


def test_two_places_that_agree_are_read():
  config = {"rope_theta": 20.0, "rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 2.0}}
  config["rope_parameters"] = {"rope_type": "linear", "factor": 2.0, "rope_theta": 20.0}
  assert read_rope(config, 10_000.0, CONTEXT, HEAD_DIM, "config.json") == RoPE(20.0, PI(2.0))
  linear = {**ORIGINAL, "rope_scaling": {"type": "linear", "factor": 2.0, "original_max_position_embeddings": 8}}
  assert read_rope(linear, 10_000.0, CONTEXT, HEAD_DIM, "x") == RoPE(10_000.0, PI(2.0))  # which does not read it


ROTATIONS = [
  RoPE(THETA),
  RoPE(THETA, PI(4.0)),
  RoPE(THETA, DynamicNTK(CONTEXT, 2.0)),
  RoPE(THETA, YaRN(4.0, 16, 8.0, 1.0, 1.25)),
  RoPE(THETA, Llama3(4.0, 16, 0.2, 2.0)),
  *(RoPE(THETA, pairs=pairs) for pairs in range(1, HEAD_DIM // 2)),
  None,
]


@pytest.mark.parametrize("rope", ROTATIONS, ids=str)
def test_what_is_written_is_read_as_it_was(rope, caplog):
  config = {"rope_parameters": write_rope(rope, CONTEXT, HEAD_DIM, LLAMA)}
  assert read_rope(config, 10_000.0, CONTEXT, HEAD_DIM, "x") == rope
  assert not caplog.text


@pytest.mark.parametrize("scaling", [None, PI(4.0), YaRN(4.0, 16), Llama3(4.0, 16), NTKByParts(4.0, 16)], ids=str)
@pytest.mark.parametrize("length", [8, 4 * CONTEXT])
def test_a_partial_drop_has_the_frequencies_of_transformers(scaling, length):
  """Also with a scaling of the pairs that stay, at any length."""
  rope = RoPE(THETA, scaling, pairs=4)
  written = write_rope(rope, CONTEXT, HEAD_DIM, LLAMA)
  config = transformers.LlamaConfig(head_dim=HEAD_DIM, max_position_embeddings=CONTEXT, rope_parameters=written)
  omega, factor = rope_utils.ROPE_INIT_FUNCTIONS["longrope"](config, seq_len=length)
  table = rope.frequencies(HEAD_DIM)
  np.testing.assert_allclose(omega, table.omega, rtol=1e-5, atol=1e-29)
  assert factor == pytest.approx(table.factor)


def test_other_factors_of_longrope_are_refused():
  same = {"rope_type": "longrope", "attention_factor": 1.0, **ORIGINAL}
  for factors, said in (
    ({"short_factor": ONES, "long_factor": [2.0] * 6}, "long_factor differs"),
    ({"short_factor": [1.0, 2.0, 4.0] * 2, "long_factor": [1.0, 2.0, 4.0] * 2}, "short_factor has 2.0"),
    ({"short_factor": ONES[1:], "long_factor": ONES[1:]}, "a list of 6 numbers"),
    ({"short_factor": ONES, "long_factor": ONES, "attention_factor": 1.25}, "attention_factor is 1.25"),
    ({"short_factor": ONES, "long_factor": ONES, "attention_factor": None, "factor": 4.0}, "attention_factor is 1."),
  ):
    with pytest.raises(ConfigError, match=said):
      read(**{**same, **factors})


@pytest.mark.parametrize(("share", "pairs"), [(0.0, None), (0.5, 3), (0.34, 2), (1.0, 6)])
def test_a_proportional_rotation_is_a_partial_one(share, pairs):
  expected = None if pairs is None else RoPE(THETA, pairs=None if pairs == 6 else pairs)
  assert read(rope_type="proportional", partial_rotary_factor=share) == expected
  config = transformers.LlamaConfig(
    head_dim=HEAD_DIM,
    rope_parameters={"rope_type": "proportional", "rope_theta": THETA, "partial_rotary_factor": share},
  )
  omega, _ = rope_utils.ROPE_INIT_FUNCTIONS["proportional"](config)
  ours = np.zeros(6) if expected is None else expected.frequencies(HEAD_DIM).omega
  np.testing.assert_allclose(omega, ours, rtol=1e-6)


def test_ntk_is_another_theta():
  rope = as_rope(RoPE(THETA, NTK(4.0), pairs=3), 4, HEAD_DIM)
  np.testing.assert_allclose(
    rope.frequencies(HEAD_DIM).omega, RoPE(THETA, NTK(4.0), pairs=3).frequencies(HEAD_DIM).omega, rtol=1e-12
  )
