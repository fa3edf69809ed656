"""A pretrained model into a checkpoint of ours, array by array."""

import functools
import logging
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, Sharding, SingleDeviceSharding

from drope_jax import checkpoint
from drope_jax.checkpoint import CheckpointError
from drope_jax.config import ConfigError, ModelConfig
from drope_jax.data.tokenizers import load_tokenizer
from drope_jax.interop.gguf_file import GGUFFile
from drope_jax.interop.hf_config import Pretrained, read_config
from drope_jax.interop.sources import HuggingFaceFolder, Source, copy_tokenizer
from drope_jax.interop.weights import foreign_names, foreign_shape, from_foreign, layer_shape, weights_of
from drope_jax.model import ParameterSpec, Params, count_parameters
from drope_jax.sharding import named_sharding

logger = logging.getLogger(__name__)


def open_source(path: str | Path) -> tuple[Source, Pretrained]:
  """A folder of safetensors or a GGUF file, its config read and every array's name and shape checked.

  Raises:
    ConfigError: naming the file and what is missing or not supported in it.
  """
  path = Path(path)
  if path.is_dir():
    source: Source = HuggingFaceFolder(path)
    described = path / "config.json"
  elif path.is_file() and path.suffix == ".gguf":
    source, described = GGUFFile(path), path
  else:
    raise ConfigError(f"{path}: neither a folder of a Hugging Face model nor a .gguf file")
  pretrained = read_config(source.config, described)
  _check_arrays(source, pretrained.model)
  return source, pretrained


def _check_arrays(source: Source, model: ModelConfig) -> None:
  wanted = {name: foreign_shape(weight, spec) for name, (weight, spec) in foreign_names(model).items()}
  for name, shape in wanted.items():
    if name not in source.shapes:
      raise ConfigError(f"{source.path}: the array {name} is missing")
    if source.shapes[name] != shape:
      raise ConfigError(f"{source.path}: {name} is of shape {source.shapes[name]}; by the config it should be {shape}")
  for name in sorted(source.shapes.keys() - wanted.keys()):
    if name.endswith("rotary_emb.inv_freq"):  # old checkpoints hold what the config says
      continue
    if name == "lm_head.weight" and source.shapes[name] == source.shapes["model.embed_tokens.weight"]:
      if np.array_equal(source.read(name), source.read("model.embed_tokens.weight")):
        continue
      raise ConfigError(f"{source.path}: tie_word_embeddings is true, but {name} is not the embedding")
    raise ConfigError(f"{source.path}: the array {name} has no place in a model of this config")


def read_params(source: Source, model: ModelConfig, mesh: Mesh | None = None) -> Params:
  """The weights of a source, float32, on the first local device or sharded over `mesh`.

  Each array is read once and goes to its place at once: the host holds one of them beside what the devices hold.
  """
  layers: Params = {}
  params: Params = {"layers": layers}
  for weight, spec in weights_of(model):

    def read(name: str, weight: Any = weight, spec: ParameterSpec = spec) -> np.ndarray:
      return from_foreign(weight, spec, source.read(name))

    if weight.stacked:
      names = [weight.hugging_face.format(i) for i in range(model.num_layers)]
      layers[weight.ours] = _stack(read, names, layer_shape(weight, spec), spec, mesh)
    else:
      params[weight.ours] = _put(read(weight.hugging_face), _sharding(mesh, spec.dimensions))
  return params


def _sharding(mesh: Mesh | None, dimensions: tuple[str, ...]) -> Sharding:
  return SingleDeviceSharding(jax.local_devices()[0]) if mesh is None else named_sharding(mesh, dimensions)


def _put(array: np.ndarray, sharding: Sharding) -> jax.Array:
  return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _stack(
  read: Callable[[str], np.ndarray], names: list[str], shape: tuple[int, ...], spec: ParameterSpec, mesh: Mesh | None
) -> jax.Array:
  """The arrays `names`, stacked in front; each is written into the donated stack before the next is read."""
  zeros, write = _stack_functions((len(names), *shape), _sharding(mesh, spec.dimensions))
  each = _sharding(mesh, spec.dimensions[1:])
  stack = zeros()
  for i, name in enumerate(names):
    stack = write(stack, _put(read(name), each), i).block_until_ready()
  return stack


@functools.lru_cache
def _stack_functions(shape: tuple[int, ...], sharding: Sharding) -> tuple[Callable[..., Any], Callable[..., Any]]:
  """Makes a stack of this shape, and writes into one that is given up for it; compiled once for all of a shape."""
  return jax.jit(lambda: jnp.zeros(shape, jnp.float32), out_shardings=sharding), jax.jit(
    lambda stack, layer, i: jax.lax.dynamic_update_index_in_dim(stack, layer, i, 0),
    donate_argnums=0,
    out_shardings=sharding,
  )


def import_model(
  source_path: str | Path, directory: str | Path, *, tokenizer: str | Path | None = None, mesh: Mesh | None = None
) -> Pretrained:
  """Writes a pretrained model as a checkpoint that `drope_jax.load(directory)` reads: all of it, or nothing.

  Args:
    source_path: a Hugging Face folder (safetensors) or a .gguf file.
    directory: not there yet, or empty.
    tokenizer: a tokenizer.json (or its folder) instead of the source's.
    mesh: where the weights are held on their way; None: the first local device.

  Raises:
    ConfigError: if the source is not supported, naming the file and the key or array.
    CheckpointError: if `directory` holds something.
  """
  directory = Path(directory)
  check_free(directory)
  source, pretrained = open_source(source_path)
  directory.parent.mkdir(parents=True, exist_ok=True)
  draft = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
  try:
    if tokenizer is None:
      source.write_tokenizer(draft)
    else:
      copy_tokenizer(Path(tokenizer), draft)
    size = load_tokenizer(draft).vocab_size
    if size > pretrained.model.vocab_size:
      raise ConfigError(f"{source.path}: vocab_size is {pretrained.model.vocab_size}; its tokenizer has {size}")
    params = read_params(source, pretrained.model, mesh)
    checkpoint.save_weights(draft, pretrained.model, params, pretrained.context, source.origin())
    move(draft, directory)
  finally:
    shutil.rmtree(draft, ignore_errors=True)
  logger.info("%s: %.1fM parameters from %s", directory, count_parameters(pretrained.model) / 1e6, source.path)
  return pretrained


def check_free(directory: Path) -> None:
  """Raises CheckpointError unless `directory` is missing or empty."""
  if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
    raise CheckpointError(f"{directory}: holds something already; name another directory")


def move(draft: Path, directory: Path) -> None:
  """Makes a finished draft `directory`, unless something has come to lie there meanwhile."""
  draft.chmod(0o755)  # mkdtemp's is private
  try:
    draft.rename(directory)
  except OSError as error:
    raise CheckpointError(f"{directory}: holds something already; name another directory") from error
