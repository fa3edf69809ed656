"""The training loss with its own gradient: its values against the plain version, its dtypes, its memory, its meshes."""

import functools
import importlib.util
import math
import re

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType
from support.eight_devices import on_eight_devices
from support.loss_mesh_script import JOBS, LENGTH, ROWS, VOCAB, WIDTH, arguments, loss_and_gradients
from support.lowering import lower
from support.tiny_run import tiny_model, tiny_run

from drope_jax import loss, platforms
from drope_jax.config import ComputeConfig
from drope_jax.loss import chunk_length, one_pass_logsumexp, summed_token_losses
from drope_jax.sharding import AXES

FLOAT32, BFLOAT16 = arguments(jnp.float32), arguments(jnp.bfloat16)


def own(arguments, **settings):
  return jax.jit(functools.partial(loss_and_gradients, **settings))(*arguments)


def plain(arguments, **settings):
  """In float32 and one chunk, with the derivatives of JAX."""
  weight, x, targets, weights = arguments
  exact = weight.astype(x.dtype).astype(jnp.float32), x.astype(jnp.float32), targets, weights
  return own(exact, derivatives="jax", chunk=LENGTH, **settings)


@pytest.mark.parametrize("z_loss", [0.0, 0.1])
@pytest.mark.parametrize("chunk", [None, 5, 4])  # 4 leaves a ragged last chunk of the 10 targets
def test_values_and_gradients_are_those_of_the_plain_loss(chunk, z_loss):
  found, expected = own(FLOAT32, chunk=chunk, z_loss=z_loss), plain(FLOAT32, z_loss=z_loss)
  assert min(float(abs(leaf).max()) for leaf in jax.tree.leaves(expected)) > 0.1  # there is something to compare
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected)


def relative_error(found, expected):
  found, expected = (np.asarray(a, np.float64) for a in (found, expected))
  return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("chunk", [None, 4])
def test_bfloat16_activations_cost_the_rounding_of_the_gradient_alone(chunk):
  """Two roundings, of the logits' gradient and of that of x, each by at most 2^-9; sums and the loss are float32."""
  ((total, nll), gradients) = own(BFLOAT16, chunk=chunk, z_loss=0.1)
  ((expected_total, expected_nll), expected) = plain(BFLOAT16, z_loss=0.1)
  np.testing.assert_allclose([total, nll], [expected_total, expected_nll], rtol=1e-6)
  assert [g.dtype for g in gradients] == [jnp.float32, jnp.bfloat16, jnp.float32]
  errors = [relative_error(*pair) for pair in zip(gradients, expected, strict=True)]
  assert max(errors[:2]) < 2**-8 and errors[2] < 1e-5


@pytest.mark.parametrize("chunk", [None, 4])
def test_the_loss_of_a_gpu_which_reads_the_logits_once(monkeypatch, chunk):
  expected = plain(FLOAT32, z_loss=0.1)
  monkeypatch.setattr(loss, "target_platform", lambda: "gpu")
  found = own(FLOAT32, chunk=chunk, z_loss=0.1)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3, 1e37])
def test_one_pass_finds_the_log_partition_of_logits_of_any_size(scale):
  logits = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 1000)) * scale, jnp.float32)
  rising = jnp.sort(logits[0, 0])
  logits = logits.at[0, 0].set(rising).at[0, 1].set(rising[::-1]).at[1, 0, ::2].set(-jnp.inf)
  np.testing.assert_allclose(one_pass_logsumexp(logits), jax.nn.logsumexp(logits, axis=-1), rtol=1e-6)
  assert np.isnan(one_pass_logsumexp(logits.at[1, 2, 7].set(jnp.nan)))[1, 2]


def test_what_does_not_count_has_no_gradient():
  _, (_, d_x, _) = own(FLOAT32, chunk=4)
  weights = np.asarray(FLOAT32[3])
  assert (weights == 0).any()
  np.testing.assert_array_equal(np.asarray(d_x)[weights == 0], 0.0)


def test_the_reported_likelihood_has_no_gradient():
  weight, x, targets, weights = FLOAT32
  gradient = jax.grad(lambda x: summed_token_losses({"embedding": weight}, x, targets, weights, z_loss=0.1).nll)(x)
  np.testing.assert_array_equal(gradient, 0.0)


def test_an_untied_matrix_gets_the_gradient():
  weight, x, targets, weights = FLOAT32

  def total(params):
    return summed_token_losses(params, x, targets, weights).total

  gradients = jax.grad(total)({"embedding": jnp.ones_like(weight), "unembedding": weight})
  np.testing.assert_array_equal(gradients["embedding"], 0.0)
  np.testing.assert_allclose(gradients["unembedding"], plain(FLOAT32)[1][0], rtol=1e-5, atol=1e-5)


def test_forward_mode_goes_with_the_derivatives_of_jax():
  weight, x, targets, weights = FLOAT32

  def total(weight, x, derivatives):
    return summed_token_losses({"embedding": weight}, x, targets, weights, chunk=4, derivatives=derivatives).total

  tangents = jnp.cos(weight), jnp.sin(x)
  _, slope = jax.jvp(lambda *args: total(*args, "jax"), (weight, x), tangents)
  d_weight, d_x, _ = plain(FLOAT32)[1]
  np.testing.assert_allclose(slope, (d_weight * tangents[0]).sum() + (d_x * tangents[1]).sum(), rtol=1e-4)
  with pytest.raises(TypeError, match="forward-mode"):
    jax.jvp(lambda *args: total(*args, "own"), (weight, x), tangents)


# --- the program -------------------------------------------------------------------------------


def equations(jaxpr):
  """All of a program, those inside of its loops and calls too, each once."""
  for equation in jaxpr.eqns:
    yield equation
    for inner in jax.extend.core.jaxprs_in_params(equation.params):
      yield from equations(inner)


def products_over_vocabulary(function):
  program = jax.make_jaxpr(function)(*BFLOAT16).jaxpr
  products = [equation for equation in equations(program) if equation.primitive.name == "dot_general"]
  return [product for product in products if any(VOCAB in v.aval.shape for v in (*product.invars, *product.outvars))]


@pytest.mark.parametrize("chunk", [LENGTH, 4])
def test_logits_are_made_once(chunk):
  assert len(products_over_vocabulary(functools.partial(loss_and_gradients, chunk=chunk))) == 3


def test_without_a_gradient_none_is_computed():
  def total(weight, x, targets, weights):
    return summed_token_losses({"embedding": weight}, x, targets, weights, chunk=4).total

  assert len(products_over_vocabulary(total)) == 1


def test_no_array_of_all_logits():
  def positions(chunk):
    program = jax.make_jaxpr(functools.partial(loss_and_gradients, chunk=chunk))(*FLOAT32).jaxpr
    shapes = [v.aval.shape for equation in equations(program) for v in equation.outvars]
    return max(math.prod(shape[:-1]) for shape in shapes if len(shape) == 3 and shape[-1] == VOCAB)

  assert positions(LENGTH) == ROWS * LENGTH  # the check sees them where they are
  assert positions(2) == ROWS * 2


def test_a_vocabulary_of_152k_costs_the_memory_of_a_few_chunks():
  vocab, width, length = 151_936, 8, 1024
  shapes = [((vocab, width), jnp.float32), ((1, length, width), jnp.float32), ((1, length), jnp.int32)]
  inputs = [jax.ShapeDtypeStruct(*shape) for shape in [*shapes, ((1, length), jnp.float32)]]

  def temporaries(chunk):
    compiled = jax.jit(functools.partial(loss_and_gradients, chunk=chunk)).lower(*inputs).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  whole_logits = length * vocab * 4
  assert temporaries(length) > whole_logits  # this measure sees them
  assert temporaries(32) < whole_logits / 4


DOT = re.compile(r"stablehlo\.dot_general.*: \(tensor<([^>]*)>, tensor<([^>]*)>\) -> tensor<([^>]*)>")
ACCELERATORS = pytest.mark.parametrize("platform", ["cuda", "tpu"])


def dtypes_of_products(text, size):
  """Of every product in a lowered program that has an operand or a result with a dimension of `size`: their dtypes."""
  types = [[(shape.split("x")[:-1], shape.split("x")[-1]) for shape in found] for found in DOT.findall(text)]
  return [[dtype for _, dtype in product] for product in types if any(str(size) in sizes for sizes, _ in product)]


@ACCELERATORS
def test_products_over_the_vocabulary_take_bfloat16_and_add_up_in_float32(platform):
  """As lowered for an accelerator, which this machine need not have."""
  step = jax.jit(functools.partial(loss_and_gradients, chunk=4))
  text = step.trace(*BFLOAT16).lower(lowering_platforms=(platform,)).as_text()
  assert dtypes_of_products(text, VOCAB) == [["bf16", "bf16", "f32"]] * 3


@ACCELERATORS
@pytest.mark.parametrize("tied", [True, False])
def test_the_train_step_has_no_other_products_over_the_vocabulary(platform, tied):
  """Embedding, layers, loss and optimizer included; the logits of a chunk are made once there too."""
  model = tiny_model(tie_embeddings=tied)
  compute = ComputeConfig(dtype="bfloat16", attention="reference", loss_chunk=4)
  config = tiny_run("", model=model, compute=compute)
  text = lower(config, AbstractMesh((1,) * len(AXES), AXES, axis_types=(AxisType.Auto,) * len(AXES)), platform)
  assert dtypes_of_products(text, model.vocab_size) == [["bf16", "bf16", "f32"]] * 3
  assert len(dtypes_of_products(text, model.d_ff)) >= 9  # of the layers: gate, up and down, and the gradients of each


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="compiling for TPUs needs libtpu")
@pytest.mark.slow
def test_as_compiled_for_a_tpu_too():
  from drope_jax.aot import compile as aot

  device = aot.tpu_devices("v5e:2x2")[0]
  mesh = jax.sharding.Mesh(np.array([device]), "x")
  put = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  inputs = [
    jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=put) for a in arguments(jnp.bfloat16, vocab=4096, width=256)
  ]
  text = jax.jit(functools.partial(loss_and_gradients, chunk=4)).lower(*inputs).compile().as_text()
  products = re.findall(r"= \S+ (?:convolution|dot)\((.*?)\)", text)
  assert len(products) >= 3
  types = dict(re.findall(r"%([\w.-]+) = (\w+)\[", text))
  assert {types[name] for operands in products for name in re.findall(r"%([\w.-]+)", operands)} == {"bf16"}


# --- chunks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [141 * 10**9, 80 * 10**9, 16 * 2**30])
def test_a_chunk_takes_an_eighth_of_the_memory_at_most(monkeypatch, memory):
  monkeypatch.setattr(loss, "target_memory", lambda: memory)
  chunk = chunk_length(16, 1024, width=896, vocab=151_936, dtype=jnp.dtype("bfloat16"), gradient=True)  # of 494M
  assert chunk * 16 * 151_936 * 6 <= memory / 8
  assert chunk == 1024 or 2 * chunk * 16 * 151_936 * 6 > memory / 8
  assert (chunk == 1024) == (memory == 141 * 10**9)


def test_chunks_follow_the_shapes():
  assert chunk_length(32, 128, width=128, vocab=1024, dtype=jnp.dtype("float32"), gradient=True) == 128  # small: whole
  smollm2 = {"width": 576, "vocab": 49_152, "dtype": jnp.dtype("bfloat16")}
  long = chunk_length(1, 131_072, **smollm2, gradient=False)
  assert long * 49_152 * 4 <= 128 * 2**20  # an evaluation takes little more than its weights
  assert chunk_length(8, 2048, **smollm2, gradient=True) == 683  # three equal ones, not two and a rest
  assert chunk_length(10**6, 8, width=64, vocab=10**6, dtype=jnp.dtype("float32"), gradient=True) == 1


def test_memory_is_known_of_every_device_with_a_known_peak():
  assert platforms.MEMORY.keys() == platforms.PEAK_FLOPS.keys()
  assert platforms.target_memory() == platforms.UNKNOWN_MEMORY  # a CPU


# --- several devices ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reports():
  answer = on_eight_devices("loss_mesh_script.py", jobs=JOBS, JAX_DISABLE_MOST_OPTIMIZATIONS="1")
  return dict(zip(map(str, JOBS), answer["answers"], strict=True))


@pytest.mark.parametrize("job", JOBS, ids=str)
def test_eight_devices_compute_what_one_does(reports, job):
  (total, nll), gradients = plain(FLOAT32, z_loss=0.1)
  found = reports[str(job)]
  np.testing.assert_allclose(found["sums"], [total, nll], rtol=1e-5)
  for ours, expected in zip(found["gradients"], gradients, strict=True):
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("job", JOBS, ids=str)
def test_devices_add_up_the_gradient_of_the_matrix_once_and_not_for_each_chunk(reports, job):
  """No collective of a loop moves as much as the matrix's gradient on a device."""
  share = VOCAB * WIDTH * 4 // job.get("tensor", 1)
  assert reports[str(job)]["largest_in_loop"] < share / 2 <= reports[str(job)]["largest"]
