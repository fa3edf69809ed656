"""GPUs that are not here: how they are named, and what is read from programs compiled for them."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest
from support.gpu import on_h200

from drope_jax.aot import compile as aot
from drope_jax.aot import hlo
from drope_jax.aot.gpus import target_config
from drope_jax.aot.kernels import kernel_traffic
from drope_jax.aot.roofline import CHIPS, Work, parse_topology, roofline
from drope_jax.aot.traced_flops import traced_flops
from drope_jax.attention import Segments, attention
from drope_jax.errors import ConfigError, ToolError

PROGRAM = """HloModule jit_step, is_scheduled=true

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}

%fused_dot (p0: bf16[64,32], p1: bf16[32,16]) -> bf16[64,16] {
  %p0 = bf16[64,32]{1,0} parameter(0)
  %p1 = bf16[32,16]{1,0} parameter(1)
  ROOT %dot = bf16[64,16]{1,0} dot(%p0, %p1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%fused_reduce (p2: bf16[64,16]) -> f32[64] {
  %p2 = bf16[64,16]{1,0} parameter(0)
  %wide = f32[64,16]{1,0} convert(%p2)
  %zero = f32[] constant(0)
  ROOT %reduce = f32[64]{0} reduce(%wide, %zero), dimensions={1}, to_apply=%sum
}

%fused_gather (p3: bf16[64,16], p4: s32[4,1]) -> bf16[4,16] {
  %p3 = bf16[64,16]{1,0} parameter(0)
  %bitcast.1 = bf16[64,16]{1,0} bitcast(%p3)
  %p4 = s32[4,1]{1,0} parameter(1)
  ROOT %gather = bf16[4,16]{1,0} gather(%bitcast.1, %p4), slice_sizes={1,16}
}

%fused_update (p5: bf16[64,16], p6: bf16[4,16], p7: s32[]) -> bf16[64,16] {
  %p5 = bf16[64,16]{1,0} parameter(0)
  %p6 = bf16[4,16]{1,0} parameter(1)
  %p7 = s32[] parameter(2)
  ROOT %update = bf16[64,16]{1,0} dynamic-update-slice(%p5, %p6, %p7, %p7)
}

ENTRY %main (x: bf16[64,32], w: bf16[32,16], i: s32[4,1], j: s32[]) -> (f32[64], bf16[64,16]) {
  %x = bf16[64,32]{1,0} parameter(0)
  %w = bf16[32,16]{1,0} parameter(1)
  %i = s32[4,1]{1,0} parameter(2)
  %j = s32[] parameter(3)
  %y = bf16[64,16]{1,0} fusion(%x, %w), kind=kCustom, calls=%fused_dot
  %all = bf16[64,16]{1,0} all-reduce(%y), channel_id=1, replica_groups={{0,1}}, to_apply=%sum
  %rows = f32[64]{0} fusion(%all), kind=kInput, calls=%fused_reduce
  %taken = bf16[4,16]{1,0} fusion(%all, %i), kind=kLoop, calls=%fused_gather
  %put = bf16[64,16]{1,0} fusion(%all, %taken, %j), kind=kLoop, calls=%fused_update
  %scores = (bf16[64,16]{1,0}, u8[0]{0}) custom-call(%put), custom_call_target="__cudnn$fmhaSoftmax"
  %out = bf16[64,16]{1,0} get-tuple-element(%scores), index=0
  ROOT %result = (f32[64]{0}, bf16[64,16]{1,0}) tuple(%rows, %out)
}
"""


def test_kernels_count_by_kind_what_they_read_and_write():
  y, taken = 64 * 16 * 2, 4 * 16 * 2
  assert kernel_traffic(hlo.parse(PROGRAM)) == {
    "products": (1, 64 * 32 * 2 + 32 * 16 * 2, y),
    "attention": (1, y, y),
    "reductions": (1, y, 64 * 4),
    "loops": (2, (taken + 4 * 4) + (taken + 4), taken + taken),  # a gather of some rows, an update in place
  }


@pytest.mark.parametrize(("kernel", "products"), [("cudnn", 2 + 5), ("triton", 2 + 3 + 4)])
def test_attention_kernels_count_the_half_of_the_scores_that_they_compute(kernel, products):
  q, k = (jax.ShapeDtypeStruct((2, 512, heads, 64), jnp.bfloat16) for heads in (8, 2))
  ids = jnp.zeros((2, 512), jnp.int32)
  segments = Segments(ids, ids) if kernel == "triton" else None

  def loss(q, k, v):
    return attention(q, k, v, kernel=kernel, segments=segments).astype(jnp.float32).sum()

  with on_h200():
    found = traced_flops(jax.jit(jax.grad(loss, (0, 1, 2))).trace(q, k, k).jaxpr)
  assert found == (products * 2 * 2 * 8 * 512 * 512 * 64 * 5 / 8, 0)  # in 4 blocks of 128 there are 10 of 16


def test_the_roofline_of_gpus_that_a_switch_joins():
  assert parse_topology("h100:8") == ("h100", (8,))
  times = roofline(Work(flops=989e12, hbm_bytes=3350e9, ici_bytes=900e9), CHIPS["h100"], (8,))
  assert times == pytest.approx({"compute": 1, "HBM": 1, "NVLink": 2, "DCN": 0})


def test_gpus_are_those_of_one_host():
  with pytest.raises(ConfigError, match="h100:16 is more than the 8 GPUs of one host"):
    aot.target_devices("h100:16")
  with pytest.raises(ConfigError, match="--slices is 2; GPUs are those of one host"):
    aot.target_devices("h100:8", slices=2)


def test_a_missing_plugin_is_named_with_its_extra(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(
    ToolError, match=r"needs jax-cuda13-plugin, which is not installed: pip install -e \"\.\[cuda\]\""
  ):
    target_config("h100")
