"""Every key of transformers' rotations: read, passed over with a warning, or refused."""

import inspect
import logging
import re

import numpy as np
import pytest
from support.pretrained import THETA, transformers

from drope_jax.errors import ConfigError
from drope_jax.interop.families import FAMILIES
from drope_jax.interop.rope_parameters import NEUTRAL_FACTOR, READ_KEYS, read_rope, read_ropes
from drope_jax.interop.rope_writing import as_rope, write_rope
from drope_jax.positions import RoPE
from drope_jax.scalings import NTK, PI, DynamicNTK, Llama3, LongRoPE, NTKByParts, YaRN

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


LONG_FACTORS = tuple(1.0 + i for i in range(HEAD_DIM // 2))
LONGROPES = {
  "two tables": LongRoPE((1.0,) * 5 + (1.5,), LONG_FACTORS, 16, 4.0),
  "an attention factor": LongRoPE((1.0,) * 6, LONG_FACTORS, 16, 4.0, 1.3),
  "one table": LongRoPE(LONG_FACTORS, LONG_FACTORS, 16, 4.0, 1.0),
  "no extension": LongRoPE(LONG_FACTORS, LONG_FACTORS, CONTEXT, 1.0),
}


@pytest.mark.parametrize("name", LONGROPES)
@pytest.mark.parametrize("pairs", [None, 4])
def test_longrope_has_the_frequencies_of_transformers_and_is_read_again(name, pairs):
  rope = RoPE(THETA, LONGROPES[name], pairs)
  written = write_rope(rope, CONTEXT, HEAD_DIM, LLAMA)
  config = transformers.LlamaConfig(head_dim=HEAD_DIM, max_position_embeddings=CONTEXT, rope_parameters=dict(written))
  again = read_rope({"rope_parameters": written}, 10_000.0, CONTEXT, HEAD_DIM, "x")
  for length in (8, 16, 17, CONTEXT):
    omega, factor = rope_utils.ROPE_INIT_FUNCTIONS["longrope"](config, seq_len=length)
    table = rope.frequencies(HEAD_DIM, length)
    np.testing.assert_allclose(omega, table.omega, rtol=1e-5, atol=1e-29)
    assert factor == pytest.approx(table.factor)
    np.testing.assert_array_equal(again.frequencies(HEAD_DIM, length).omega, table.omega)
  assert pairs is not None or again == rope  # of pairs that do not turn the factors are not kept


def test_what_longrope_cannot_be_is_refused():
  same = {"rope_type": "longrope", "attention_factor": 1.0, **ORIGINAL}
  stopped = [1.0] * 4 + [NEUTRAL_FACTOR] * 2
  for factors, said in (
    ({"short_factor": ONES[1:], "long_factor": ONES[1:]}, "a list of 6 numbers"),
    ({"short_factor": [0.0] * 6, "long_factor": ONES}, "short_factor is .* it must hold positive numbers"),
    ({"short_factor": stopped, "long_factor": ONES}, "long_factor stops other pairs .* than the last 2"),
    ({"short_factor": stopped[::-1], "long_factor": stopped}, "short_factor stops other pairs"),
    ({"short_factor": ONES, "long_factor": ONES, "attention_factor": None, "factor": 8.0}, "factor is 8, and .* is 4"),
    (
      {"short_factor": [NEUTRAL_FACTOR] * 6, "long_factor": [NEUTRAL_FACTOR] * 6, "attention_factor": 1.2},
      "attention_factor is 1.2 though no pair turns",
    ),
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


# --- a rotation for each kind of layer ---------------------------------------------------------

KINDS = {"gemma3_text": (1_000_000.0, 10_000.0), "olmo3": (500_000.0, 500_000.0)}


def read_kinds(family, **config):
  return read_ropes(config, FAMILIES[family], CONTEXT, HEAD_DIM, "config.json", None)


@pytest.mark.parametrize("family", KINDS)
def test_kinds_of_layers_are_read_as_both_versions_of_transformers_write_them(family):
  full, windowed = KINDS[family]
  assert read_kinds(family) == (RoPE(full), RoPE(windowed))
  linear = {"rope_type": "linear", "factor": 8.0}
  assert read_kinds(family, rope_scaling=linear) == (RoPE(full, PI(8.0)), RoPE(windowed))
  nested = {"full_attention": {**linear, "rope_theta": 500.0}, "sliding_attention": {"rope_theta": 50.0}}
  assert read_kinds(family, rope_parameters=nested) == (RoPE(500.0, PI(8.0)), RoPE(50.0))
  assert read_kinds(family, rope_parameters=nested, rope_theta=500.0, rope_scaling=linear) == (
    RoPE(500.0, PI(8.0)),
    RoPE(50.0),
  )
  config = {"gemma3_text": transformers.Gemma3TextConfig, "olmo3": transformers.Olmo3Config}[family]
  written = config(rope_scaling=dict(linear)).to_dict()["rope_parameters"]
  assert read_kinds(family, rope_parameters=written) == (RoPE(full, PI(8.0)), RoPE(windowed))


def test_gemmas_local_theta_has_a_key_of_its_own():
  config = {"rope_theta": 500.0, "rope_local_base_freq": 50.0}
  assert read_kinds("gemma3_text", **config) == (RoPE(500.0), RoPE(50.0))


@pytest.mark.parametrize(
  ("family", "config", "said"),
  [
    ("olmo3", {"rope_theta": 500.0}, "rope_theta is 500.0; .* version 4 of transformers takes it, and 5 its default"),
    (
      "olmo3",
      {"rope_parameters": {"rope_theta": 500.0}},
      "rope_parameters.rope_theta is 500.0; allowed: full_attention",
    ),
    ("gemma3_text", {"rope_parameters": {"full_attention": 3}}, "must be an object of full_attention and sliding"),
    (
      "gemma3_text",
      {"rope_theta": 20.0, "rope_parameters": {"full_attention": {"rope_theta": 30.0}}},
      "rope_parameters.full_attention.rope_theta is 30.0, and 20.0 outside",
    ),
    (
      "gemma3_text",
      {"rope_parameters": {"sliding_attention": {"rope_type": "axial"}}},
      "rope_parameters.sliding_attention.rope_type is 'axial'",
    ),
  ],
)
def test_contradicting_kinds_of_layers_are_refused(family, config, said):
  with pytest.raises(ConfigError, match=said):
    read_kinds(family, **config)
