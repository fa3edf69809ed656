"""Imports a pretrained model as a checkpoint, array by array."""

import functools
import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, Sharding, SingleDeviceSharding

from drope_jax import checkpoint
from drope_jax.data.tokenizers import load_tokenizer
from drope_jax.errors import ConfigError
from drope_jax.interop import lora
from drope_jax.interop.drafts import check_free, draft_of, local
from drope_jax.interop.families import Family
from drope_jax.interop.gguf_file import GGUFFile
from drope_jax.interop.hf_config import Description, family_of, read_config
from drope_jax.interop.keys import FIELDS as KEYS
from drope_jax.interop.sources import HuggingFaceFolder, Source, copy_tokenizer
from drope_jax.interop.weights import (
  EMBEDDING,
  UNEMBEDDING,
  Part,
  arrays_of,
  from_class,
  layer_shape,
  scaled_by_beta,
  shape_of,
  weights_of,
)
from drope_jax.model_config import ModelConfig
from drope_jax.parameters import FIELDS, ParameterSpec, Params, count_parameters
from drope_jax.sharding import named_sharding

logger = logging.getLogger(__name__)


def open_source(path: str | Path, base: str | Path | None = None) -> tuple[Source, Description]:
  """Opens a folder of safetensors, a GGUF file or an adapter, and checks its config and all names and shapes of arrays.

  Args:
    path: the folder, the file, or a PEFT folder.
    base: the model that an adapter was trained on; None: the folder that its config names.

  Raises:
    FileError: naming a file that cannot be read.
    ConfigError: naming the file and what is missing or not supported in it.
  """
  source, described = _open(Path(path), None if base is None else Path(base))
  _check_layers(source, described)
  description = read_config(source.config, described, source.names)
  embedding, head = map(_family(source).spelled, (EMBEDDING, UNEMBEDDING))
  if description.model.tie_embeddings and embedding not in source.shapes and head in source.shapes:
    source.rename(head, embedding)  # writers may keep either of two shared arrays
  _check_arrays(source, description.model)
  if source.config.get("auto_map") is not None and _family(source).in_transformers:
    said = "auto_map names code that is not run; keys and arrays are those of"
    logger.warning("%s: %s %s, and it is read as one", described, said, _family(source).architecture)
  return source, description


def _open(path: Path, base: Path | None) -> tuple[Source, Path]:
  """The source, and the file that describes its model."""
  if lora.is_adapter(path):
    base = base or lora.base_of(path)
    if _is_ours(base):
      raise ConfigError(f"{base}: a checkpoint of drope_jax; base must be the Hugging Face folder or .gguf file itself")
    if lora.is_adapter(base):
      raise ConfigError(f"{path}: its base, {base}, is a folder of adapters itself; merge that first")
    model, described = _open(base, None)
    return lora.MergedAdapter(path, model), described
  if base is not None:
    raise ConfigError(f"base is {base}, but {path} has no {lora.CONFIG}: it is no adapter")
  if _is_ours(path):
    raise ConfigError(f"{path}: a checkpoint of drope_jax already; there is nothing to import")
  if path.is_dir():
    return HuggingFaceFolder(path), path / "config.json"
  if path.is_file() and path.suffix == ".gguf":
    return GGUFFile(path), path
  raise ConfigError(f"{path}: neither a folder of a Hugging Face model nor a .gguf file")


def _is_ours(path: Path) -> bool:
  """Whether a path is a run's workdir or an imported model, and not a Hugging Face folder."""
  return (path / "checkpoints").is_dir() and not any(path.glob("*.safetensors"))


def _check_layers(source: Source, described: Path) -> None:
  """Raises ConfigError for more layers than there are arrays, before memory is allocated per layer."""
  key, count = "num_hidden_layers", source.config.get("num_hidden_layers")
  if isinstance(count, int) and count > len(source.shapes):
    raise ConfigError(f"{described}: {source.names.get(key, key)} is {count}; there are {len(source.shapes)} arrays")


def _family(source: Source) -> Family:
  return family_of(source.config, source.path, source.names)


def _check_arrays(source: Source, model: ModelConfig) -> None:
  family = _family(source)
  arrays = arrays_of(model, family)
  wanted = {name: shape_of(parts) for name, parts in arrays.items()}
  extras = {extra.name: extra for extra in family.extras(model)}
  embedding, head = map(family.spelled, (EMBEDDING, UNEMBEDDING))

  def named(name: str) -> str:
    return f"{source.path}: {source.names.get(name, name)}"

  for name, shape in {**wanted, **{name: extra.shape for name, extra in extras.items()}}.items():
    if name not in source.shapes:
      raise ConfigError(
        f"{source.path}: the array {source.names.get(name, name)} is missing; are config and weights of one model?"
      )
    if source.shapes[name] != shape:
      sizes = _sizes(source, model, arrays.get(name, []))
      raise ConfigError(f"{named(name)} is of shape {source.shapes[name]}; by the config it should be {shape}{sizes}")
  for name, extra in extras.items():
    if extra.zeros and source.read(name).any():
      raise ConfigError(f"{named(name)} is not zero, as attention_bias is true; allowed: biases on q, k and v alone")
  for name in sorted(source.shapes.keys() - wanted.keys() - extras.keys()):
    if name.endswith("rotary_emb.inv_freq"):  # old checkpoints store what follows from the config
      continue
    if name == head and source.shapes[name] == source.shapes[embedding]:
      if _digest(source, name) == _digest(source, embedding):
        continue
      raise ConfigError(f"{source.path}: tie_word_embeddings is true, but {name} is not the embedding")
    raise ConfigError(f"{source.path}: the array {name} has no place in a model of this config")


def _sizes(source: Source, model: ModelConfig, parts: Sequence[Part]) -> str:
  """The config keys that determine an array's shape, with their values, for messages; "" for an extra array."""
  dimensions = [dimension for part in parts for dimension in part.spec.dimensions if dimension != "layers"]
  fields = dict.fromkeys(FIELDS[dimension] for dimension in dimensions)
  keys = {KEYS.get(field, field): getattr(model, field) for field in fields}
  return f" ({', '.join(f'{source.names.get(key, key)} {value}' for key, value in keys.items())})" if keys else ""


def _digest(source: Source, name: str) -> bytes:
  """A hash of an array's values, to compare large arrays without having both in memory."""
  array, digest = source.read(name), hashlib.sha256()
  for row in array:
    digest.update(row.astype(np.float32).tobytes())
  return digest.digest()


def read_params(source: Source, model: ModelConfig, mesh: Mesh | None = None, beta: float = 1.0) -> Params:
  """The weights of a source, float32, on the first local device or sharded over `mesh`.

  Each array is read once (or once per parameter that it contains) and moved to the devices immediately, so that the
  host holds one of them at a time. `beta` is a factor on the attention logits, which is folded into the weights that
  scale the queries last.
  """
  scaled = scaled_by_beta(model) if beta != 1 else ()
  family = _family(source)
  layers: Params = {}
  params: Params = {"layers": layers}
  found = {
    (part.weight.ours, part.layer): (name, part) for name, parts in arrays_of(model, family).items() for part in parts
  }

  def read(ours: str, layer: int | None = None) -> np.ndarray:
    """A parameter in our layout, of one layer if it is stacked."""
    name, part = found[ours, layer]
    array = from_class(part, family, model, source.read(name))
    return array * np.float32(beta) if ours in scaled else array

  for weight, spec in weights_of(model):
    if weight.stacked:
      each = functools.partial(read, weight.ours)
      layers[weight.ours] = _stack(each, model.num_layers, layer_shape(weight, spec), spec, mesh)
    else:
      params[weight.ours] = _put(read(weight.ours), _sharding(mesh, spec.dimensions))
  return params


def _sharding(mesh: Mesh | None, dimensions: tuple[str, ...]) -> Sharding:
  return SingleDeviceSharding(jax.local_devices()[0]) if mesh is None else named_sharding(mesh, dimensions)


def _put(array: np.ndarray, sharding: Sharding) -> jax.Array:
  return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _stack(
  read: Callable[[int], np.ndarray], num_layers: int, shape: tuple[int, ...], spec: ParameterSpec, mesh: Mesh | None
) -> jax.Array:
  """Stacks the arrays of all layers; each is written into the donated stack before the next one is read."""
  zeros, write = _stack_functions((num_layers, *shape), _sharding(mesh, spec.dimensions))
  each = _sharding(mesh, spec.dimensions[1:])
  stack = zeros()
  for layer in range(num_layers):
    stack = write(stack, _put(read(layer), each), layer).block_until_ready()
  return stack


@functools.lru_cache
def _stack_functions(shape: tuple[int, ...], sharding: Sharding) -> tuple[Callable[..., Any], Callable[..., Any]]:
  """Functions that create a stack and write a layer into a donated one; compiled once per shape and sharding."""
  return jax.jit(lambda: jnp.zeros(shape, jnp.float32), out_shardings=sharding), jax.jit(
    lambda stack, layer, i: jax.lax.dynamic_update_index_in_dim(stack, layer, i, 0),
    donate_argnums=0,
    out_shardings=sharding,
  )


def import_model(
  source_path: str | Path,
  directory: str | Path,
  *,
  tokenizer: str | Path | None = None,
  base: str | Path | None = None,
  mesh: Mesh | None = None,
) -> Description:
  """Writes a pretrained model as a checkpoint for `drope_jax.load(directory)`, atomically.

  Args:
    source_path: a Hugging Face folder (safetensors), a .gguf file, or a PEFT folder with LoRA adapters.
    directory: must not exist yet, or be empty.
    tokenizer: a tokenizer.json (or its folder) instead of the source's.
    base: the model that the adapters were trained on; None: the folder that their config names.
    mesh: holds the weights meanwhile; None: the first local device.

  Returns:
    The description of the model.

  Raises:
    ConfigError: if the source is not supported, naming the file and the key or array.
    CheckpointError: if `directory` is not empty.
    FileError: if a file cannot be read or written, naming it.
  """
  source_path, directory = local(source_path), local(directory)
  check_free(directory)
  source, (model, context, beta) = open_source(source_path, None if base is None else local(base))
  with draft_of(directory) as draft:
    if tokenizer is None:
      source.write_tokenizer(draft)
    else:
      copy_tokenizer(local(tokenizer), draft)
    size = load_tokenizer(draft).vocab_size
    if size > model.vocab_size:
      raise ConfigError(
        f"{source.path}: vocab_size is {model.vocab_size}; its tokenizer has {size}: name the model's own with "
        "--tokenizer=PATH"
      )
    params = read_params(source, model, mesh, beta)
    checkpoint.save_weights(draft, model, params, context, source.origin())
  if beta != 1:
    logger.warning("%s: its factor on the attention logits, beta %.6g, is part of its weights now", directory, beta)
  logger.info("%s: %.1fM parameters from %s", directory, count_parameters(model) / 1e6, source.path)
  return Description(model, context, beta)
