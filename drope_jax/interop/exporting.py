"""Exports a checkpoint as a folder that stock transformers or llama.cpp loads."""

import functools
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import tokenizers
from jax.sharding import Mesh
from safetensors.numpy import save_file
from tokenizers import decoders, models, pre_tokenizers

from drope_jax import checkpoint
from drope_jax.data.roles import GENERATION, KNOWN_EOS, ROLES, read_object
from drope_jax.data.token_bytes import byte_characters
from drope_jax.data.tokenizers import ByteTokenizer, Tokenizer, load_tokenizer
from drope_jax.drope import temperature
from drope_jax.errors import ConfigError
from drope_jax.interop import gguf_export, gguf_tokenizer
from drope_jax.interop.drafts import check_free, draft_of, local
from drope_jax.interop.families import FAMILIES, Family
from drope_jax.interop.formats import choose, exported_length, write_config
from drope_jax.interop.gguf_architectures import architecture_of
from drope_jax.interop.model_card import Export, figures_of, history, model_card
from drope_jax.interop.sources import copy_tokenizer
from drope_jax.interop.weights import Part, arrays_of, scaled_by_beta, shape_of, to_class
from drope_jax.model_config import ModelConfig
from drope_jax.parameters import Params
from drope_jax.positions import Layer, RoPE, layer_cycle

DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}  # of safetensors
MOST_TOKENS = 2**31 - 1  # limit of a length in a config.json and in llama.cpp
SHARD_BYTES = 5_000_000_000  # the default of transformers

logger = logging.getLogger(__name__)


class _Array(NamedTuple):
  """An array of the export: its shape, and a function that makes it."""

  shape: tuple[int, ...]
  make: Callable[[], np.ndarray]


def export_model(
  directory: str | Path,
  target: str | Path,
  *,
  format: str | None = None,
  target_length: int | None = None,
  c: float | None = None,
  dtype: str | None = None,
  shard_bytes: int = SHARD_BYTES,
  step: int | None = None,
  results: str | Path | None = None,
  mesh: Mesh | None = None,
) -> str:
  """Writes a checkpoint for other programs, with a model card.

  For transformers: config.json, safetensors and the tokenizer; for llama.cpp: a model.gguf.

  Args:
    directory: workdir of a run, or an imported model.
    target: must not exist yet, or be empty; it is written atomically.
    format: "gguf", or one of families.written(); None: the one of the latter that describes the model best.
    target_length: intended length of texts in tokens, `max_position_embeddings`; None: the training context, or the
      length that its YaRN scales to.
    c: of beta = 1 + c ln(target_length / context), the factor on its attention logits, which is then only right for
      texts of that length; None: beta is 1.
    dtype: of the weights, of gguf_export.TYPES or DTYPES; None: float16 in GGUF, else float32.
    shard_bytes: size limit of files of weights, which only a single larger array exceeds.
    step: of the checkpoint; None: its last.
    results: a results.jsonl of experiments.evaluate, whose figures of this model go into the card.
    mesh: to load the weights to; None: the first local device.

  Returns:
    The format.

  Raises:
    ConfigError: if no class fits the model, an argument is impossible, or `results` has no figure of the model.
    CheckpointError: if there is no checkpoint, or `target` is not empty.
    FileError: if a file cannot be read or written.
  """
  directory, target = local(directory), local(target)
  check_free(target)
  as_gguf = format == gguf_export.FORMAT
  dtypes = tuple(gguf_export.TYPES if as_gguf else DTYPES)
  dtype = dtype or ("float16" if as_gguf else "float32")
  if as_gguf:
    gguf_export.refuse_k_quants(dtype)
  if dtype not in dtypes:
    raise ConfigError(f"dtype is {dtype!r}; allowed: {', '.join(dtypes)}")
  if target_length is not None and not 1 <= target_length <= MOST_TOKENS:
    raise ConfigError(f"target_length is {target_length}; it must be from 1 to {MOST_TOKENS}")
  if shard_bytes < 1:
    raise ConfigError(f"shard_bytes is {shard_bytes}; it must be at least 1")
  if c is not None and target_length is None:
    raise ConfigError(f"c is {c}, but beta = 1 + c ln s wants a length: give target_length too")
  found = checkpoint.open_step(directory, step)
  model, context = found.model, found.context
  format = architecture_of(model) if as_gguf else choose(format, model)
  past, measured = history(directory, step), [] if results is None else figures_of(directory, local(results))
  tokenizer = load_tokenizer(directory)
  max_position = exported_length(model, context, target_length)
  length = target_length or max_position
  beta = 1.0 if c is None else temperature(length / context, c)
  if as_gguf:
    gguf_export.rotation_of(model)  # raises an error before anything is loaded
  _warn_of_length(model, context, length, c)
  card = model_card(directory, Export(format, model, context, length, c, beta, dtype, as_gguf), past, measured)
  params = found.params(mesh)
  with draft_of(target) as draft:
    (draft / "README.md").write_text(card, encoding="utf-8")
    _write_tokenizer(tokenizer, directory, draft)
    if as_gguf:
      name = past[-1].meta.get("origin", {}).get("name", past[-1].name)
      said = gguf_tokenizer.metadata_of(tokenizer, draft / "tokenizer.json", model.vocab_size)
      file = draft / "model.gguf"
      gguf_export.write(file, params, model, name=name, length=length, beta=beta, dtype=dtype, tokenizer=said)
    else:
      _set_limits(tokenizer, length, draft)
      config = write_config(
        format,
        model,
        max_position=max_position,
        dtype=dtype,
        logit_scale=beta,
        eos_ids=tokenizer.eos_ids,
        bos_id=tokenizer.bos_id,
      )
      (draft / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
      _write_weights(dict(_arrays(params, model, FAMILIES[format], beta)), np.dtype(DTYPES[dtype]), shard_bytes, draft)
  made = f"architecture {format} of llama.cpp" if as_gguf else FAMILIES[format].architecture
  readers = "; for llama.cpp: transformers reads it wrongly" if as_gguf and gguf_export.only_llama_cpp(model) else ""
  logger.info("%s: %s, for %d tokens at beta %.4g%s", target, made, length, beta, readers)
  return format


def _warn_of_length(model: ModelConfig, context: int, length: int, c: float | None) -> None:
  """Warns if a model is exported for longer texts than it was trained at without a method for that."""
  if length <= context:
    return
  layers = layer_cycle(model.positions)
  if any(_is_unscaled(layer) for layer in layers):
    logger.warning(
      "target_length is %d, but the rotations are not scaled beyond the %d tokens that they were trained at; "
      "drop or replace them first (--config.init.transition of experiments.train)",
      *(length, context),
    )
  elif c is None and all(layer.positions is None for layer in layers):
    logger.warning(
      "no c is given, so beta is 1; a dropped model wants beta = 1 + c ln(%d / %d) at this length (--c=C; "
      "experiments.evaluate --methods=drope fits c)",
      *(length, context),
    )


def _is_unscaled(layer: Layer) -> bool:
  """Whether a layer has no window and a RoPE without scaling or dropped pairs."""
  rope = layer.positions
  return layer.window is None and isinstance(rope, RoPE) and rope.scaling is None and rope.pairs is None


def _arrays(params: Params, model: ModelConfig, family: Family, beta: float) -> Iterator[tuple[str, _Array]]:
  """Every array of the export by name, not made yet; beta is folded into the last parameter that scales the queries."""
  scaled = () if family.takes_beta else scaled_by_beta(model)  # such a scale is in the class's config

  def of(parts: list[Part]) -> np.ndarray:
    made = [to_class(part, family, model, params, beta if part.weight.ours in scaled else 1.0) for part in parts]
    return made[0] if len(made) == 1 else np.concatenate(made)

  def zeros(shape: tuple[int, ...]) -> _Array:
    return _Array(shape, lambda: np.zeros(shape, np.float32))

  for name, parts in arrays_of(model, family).items():
    yield name, _Array(shape_of(parts), functools.partial(of, parts))
  for extra in family.extras(model):
    yield extra.name, zeros(extra.shape)


def _write_weights(arrays: dict[str, _Array], dtype: np.dtype, shard_bytes: int, directory: Path) -> None:
  """Writes one file, or shards with their index; only the arrays of one file are in memory at a time."""
  sizes = {name: int(np.prod(array.shape)) * dtype.itemsize for name, array in arrays.items()}
  shards: list[list[str]] = [[]]
  room = shard_bytes
  for name, size in sizes.items():
    if size > room and shards[-1]:
      shards.append([])
      room = shard_bytes
    shards[-1].append(name)
    room -= size
  count = len(shards)
  files = ["model.safetensors"] if count == 1 else [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
  for file, names in zip(files, shards, strict=True):
    content = {name: arrays[name].make().astype(dtype) for name in names}
    save_file(content, directory / file, metadata={"format": "pt"})  # required by transformers
  if count > 1:
    weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_tokenizer(tokenizer: Tokenizer, source: Path, directory: Path) -> None:
  """Writes the checkpoint's tokenizer files; our byte tokenizer is written as BPE without merges."""
  if not isinstance(tokenizer, ByteTokenizer):
    copy_tokenizer(source, directory)
    return
  eos = KNOWN_EOS[0]
  characters = byte_characters()
  vocab = {eos: tokenizer.eos_id, **{characters[byte]: byte + 1 for byte in range(256)}}
  bpe = tokenizers.Tokenizer(models.BPE(vocab, []))
  bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  bpe.decoder = decoders.ByteLevel()
  bpe.add_special_tokens([eos])
  bpe.save(str(directory / "tokenizer.json"))
  roles = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": eos}
  (directory / "tokenizer_config.json").write_text(json.dumps(roles, indent=2) + "\n", encoding="utf-8")


def _set_limits(tokenizer: Tokenizer, length: int, directory: Path) -> None:
  """Sets limits of the text length in the tokenizer's files, if there are any, to `length` tokens.

  Also sets the tokens that end an answer in generation_config.json to those of the tokenizer.
  """
  for name, limits in ((ROLES, ("model_max_length", "max_len")), (GENERATION, ("max_length",))):
    path = directory / name
    said = read_object(path)
    changed: dict[str, Any] = {key: length for key in limits if isinstance(said.get(key), int)}
    if name == GENERATION and said:
      ids = list(tokenizer.eos_ids)
      changed["eos_token_id"] = ids if len(ids) > 1 else ids[0]
    if changed:
      path.write_text(json.dumps({**said, **changed}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
