"""Layout: the rules, the mesh, and a model that computes the same on eight devices as on one.

The tests of several devices run this file as a program of its own, because the number of devices is fixed at start-up.
"""

import dataclasses
import functools
import json
import math
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from drope_jax.config import ComputeConfig, MeshConfig, ModelConfig, QKNorm
from drope_jax.errors import ConfigError
from drope_jax.model import hidden_states, init_params, unembed
from drope_jax.parameters import map_specs, parameter_specs
from drope_jax.sharding import (
  AXES,
  RULES,
  arrange_devices,
  check_divides,
  constrain,
  make_mesh,
  mesh_axes,
  named_sharding,
  partition_spec,
)

MODEL = ModelConfig(
  vocab_size=32,
  d_model=16,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  head_dim=6,
  d_ff=24,
  qk_norm=QKNorm(),
  qkv_bias=True,
  tie_embeddings=False,
  init_std=0.3,
)
MESHES = {
  "fsdp 8": (MeshConfig(data=1, fsdp=8), "reference"),
  "data 2, fsdp 2, tensor 2": (MeshConfig(fsdp=2, tensor=2), "reference"),
  "fsdp 2, tensor 2, context 2": (MeshConfig(data=1, fsdp=2, tensor=2, context=2), "reference"),
  "data 2, context 4, blockwise": (MeshConfig(data=2, context=4), "blockwise"),
}


# --- the table ---------------------------------------------------------------------------------


def test_rules_name_mesh_axes_alone():
  used = {axis for entry in RULES.values() if entry for axis in ([entry] if isinstance(entry, str) else entry)}
  assert used == set(AXES)


@pytest.mark.parametrize("dimensions", [("heads", "mlp"), ("batch", "embed"), ("vocab", "vocab")])
def test_two_dimensions_on_one_mesh_axis_are_refused(dimensions):
  with pytest.raises(ValueError, match="twice") as error:
    partition_spec(dimensions)
  assert dimensions[0] in str(error.value) and "\n" not in str(error.value)


def test_an_unknown_dimension_is_refused():
  with pytest.raises(KeyError, match="head"):
    partition_spec(("batch", "head"))


@pytest.mark.parametrize("tie_embeddings", [True, False])
@pytest.mark.parametrize("scope", ["full", "head"])
def test_every_parameter_has_a_layout_with_an_entry_for_each_dimension(scope, tie_embeddings):
  config = ModelConfig(
    vocab_size=8, d_model=8, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=4, d_ff=8,
    qk_norm=QKNorm(scope), qkv_bias=True, tie_embeddings=tie_embeddings,
  )  # fmt: skip
  for spec in jax.tree.leaves(parameter_specs(config)):
    assert len(partition_spec(spec.dimensions)) == len(spec.shape)


def test_every_matrix_is_split_over_fsdp_context_and_tensor():
  for name in ("q", "k", "v", "o", "gate", "up", "down"):
    axes = {axis for dimension in parameter_specs(MODEL)["layers"][name].dimensions for axis in mesh_axes(dimension)}
    assert axes == {"fsdp", "context", "tensor"}, name


def test_outside_of_a_mesh_a_constraint_does_nothing():
  x = jnp.ones((2, 3))
  assert constrain(x, "batch", "length") is x


# --- the mesh ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
  "config",
  [
    MeshConfig(data=math.prod([len(jax.devices()), 3])),
    MeshConfig(fsdp=len(jax.devices()) * 2),
    MeshConfig(data=len(jax.devices()), tensor=5),
  ],
)
def test_a_mesh_that_does_not_fit_is_refused_in_one_line(config):
  with pytest.raises(ConfigError, match=f"MeshConfig .*fsdp={config.fsdp}.* {len(jax.devices())} devices") as error:
    make_mesh(config)
  assert "\n" not in str(error.value)


def test_one_axis_takes_all_devices_that_are_left():
  device = jax.devices()[0]
  mesh = make_mesh(MeshConfig(data=1, tensor=-1), [device])
  assert dict(mesh.shape) == {"data": 1, "fsdp": 1, "tensor": 1, "context": 1}
  assert mesh.axis_names == AXES


@dataclasses.dataclass(frozen=True)
class Chip:
  """As much of a device as its place in the mesh depends on."""

  id: int
  slice_index: int
  process_index: int = 0
  platform: str = "tpu"
  device_kind: str = "chip of a test"
  core_on_chip: int = 0

  @property
  def coords(self):
    return self.id % 2, self.id % 100 // 2, 0


def chips(*per_slice):
  return [Chip(100 * slice_ + i, slice_) for slice_, count in enumerate(per_slice) for i in range(count)]


@pytest.mark.parametrize("axis", ["data", "fsdp"])
def test_slices_lie_along_the_axis_of_their_factor_and_every_other_axis_stays_in_one(axis):
  config = MeshConfig(data=2, fsdp=2, tensor=-1, **{f"dcn_{axis}": 2})
  arranged = arrange_devices(config, chips(8, 8)[::-1])
  assert arranged.shape == ((4, 2, 2, 1) if axis == "data" else (2, 4, 2, 1))
  slices = np.array([chip.slice_index for chip in arranged.ravel()]).reshape(arranged.shape)
  along = AXES.index(axis)
  first, second = np.split(slices, 2, along)
  assert set(first.ravel()) == {0} and set(second.ravel()) == {1}


@pytest.mark.parametrize(
  ("config", "devices", "message"),
  [
    (MeshConfig(), chips(4, 4), "is of one slice; the TPUs lie in 2 slices: set dcn_data"),
    (MeshConfig(dcn_data=2), chips(8), "wants 2 equal slices; there are 8 in slice_index 0"),
    (MeshConfig(dcn_data=2), chips(4, 2), "wants 2 equal slices; there are 4 in slice_index 0, 2 in slice_index 1"),
    (MeshConfig(dcn_data=2), chips(3), "does not fit 3 devices: they are not 2 equal slices"),
    (MeshConfig(data=3, dcn_data=2), chips(4, 4), "does not fit 4 devices in each of 2 slices"),
  ],
)
def test_slices_that_are_not_those_of_the_devices_are_refused(config, devices, message):
  with pytest.raises(ConfigError, match=message):
    arrange_devices(config, devices)


def test_sizes_that_the_mesh_does_not_divide_are_refused_by_name():
  mesh = AbstractMesh((2, 4, 1, 3), AXES)
  check_divides(mesh, [("heads", "heads", 5), ("rows", "batch", 16), ("width", "embed", 24)])
  with pytest.raises(ConfigError, match=r"^width is 20; the mesh \(fsdp 4 x context 3\) cuts it into 12 parts"):
    check_divides(mesh, [("rows", "batch", 16), ("width", "embed", 20)])
  check_divides(mesh, [("T", "length", 12)])
  with pytest.raises(ConfigError, match=r"^T is 9; the mesh \(context 3\) cuts it into 6 parts"):  # two for each device
    check_divides(mesh, [("T", "length", 9)])


def test_sizes_that_would_fit_are_named():
  mesh = AbstractMesh((2, 4, 1, 3), AXES)
  with pytest.raises(ConfigError, match=r"could be 16 or 24, and 20 falls into 4 or 5 parts"):
    check_divides(mesh, [("rows", "batch", 20)])
  with pytest.raises(ConfigError, match=r"could be 8, and 3 falls into 1 or 3 parts"):
    check_divides(mesh, [("rows", "batch", 3)])


@pytest.mark.parametrize(
  ("config", "fitting"),
  [
    (MeshConfig(fsdp=3), ["fsdp=2", "fsdp=4"]),
    (MeshConfig(data=2, fsdp=2), ["data=4", "fsdp=4", "tensor=2", "context=2"]),
    (MeshConfig(fsdp=16), ["fsdp=8"]),
    (MeshConfig(data=1), ["data=8", "fsdp=8", "tensor=8", "context=8"]),
    (MeshConfig(data=3, fsdp=5), []),
  ],
)
def test_meshes_that_would_fit_are_named(config, fitting):
  with pytest.raises(ConfigError, match="does not fit 8 devices") as error:
    arrange_devices(config, chips(8))
  named = [part for part in str(error.value).partition(";")[2].replace(",", " ").split() if "=" in part]
  assert named == fitting
  for text in fitting:
    axis, _, size = text.partition("=")
    assert arrange_devices(dataclasses.replace(config, **{axis: int(size)}), chips(8)).size == 8


# --- eight devices are one ---------------------------------------------------------------------


def batch_of_tokens():
  tokens_BT = np.random.default_rng(0).integers(0, MODEL.vocab_size, (8, 16)).astype(np.int32)
  segments_BT = np.repeat([[0, 1]], 8, 0).repeat([6, 10], axis=1).astype(np.int32)
  return tokens_BT, segments_BT


def logits_and_gradients(kernel, params, tokens_BT, segments_BT):
  def loss(params):
    x_BTD, *_ = hidden_states(
      params, MODEL, tokens_BT, segments_BT=segments_BT, compute=ComputeConfig(attention=kernel, dtype="float32")
    )
    logits_BTV = unembed(params, x_BTD)
    return (logits_BTV**2).mean(), logits_BTV

  (_, logits_BTV), gradients = jax.value_and_grad(loss, has_aux=True)(params)
  return logits_BTV, gradients


def largest_gap(ours, expected):
  gaps = jax.tree.map(lambda x, y: float(np.abs(np.asarray(x) - np.asarray(y)).max()), ours, expected)
  return max(jax.tree.leaves(gaps))


def run_on_every_mesh():
  """What each mesh makes of the same parameters and tokens; printed as JSON."""
  key, inputs = jax.random.key(0), batch_of_tokens()
  expected_params = init_params(MODEL, key)
  expected = jax.jit(logits_and_gradients, static_argnums=0)("reference", expected_params, *inputs)
  report = {}
  for name, (config, kernel) in MESHES.items():
    mesh = make_mesh(config)
    shardings = map_specs(lambda spec, mesh=mesh: named_sharding(mesh, spec.dimensions), MODEL)
    with jax.set_mesh(mesh):
      params = jax.jit(functools.partial(init_params, MODEL), out_shardings=shardings)(key)
      placed = [jax.device_put(x, named_sharding(mesh, ("batch", "length"))) for x in inputs]
      logits, gradients = jax.jit(logits_and_gradients, static_argnums=0)(kernel, params, *placed)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    report[name] = {
      "mesh": dict(mesh.shape),
      "shards": {
        jax.tree_util.keystr(path, simple=True, separator="."): [
          sorted({shard.data.shape for shard in leaf.addressable_shards}), len(leaf.addressable_shards)
        ]
        for path, leaf in leaves
      },
      "params_gap": largest_gap(params, expected_params),
      "logits_gap": largest_gap(logits, expected[0]),
      "gradients_gap": largest_gap(gradients, expected[1]),
      "logits_scale": float(np.abs(expected[0]).max()),
      "smallest_gradient": min(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(expected[1])),
    }  # fmt: skip
  print(json.dumps(report))


@pytest.fixture(scope="module")
def reports():
  from support.eight_devices import devices_flags  # which the process below does not find

  environment = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": devices_flags(8),
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiling takes longer than running
  }
  finished = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=300)
  assert finished.returncode == 0, finished.stderr[-3000:]
  return json.loads(finished.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", MESHES)
def test_the_mesh_has_the_sizes_of_its_config_and_all_devices(reports, name):
  sizes = reports[name]["mesh"]
  assert math.prod(sizes.values()) == 8
  for axis in AXES:
    assert getattr(MESHES[name][0], axis) in (sizes[axis], -1)


@pytest.mark.parametrize("name", MESHES)
def test_parameters_are_born_in_pieces(reports, name):
  sizes = reports[name]["mesh"]

  def shard_of(spec):
    return [
      size // math.prod(sizes[axis] for axis in mesh_axes(dim))
      for size, dim in zip(spec.shape, spec.dimensions, strict=True)
    ]

  specs = jax.tree_util.tree_leaves_with_path(
    map_specs(lambda spec: tuple(shard_of(spec)), MODEL), is_leaf=lambda node: isinstance(node, tuple)
  )
  for path, shape in specs:
    shapes, count = reports[name]["shards"][jax.tree_util.keystr(path, simple=True, separator=".")]
    assert (shapes, count) == ([list(shape)], 8), path


@pytest.mark.parametrize("name", MESHES)
def test_eight_devices_compute_what_one_does(reports, name):
  report = reports[name]
  assert report["params_gap"] < 1e-6
  assert report["logits_gap"] < 1e-5 * max(1, report["logits_scale"])
  assert report["gradients_gap"] < 1e-5
  assert report["smallest_gradient"] > 1e-4  # there was something to compare


if __name__ == "__main__":
  run_on_every_mesh()
