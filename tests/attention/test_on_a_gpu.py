"""What is lowered for a GPU, on a machine that has none: which kernel serves a call, and whole programs of a model."""

import dataclasses
import logging
import re

import jax
import jax.numpy as jnp
import pytest
from support.gpu import lowered, lowered_from, on_h200
from support.lowering import lower
from support.tiny_run import tiny_model, tiny_run

from drope_jax import attention as package
from drope_jax.attention import Segments, attention
from drope_jax.config import ComputeConfig
from drope_jax.generation import Generation, _decode, _prefill
from drope_jax.model import hidden_states, init_params
from drope_jax.positions import Layer, LayerPattern, RoPE

CUDNN, CUDNN_BACKWARD, TRITON = "__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward", "__gpu$xla.gpu.triton"


def kernels(program: str) -> list[str]:
  """The GPU kernels that a lowered program calls; cuDNN's with the kind of their mask."""
  calls = re.findall(r"custom_call @(__\S+?)\(.*", program)
  masks = iter(re.findall(r"mask_type[^A-Z]+([A-Z_]+)", program))
  return [f"{name} {next(masks)}" if "cudnn" in name else name for name in calls]


CALLS = {
  "rows": ({}, [f"{CUDNN} CAUSAL", f"{CUDNN_BACKWARD} CAUSAL"], ""),
  "heads of 256": ({"head_dim": 256}, [f"{CUDNN} CAUSAL", f"{CUDNN_BACKWARD} CAUSAL"], ""),
  "documents": ({"segments": True}, [TRITON] * 3, "triton, since cudnn cannot take segments"),
  "a cap": ({"softcap": 20.0}, [TRITON] * 3, "triton, since cudnn cannot take a cap"),
  "heads of 100": ({"head_dim": 100}, [TRITON] * 3, "triton, since cudnn cannot take heads of 100"),
  "one token": ({"queries": 1, "cached": True}, [f"{CUDNN} PADDING"], "attention kernel: cudnn"),
  "one token, window": (
    {"queries": 1, "cached": True, "window": 30},
    [TRITON],
    "cached keys with a window",
  ),
  "a prompt": ({"cached": True}, [TRITON], "cached keys for more than one query"),
  "float32": ({"dtype": jnp.float32}, [], "unrolled, since cudnn cannot take float32"),
}


@pytest.mark.parametrize("name", CALLS)
def test_each_call_has_its_kernel_and_the_choice_is_said(name, caplog):
  settings, expected, said = CALLS[name]
  how = {"queries": 128, "head_dim": 64, "dtype": jnp.bfloat16, "segments": False, "cached": False, **settings}
  q, k = (jax.ShapeDtypeStruct((2, *shape, how["head_dim"]), how["dtype"]) for shape in ((how["queries"], 4), (128, 2)))
  numbers = jax.ShapeDtypeStruct((2, how["queries"]), jnp.int32)

  def loss(q, k, v, numbers):
    segments = Segments(numbers, numbers) if how["segments"] else None
    offset = numbers[:, 0] if how["cached"] else 0
    limits = {key: how.get(key) for key in ("window", "softcap")}
    return attention(q, k, v, offset=offset, segments=segments, **limits).astype(jnp.float32).sum()

  package._log_choice.cache_clear()
  with on_h200(), caplog.at_level(logging.INFO):
    program = lowered(loss if how["cached"] else jax.grad(loss, (0, 1, 2)), q, k, k, numbers)
  assert kernels(program) == expected
  assert said in caplog.text
  assert [record.levelname for record in caplog.records] == ["INFO" if expected else "WARNING"]


def test_a_train_step_with_a_document_mask_has_kernels_for_each_device_s_rows_and_heads(corpus):
  compute = ComputeConfig(scan_layers=True)
  config = tiny_run(corpus, model=tiny_model(head_dim=8), data={"document_mask": True}, compute=compute)
  with on_h200(data=2, tensor=2) as mesh:
    program = lower(config, mesh, "cuda")
  assert kernels(program) == [TRITON] * 3
  assert program.count("stablehlo.while") == 2  # over the layers; a third would be the blockwise kernel's
  call = next(line for line in program.splitlines() if TRITON in line)
  assert "tensor<4x16x2x16xbf16>" in call  # of 8 rows and 4 heads; heads of 8 are padded to 16


def test_generation_reads_prompts_and_tokens_with_kernels():
  positions = LayerPattern((Layer(RoPE()), Layer(RoPE(), window=8)))
  model = tiny_model(head_dim=8, positions=positions)
  params = jax.eval_shape(lambda: init_params(dataclasses.replace(model), jax.random.key(0)))
  compute = ComputeConfig(scan_layers=False)
  with on_h200():
    batch = Generation(params, model, [[1] * 40, [2] * 50], max_new_tokens=8, compute=compute)
    prefill = _prefill.trace(*batch._prompts(), **batch._how, chunk=batch._chunk)
    decode = _decode.trace(params, batch._request, prefill.out_info, 8, **batch._how)
    assert kernels(lowered_from(prefill)) == [TRITON] * 2
    assert kernels(lowered_from(decode)) == [f"{CUDNN} PADDING", TRITON]


@pytest.mark.parametrize(("settings", "loops"), [({}, 0), ({"scan_layers": True}, 1)])
def test_layers_are_unrolled_unless_it_is_said_otherwise(settings, loops):
  model = tiny_model(head_dim=8)
  tokens = jax.ShapeDtypeStruct((2, 16), jnp.int32)

  def states(params, tokens):
    return hidden_states(params, model, tokens, compute=ComputeConfig(**settings)).states_BTD

  with on_h200():
    params = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    assert lowered(states, params, tokens).count("stablehlo.while") == loops
