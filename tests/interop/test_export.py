"""Exporting: stock transformers loads the folder, and computes what our model does."""

import functools
import json
import math

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from support.checkpoints import random_params, write_checkpoint
from support.pretrained import (
  ORIGINAL_CONTEXT,
  SHAPE,
  THETA,
  TOKENS_BT,
  logits_of,
  shaped,
  torch,
  transformers,
)
from support.tiny_run import contents, tiny_model, tiny_run

import drope_jax
from drope_jax import checkpoint
from drope_jax.config import InitConfig, QKNorm
from drope_jax.data.tokenizers import ByteTokenizer, load_tokenizer
from drope_jax.errors import ConfigError
from drope_jax.evaluate import results
from drope_jax.interop.__main__ import main
from drope_jax.interop.exporting import export_model
from drope_jax.interop.families import FAMILIES, written
from drope_jax.interop.formats import choose, unsupported
from drope_jax.interop.importing import import_model
from drope_jax.interop.model_card import figures_of
from drope_jax.model import hidden_states, unembed
from drope_jax.positions import ALiBi, Layer, LayerPattern, RoPE, rnope_swa
from drope_jax.scalings import NTK, PI, DynamicNTK, DynamicYaRN, Llama3, NTKByParts, YaRN
from drope_jax.serialization import to_dict

FULL, HEAD = QKNorm("full"), QKNorm("head")
SQUARE = {"head_dim": 8}  # heads as wide as the model, which OLMoE demands
MIXED, WINDOWED = LayerPattern((Layer(RoPE(THETA)), Layer(None))), LayerPattern((Layer(RoPE(THETA), 5),))
TARGET, C = 4 * ORIGINAL_CONTEXT, 0.4
BETA = 1 + C * math.log(4)


@functools.partial(jax.jit, static_argnames="model")
def our_logits(params, model, beta, tokens_BT):
  x_BTD, *_ = hidden_states(params, model, tokens_BT, logit_scale=beta)
  return unembed(params, x_BTD)


def load_stock(directory):
  model, unused = transformers.AutoModelForCausalLM.from_pretrained(
    directory, dtype="auto", attn_implementation="eager", output_loading_info=True
  )
  assert not unused["missing_keys"] and not unused["unexpected_keys"] and not unused["mismatched_keys"]
  return model.eval()


EXPORTS = {
  # name: model, format asked for, class expected
  "nope": ({"positions": None}, None, "SmolLM3"),
  "nope, untied": ({"positions": None, "tie_embeddings": False}, None, "SmolLM3"),
  "nope as llama": ({"positions": None}, "llama", "Llama"),
  "nope as granite": ({"positions": None}, "granite", "Granite"),
  "nope, biases": ({"positions": None, "qkv_bias": True}, None, "Qwen2"),
  "nope, biases, as smollm3": ({"positions": None, "qkv_bias": True}, "smollm3", "SmolLM3"),
  "nope, full norm": ({"positions": None, "qk_norm": FULL, **SQUARE}, None, "Olmoe"),
  "nope, norm of heads": ({"positions": None, "qk_norm": HEAD}, None, "Qwen3"),
  "mixed": ({"positions": MIXED}, None, "SmolLM3"),
  "rnope_swa": ({"positions": rnope_swa(5, THETA), "num_layers": 4}, None, "SmolLM3"),
  "rope": ({}, None, "Llama"),
  "rope, biases": ({"qkv_bias": True}, None, "Qwen2"),
  "rope, norm of heads": ({"qk_norm": HEAD}, None, "Qwen3"),
  "rope, full norm": ({"qk_norm": FULL, **SQUARE}, None, "Olmoe"),
  "rope with a window": ({"positions": WINDOWED}, None, "Mistral"),
  "pi": ({"positions": RoPE(THETA, PI(4.0))}, None, "Llama"),
  "ntk": ({"positions": RoPE(THETA, NTK(4.0))}, None, "Llama"),
  "ntk by parts": ({"positions": RoPE(THETA, NTKByParts(4.0, 16, 0.2, 2.0))}, None, "Llama"),
  "yarn": ({"positions": RoPE(THETA, YaRN(4.0, 16, 4.0))}, None, "Llama"),
  "dynamic": ({"positions": RoPE(THETA, DynamicNTK(16, 2.0))}, None, "Llama"),
  "llama3": ({"positions": RoPE(THETA, Llama3(4.0, 16, 0.2, 2.0))}, None, "Llama"),
  "yarn as qwen2": ({"positions": RoPE(THETA, YaRN(4.0, 16, 4.0)), "qkv_bias": True}, None, "Qwen2"),
}


# Each adds a class, a scaling or a way of writing to those before it; the others combine what these have.
ALONE = ("nope", "nope as granite", "nope, biases", "nope, full norm", "nope, norm of heads", "rnope_swa", "rope")
ALONE += ("rope with a window", "ntk", "yarn", "dynamic")


def first(names, of=EXPORTS):
  """These names by default, the others as slow tests."""
  return [name if name in names else pytest.param(name, marks=pytest.mark.slow) for name in of]


@pytest.mark.parametrize("name", first(ALONE))
def test_transformers_computes_the_same(name, tmp_path):
  changes, format, expected_class = EXPORTS[name]
  model = shaped(**changes)
  params = write_checkpoint(model, tmp_path / "run")
  export_model(tmp_path / "run", tmp_path / "exported", format=format, target_length=TARGET, c=C)
  theirs = load_stock(tmp_path / "exported")
  assert type(theirs).__name__ == f"{expected_class}ForCausalLM"
  expected = our_logits(params, model, BETA, TOKENS_BT)
  assert np.abs(expected - our_logits(params, model, 1.0, TOKENS_BT)).max() > 0.01  # beta matters
  assert 1 < np.abs(expected).max() < 100
  np.testing.assert_allclose(logits_of(theirs), expected, atol=1e-4)


GREEDY = {  # name of EXPORTS, and c
  "nope": None,
  "nope as llama": None,
  "nope, full norm": None,
  "nope, norm of heads": None,
  "rope": None,
  "nope, biases": C,
  "nope as granite": C,
  "yarn": None,
  "llama3": None,
}


@pytest.mark.parametrize("name", first(("nope as llama", "nope, biases", "yarn"), GREEDY))
def test_greedy_text_is_the_same(name, tmp_path):
  (changes, format, _), c = EXPORTS[name], GREEDY[name]
  params = write_checkpoint(shaped(**changes), tmp_path / "run")
  export_model(tmp_path / "run", tmp_path / "exported", format=format, c=c, target_length=None if c is None else TARGET)
  theirs = load_stock(tmp_path / "exported")
  prompt = TOKENS_BT[0, :20]
  asked = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
  text = theirs.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, 20), eos_token_id=None, **asked)
  beta = 1.0 if c is None else BETA
  ours = drope_jax.generate(params, shaped(**changes), [prompt], max_new_tokens=12, logit_scale=beta)[0]
  assert text[0, 20:].tolist() == ours


def test_a_rotation_by_no_angle_rotates_nothing_far_out(tmp_path):
  write_checkpoint(shaped(positions=None), tmp_path / "run")
  export_model(tmp_path / "run", tmp_path / "exported", format="llama", target_length=131_072)
  theirs = load_stock(tmp_path / "exported")
  assert theirs.config.max_position_embeddings == 131_072
  cos, sin = theirs.model.rotary_emb(torch.zeros(1), torch.tensor([[0, 131_071]]))
  assert bool((cos == 1).all()) and float(sin.abs().max()) < 1e-20


def test_import_and_export_are_inverse(tmp_path):
  again_exactly = ("rope, biases", "rope, norm of heads", "yarn", "llama3", "nope", "nope as llama", "nope as granite")
  for name in (*again_exactly, "nope, biases, as smollm3", "nope, full norm", "rope, full norm"):
    changes, format, _ = EXPORTS[name]
    model, place = shaped(**changes), tmp_path / name.replace(" ", "-")
    params = write_checkpoint(model, place / "run")
    export_model(place / "run", place / "exported", format=format)
    import_model(place / "exported", place / "again")
    again = drope_jax.load(place / "again")
    assert again.context == (4 * ORIGINAL_CONTEXT if name == "yarn" else ORIGINAL_CONTEXT)
    if name == "yarn":
      assert again.model.positions.scaling.attention_factor == model.positions.frequencies(12)[1]
    else:
      assert again.model == model
    jax.tree.map(np.testing.assert_array_equal, again.params, params)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_shards(dtype, tmp_path):
  params = write_checkpoint(SHAPE, tmp_path / "run")
  arguments = ["--shard-bytes=20000", f"--dtype={dtype}"]
  assert main(["export", str(tmp_path / "run"), str(tmp_path / "exported"), *arguments]) == 0
  files = list((tmp_path / "exported").glob("model-*.safetensors"))
  largest = 300 * 32 * (4 if dtype == "float32" else 2)
  assert len(files) > 2 and all(file.stat().st_size < max(20_000, largest) + 4000 for file in files)
  theirs = load_stock(tmp_path / "exported")
  weights = theirs.state_dict()
  assert weights["model.norm.weight"].dtype == getattr(torch, dtype)
  down = params["layers"]["down"][1].T.astype(dtype).astype(np.float32)
  np.testing.assert_array_equal(weights["model.layers.1.mlp.down_proj.weight"].float().numpy(), down)


def test_the_tokenizer_goes_along(tmp_path):
  write_checkpoint(SHAPE, tmp_path / "run")
  export_model(tmp_path / "run", tmp_path / "exported")
  theirs, ours = transformers.AutoTokenizer.from_pretrained(tmp_path / "exported"), load_tokenizer(tmp_path / "run")
  text = "10 words, or 1,024\n tokens"
  assert theirs(text)["input_ids"] == ours.encode(text) and theirs.decode(ours.encode(text)) == text
  assert theirs.eos_token_id == ours.eos_id


def write_run(config, directory):
  """What a run of `config` leaves of its last step, as far as an export reads it."""
  meta = {"step": config.steps, "tokens": 128 * config.steps, "seconds": 0.0, "config": to_dict(config), "versions": {}}
  items = {"params": ocp.args.StandardSave(random_params(config.model)), "meta": ocp.args.JsonSave(meta)}
  with checkpoint.writing(directory, config) as manager:
    manager.save(config.steps, args=ocp.args.Composite(**items))
  ByteTokenizer().save(directory)


@pytest.fixture(scope="module")
def recalibrated(tmp_path_factory):
  """A run from scratch, and one that recalibrates it without its embedding."""
  directory = tmp_path_factory.mktemp("runs")
  write_run(tiny_run("a corpus", steps=2), directory / "rope")
  init = InitConfig(checkpoint=str(directory / "rope"), qk_norm=QKNorm())
  dropped = tiny_model(positions=None, qk_norm=QKNorm())
  write_run(tiny_run("a corpus", init=init, steps=3, model=dropped), directory / "drope")
  return directory / "drope"


def test_a_run_with_bytes_for_tokens(recalibrated, tmp_path):
  export_model(recalibrated, tmp_path / "exported")
  loaded, theirs = drope_jax.load(recalibrated), load_stock(tmp_path / "exported")
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "exported")
  text = "Grüße, 漢字\x00\x7f\xad 12\n\t end"
  ids = tokenizer(text)["input_ids"]
  assert ids == ByteTokenizer().encode(text)
  assert tokenizer.decode(ids) == text and tokenizer.eos_token_id == 0
  tokens_BT = np.array([ids])
  expected = our_logits(loaded.params, loaded.model, 1.0, tokens_BT)
  np.testing.assert_allclose(logits_of(theirs, tokens_BT), expected, atol=1e-4)


MEASURED = {"run": "drope", "method": "drope", "task": "perplexity", "context": 64, "extension": 4.0, "n": 640}
MEASURED |= {"metric": "loss", "seed": 7, "value": 3.75}


def test_the_card_says_what_was_done(recalibrated, tmp_path):
  command = "python -m experiments.evaluate --checkpoint=runs/drope --out=measured"
  measured = [
    MEASURED,
    {**MEASURED, "value": 3.25, "settings": {"documents": 2}, "low": 3.125, "high": 3.5, "command": command},
    {**MEASURED, "by": "position", "at": (0, 32), "value": 2.75},
    {**MEASURED, "task": "niah_single_1", "metric": "string_match_all", "value": 0.5, "n": 20},
    {**MEASURED, "run": "another", "value": 9.75},
  ]
  results.append(tmp_path / "results.jsonl", [results.Result(**one) for one in measured])
  arguments = ["--target-length=64", "--c=0.25", f"--results={tmp_path / 'results.jsonl'}"]
  assert main(["export", str(recalibrated), str(tmp_path / "exported"), *arguments]) == 0
  card = (tmp_path / "exported" / "README.md").read_text()
  for said in (
    "`OlmoeForCausalLM` (float32)",
    "trained at 16 tokens and is exported for 64",
    "1. `rope`: trained from scratch; 2 steps, 256 tokens",
    "2. `drope`: trained from the weights of `rope`, its positional embedding under Drop(), QK-norm inserted (full); 3",
    "one expert",
    "no angle differs from 0",
    f"ln(4) = {1 + 0.25 * math.log(4):.6g}, which is part of `q_norm`",
    "| drope | perplexity | 64 | loss | 3.2500 | 3.1250 to 3.5000 | 640 | 7 |",
    "| drope | niah_single_1 | 64 | string_match_all | 0.5000 | - | 20 | 7 |",
    f"- `{command}`",
  ):
    assert said in card, said
  assert not any(absent in card for absent in ("9.75", "3.7500", "2.75"))
  assert str(tmp_path) not in card and str(recalibrated) not in card


BAD_RESULTS = {
  "absent": (None, "there is no such file"),
  "malformed": ("{\n", ":1: not a result"),
  "not text": (b"\xff\xfe\n", ":1: not a result"),
  "of another run": (
    json.dumps({**MEASURED, "run": "another"}) + "\n",
    "has no figures of run drope; it has those of another",
  ),
  "parts alone": (json.dumps({**MEASURED, "metric": "loss@0-32"}) + "\n", "has no figures of run drope"),
}


@pytest.mark.parametrize("how", BAD_RESULTS)
def test_results_that_say_nothing_of_the_run_are_an_error(how, recalibrated, tmp_path, capsys):
  content, message = BAD_RESULTS[how]
  if content is not None:
    (tmp_path / "results.jsonl").write_bytes(content if isinstance(content, bytes) else content.encode())
  arguments = [str(recalibrated), str(tmp_path / "exported"), f"--results={tmp_path / 'results.jsonl'}"]
  assert main(["export", *arguments]) == (1 if how in ("absent", "malformed", "not text") else 2)
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 1 and lines[0].startswith(f"error: {tmp_path / 'results.jsonl'}") and message in lines[0]
  assert not (tmp_path / "exported").exists()


def test_figures_of_an_imported_model_are_those_under_its_name(tmp_path):
  figures = [results.Result(**{**MEASURED, "run": run}) for run in ("smollm", "checkpoint")]
  results.append(tmp_path / "results.jsonl", figures)
  assert figures_of(tmp_path / "smollm" / "checkpoint", tmp_path / "results.jsonl") == figures[:1]


def test_the_card_of_an_imported_model_has_its_name(tmp_path):
  write_checkpoint(SHAPE, tmp_path / "checkpoint")  # whose origin's name is "none"
  export_model(tmp_path / "checkpoint", tmp_path / "exported")
  assert "\n# none\n" in (tmp_path / "exported" / "README.md").read_text()


REFUSED = {
  "alibi": ({"positions": ALiBi()}, None, "has ALiBi(): no class of transformers adds a bias"),
  "alibi in a layer": ({"positions": LayerPattern((Layer(ALiBi()), Layer(None)))}, None, "has ALiBi()"),
  "dynamic yarn": ({"positions": RoPE(THETA, DynamicYaRN(16))}, None, "DynamicYaRN"),
  "two rotations": ({"positions": LayerPattern((Layer(RoPE(10)), Layer(RoPE(20))))}, None, "2 different rotations"),
  "two windows": ({"positions": LayerPattern((Layer(None, 3), Layer(None, 4)))}, None, "2 different windows"),
  "norm of keys": ({"qk_norm": QKNorm("full", queries=False)}, None, "normalises both queries and keys"),
  "full norm, not square": ({"positions": None, "qk_norm": FULL}, None, "is not d_model (32)"),
  "mixed with a norm": ({"positions": MIXED, "qk_norm": HEAD}, None, "rotates some layers and not others"),
  "norm as llama": ({"qk_norm": HEAD}, "llama", "format 'llama' has none"),
  "no norm as qwen3": ({}, "qwen3", "format 'qwen3' has scope head"),
  "window as llama": ({"positions": LayerPattern((Layer(None, 4),))}, "llama", "format 'llama' has none"),
  "no bias as qwen2": ({}, "qwen2", "format 'qwen2' has it always"),
  "bias as mistral": ({"positions": WINDOWED, "qkv_bias": True}, "mistral", "format 'mistral' has it never"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_exported_says_so(name, tmp_path, capsys):
  changes, format, message = REFUSED[name]
  write_checkpoint(shaped(num_layers=2, **changes), tmp_path / "run")
  before = contents(tmp_path)
  arguments = [] if format is None else [f"--format={format}"]
  assert main(["export", str(tmp_path / "run"), str(tmp_path / "exported"), *arguments]) == 2
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0]
  assert contents(tmp_path) == before


def test_every_format_is_reached():
  chosen = {choose(format, shaped(**changes)): expected for changes, format, expected in EXPORTS.values()}
  apart = {"olmo2", "olmo3", "phi3", "gemma2", "gemma3_text"}  # in test_families.py
  assert chosen.keys() | apart == {*written()} and not chosen.keys() & apart
  assert all(FAMILIES[format].architecture == f"{expected}ForCausalLM" for format, expected in chosen.items())
  assert unsupported("granite", tiny_model()) is None


YARN = {"positions": RoPE(THETA, YaRN(4.0, 16, 4.0))}


@pytest.mark.parametrize("target_length", [None, 64])
@pytest.mark.parametrize("format", ["llama", "smollm3"])
def test_the_length_of_yarn_is_what_it_scales_to(format, target_length, tmp_path):
  """Transformers 4 reads its factor from there, whatever `factor` says."""
  write_checkpoint(shaped(**YARN), tmp_path / "run")
  export_model(tmp_path / "run", tmp_path / "exported", format=format, target_length=target_length)
  config = json.loads((tmp_path / "exported" / "config.json").read_text())
  for rope in (config["rope_scaling"], config["rope_parameters"]):
    assert config["max_position_embeddings"] / rope["original_max_position_embeddings"] == rope["factor"] == 4
  assert "exported for 64" in (tmp_path / "exported" / "README.md").read_text()


def test_another_length_than_yarn_scales_to_is_refused(tmp_path, capsys):
  write_checkpoint(shaped(**YARN), tmp_path / "run")
  assert main(["export", str(tmp_path / "run"), str(tmp_path / "exported"), "--target-length=32"]) == 2
  assert "error: target_length is 32; YaRN of factor 4 scales 16 tokens to 64" in capsys.readouterr().err
  assert not (tmp_path / "exported").exists()


@pytest.mark.parametrize("c", [-10.0, math.nan, math.inf])
def test_a_temperature_that_is_none_is_not_folded_in(c, tmp_path, capsys):
  write_checkpoint(shaped(positions=None), tmp_path / "run")
  arguments = [f"--target-length={TARGET}", f"--c={c}"]
  assert main(["export", str(tmp_path / "run"), str(tmp_path / "exported"), *arguments]) == 2
  assert f"error: c is {c}: beta = 1 + c ln 4 is " in capsys.readouterr().err
  assert not (tmp_path / "exported").exists()


def test_a_logit_scale_of_its_own_comes_back_as_the_models(tmp_path):
  """The temperature of one length, which is the model's own from then on."""
  params = write_checkpoint(shaped(positions=None), tmp_path / "run")
  export_model(tmp_path / "run", tmp_path / "exported", format="granite", target_length=TARGET, c=C)
  import_model(tmp_path / "exported", tmp_path / "again")
  again = drope_jax.load(tmp_path / "again")
  assert again.model.attention_scale == pytest.approx(BETA / math.sqrt(SHAPE.head_dim))
  jax.tree.map(np.testing.assert_array_equal, again.params, params)


@pytest.mark.parametrize(("directory", "target"), [("run", "gs://bucket/hf"), ("gs://bucket/run", "exported")])
def test_a_url_is_refused(directory, target, tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(tmp_path)
  write_checkpoint(SHAPE, tmp_path / "run")
  before = contents(tmp_path)
  assert main(["export", directory, target]) == 2
  assert "gs://bucket/" in capsys.readouterr().err
  assert contents(tmp_path) == before and not (tmp_path / "gs:").exists()


def test_bad_arguments(tmp_path, capsys):
  write_checkpoint(SHAPE, tmp_path / "run")
  with pytest.raises(ConfigError, match=r"c is 0.4, but beta = 1 \+ c ln s wants a length"):
    export_model(tmp_path / "run", tmp_path / "exported", c=0.4)
  with pytest.raises(ConfigError, match="target_length is 0"):
    export_model(tmp_path / "run", tmp_path / "exported", target_length=0)
  with pytest.raises(ConfigError, match="format is 'bert'; allowed: smollm3"):
    export_model(tmp_path / "run", tmp_path / "exported", format="bert")
  with pytest.raises(ConfigError, match="dtype is 'float8'"):
    export_model(tmp_path / "run", tmp_path / "exported", dtype="float8")
  assert not (tmp_path / "exported").exists()
  (tmp_path / "mine").write_text("mine")
  assert main(["export", str(tmp_path / "run"), str(tmp_path)]) == 1
  assert f"{tmp_path}: holds something already" in capsys.readouterr().err
  assert main(["export", str(tmp_path / "gone"), str(tmp_path / "exported")]) == 1
  assert "gone: not the workdir of a run" in capsys.readouterr().err


def test_config_json_for_both_versions_of_transformers(tmp_path):
  """Version 4 reads rope_theta and rope_scaling, version 5 rope_parameters."""
  write_checkpoint(shaped(positions=RoPE(THETA, YaRN(4.0, 16, 4.0))), tmp_path / "run")
  export_model(tmp_path / "run", tmp_path / "exported")
  config = json.loads((tmp_path / "exported" / "config.json").read_text())
  assert {**config["rope_scaling"], "rope_theta": config["rope_theta"]} == config["rope_parameters"]
  assert config["rope_parameters"]["rope_type"] == "yarn"
