"""What is read from compiled programs, the arithmetic on it, and real steps compiled for TPUs that are not here."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from support.aot_row import compiled_row

from drope_jax.aot import __main__ as aot_command
from drope_jax.aot import compile as aot
from drope_jax.aot import hlo, traffic
from drope_jax.aot.roofline import CHIPS, Work, parse_topology, roofline
from drope_jax.aot.traced_flops import traced_flops, traced_squares, visible_blocks
from drope_jax.attention import Segments, attention
from drope_jax.config import MeshConfig, TrainConfig
from drope_jax.errors import ConfigError, ToolError
from drope_jax.model_config import compute_dtype
from drope_jax.platforms import PEAK_FLOPS, target_platform
from drope_jax.sharding import make_mesh
from drope_jax.training.run import resolve
from drope_jax.transitions import drop
from experiments.configs import pretrain, recalibrate

ROOT = Path(__file__).parents[2]
needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="compiling for TPUs needs libtpu (extras tpu and dev)"
)

PROGRAM = """HloModule jit_step, is_scheduled=true

%body (p: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %p = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %one = s32[]{:T(128)} constant(2)
  %next = s32[]{:T(128)} add(%i, %one)
  %x = f32[8,128]{1,0:T(8,128)} get-tuple-element(%p), index=1
  %near = f32[8,128]{1,0:T(8,128)S(1)} negate(%x)
  %gathered = f32[32,128]{1,0:T(8,128)} all-gather(%near), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}
  %y = f32[8,128]{1,0:T(8,128)} all-reduce(%x), channel_id=2, replica_groups={{0,4},{1,5},{2,6},{3,7}}, to_apply=%sum
  ROOT %out = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) tuple(%next, %y)
}

%condition (q: (s32[], f32[8,128])) -> pred[] {
  %q = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %j = s32[]{:T(128)} get-tuple-element(%q), index=0
  %limit = s32[]{:T(128)} constant(12)
  ROOT %less = pred[]{:T(512)} compare(%j, %limit), direction=LT
}

ENTRY %main (a: f32[8,128]) -> f32[8,128] {
  %a = f32[8,128]{1,0:T(8,128)} parameter(0)
  %zero = s32[]{:T(128)} constant(0)
  %start = s32[]{:T(128)} copy(%zero)
  %init = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) tuple(%start, %a)
  %loop = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) while(%init), condition=%condition, body=%body
  ROOT %result = f32[8,128]{1,0:T(8,128)} get-tuple-element(%loop), index=1
}
"""


# --- compiled programs -------------------------------------------------------------------------


def test_a_loop_runs_as_often_as_its_condition_start_and_step_say():
  counts, unknown = hlo.runs(hlo.parse(PROGRAM))
  assert counts["body"] == 6 and counts["main"] == 1 and unknown == 0


@pytest.mark.parametrize("unclear", [("direction=LT", "direction=NE"), ("add(%i, %one)", "multiply(%i, %one)")])
def test_a_loop_whose_length_is_not_clear_is_said_to_be_counted_once(unclear):
  counts, unknown = hlo.runs(hlo.parse(PROGRAM.replace(*unclear)))
  assert counts["body"] == 1 and unknown == 1


def test_collectives_count_what_a_chip_receives_as_often_as_they_run():
  size = 8 * 128 * 4
  within = traffic.collectives(hlo.parse(PROGRAM))
  # An all-gather of 4 pieces brings 3; an all-reduce of 2 half and half of the sum.
  assert within.ici == {"all-gather": 6 * 3 * size, "all-reduce": 6 * 2 * size // 2} and not within.dcn
  between = traffic.collectives(hlo.parse(PROGRAM), slice_of=lambda partition: partition // 4)
  assert set(between.ici) == {"all-gather"} and set(between.dcn) == {"all-reduce"}


def test_what_the_hosts_carry_between_slices_counts_as_such():
  sent = 'frontend_attributes={_xla_megascale_reduce_operation="SUM",_xla_megascale_transfer_type="ALL_REDUCE"}'
  line = f"  %recv.1 = (f32[64,8]{{1,0}}, u32[], token[]) recv(%after-all), channel_id=9, is_host_transfer=true, {sent}"
  lines = PROGRAM.splitlines()
  place = next(i for i, text in enumerate(lines) if text.startswith("ENTRY")) + 1
  found = traffic.collectives(hlo.parse("\n".join([*lines[:place], line, *lines[place:]])))
  assert found.dcn == {"all-reduce": 64 * 8 * 4} and found.ici == traffic.collectives(hlo.parse(PROGRAM)).ici


def test_of_what_starts_a_collective_only_what_arrives_counts():
  """As GPUs' programs have it, of several arrays at one time."""
  line = next(line for line in PROGRAM.splitlines() if "all-gather" in line)
  started = "  %started = ((f32[32,128]{1,0}, f32[16,128]{1,0}), (f32[8,128]{1,0}, f32[4,128]{1,0})) "
  started += "reduce-scatter-start(%x, %x), channel_id=3, replica_groups=[2,4]<=[8], dimensions={0}, to_apply=%sum"
  texts = PROGRAM.replace(line, f"{line}\n{started}"), PROGRAM
  found, before = (traffic.collectives(hlo.parse(text)).ici for text in texts)
  assert found - before == {"reduce-scatter": 6 * 3 * (8 + 4) * 128 * 4}


def test_the_pieces_of_a_split_collective_count_once():
  line = next(line for line in PROGRAM.splitlines() if "all-gather" in line)
  twice = PROGRAM.replace(line, line + "\n" + line.replace("%gathered", "%gathered.clone"))
  assert traffic.collectives(hlo.parse(twice)) == traffic.collectives(hlo.parse(PROGRAM))


@pytest.mark.parametrize(
  ("groups", "members"),
  [
    ("replica_groups={{0,2},{1,3}}", [0, 2]),
    ("replica_groups=[2,4]<=[8]", [0, 1, 2, 3]),
    ("replica_groups=[4,2]<=[2,4]T(1,0)", [0, 4]),
    ("replica_groups=mesh['a'=2,'b'=4] {'b'}", [0, 1, 2, 3]),
    ("replica_groups=mesh['a'=2,'b'=4] {'a'}", [0, 4]),
    ("replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}", [0, 2, 4, 6]),
    ("replica_groups=unheard-of", []),
  ],
)
def test_every_way_to_write_groups_is_read(groups, members):
  instruction = hlo.Instruction("x", (), "all-gather", (), groups, False)
  assert traffic.group(instruction) == members


def test_traffic_leaves_out_the_memory_on_the_chip():
  size = 8 * 128 * 4
  # In each of 6 runs the gathered array (4 pieces), the sum and the index are written and read; `near` is not in HBM.
  assert traffic.hbm_bytes(hlo.parse(PROGRAM)) == 6 * 2 * (4 * size + size + 4) + 2 * 4


def test_square_buffers_are_found_by_their_shape():
  program = hlo.parse(PROGRAM.replace("f32[32,128]", "f32[2,128,128]"))
  assert traffic.square_buffers(program, 128, {128}) == ["f32[2,128,128]"]
  assert traffic.square_buffers(hlo.parse(PROGRAM), 128, {128}) == []


def test_a_program_of_this_machine_is_read_like_one_of_a_tpu():
  def f(x):
    return jax.lax.scan(lambda c, _: (jnp.tanh(c @ c), None), x, length=7)[0]

  compiled = jax.jit(f).lower(jnp.ones((64, 64))).compile()
  counts, unknown = hlo.runs(hlo.parse(compiled.as_text()))
  assert unknown == 0 and 7 in counts.values()


# --- FLOPs and roofline ------------------------------------------------------------------------


def test_traced_flops_count_loops_branches_and_recomputation():
  def layer(x, w):
    return jnp.tanh(x @ w), None

  def loss(w, remat):
    body = jax.checkpoint(layer) if remat else layer
    return jax.lax.scan(body, jnp.ones((4, 8)), w)[0].sum()

  once = 2 * 4 * 8 * 8 * 5  # one product in each of 5 layers

  def count(remat):
    return traced_flops(jax.jit(jax.grad(loss), static_argnums=1).trace(jnp.ones((5, 8, 8)), remat).jaxpr)

  assert count(False) == (3 * once, 0)
  assert count(True) == (4 * once, 0)


def test_a_loop_of_unknown_length_is_said():
  def f(n, x):
    return jax.lax.fori_loop(0, n, lambda _, c: c @ c, x)

  assert traced_flops(jax.jit(f).trace(3, jnp.ones((4, 4))).jaxpr) == (2 * 4**3, 1)


def test_square_arrays_are_found_before_compilation():
  jaxpr = jax.jit(lambda x: jnp.tanh(x @ x.T).sum(0)).trace(jnp.ones((24, 4))).jaxpr
  assert traced_squares(jaxpr, 24, {24}) == ["float32[24,24]"]
  assert traced_squares(jaxpr, 4, {4}) == []


def test_causality_leaves_half_of_the_blocks_and_the_diagonal():
  assert visible_blocks(4) == (1 + 2 + 3 + 4) / 16
  assert visible_blocks(1) == 1


def test_the_roofline_of_each_resource():
  chip = CHIPS["v5e"]
  times = roofline(Work(flops=197e12, hbm_bytes=2 * 819e9, ici_bytes=100e9, dcn_bytes=3.125e9), chip, (4, 4))
  assert times == pytest.approx({"compute": 1, "HBM": 2, "ICI": 1, "DCN": 1})  # two links in the corner of 4 x 4
  assert chip.ici_rate((16, 16)) == 200e9  # rings
  assert CHIPS["v5p"].ici_rate((2, 4, 4)) == 5 * 100e9


def test_every_chip_has_a_peak():
  assert all(chip.device_kind in PEAK_FLOPS for chip in CHIPS.values())


@pytest.mark.parametrize("topology", ["v9:4x4", "v5e", "v5e:", "v5e:4xx4", "v5e:4x0", "v5e:4x4x", "h100:2x4", "v5e:4"])
def test_what_is_no_topology_is_refused(topology):
  with pytest.raises(ValueError, match="is no topology; allowed: NAME:AxB"):
    parse_topology(topology)


@pytest.mark.parametrize("best", [0, 1, 2, 3, 7, 8, 13])
def test_the_largest_batch_is_found_in_few_trials(best):
  tried = []
  assert aot.largest(lambda rows: tried.append(rows) or rows <= best) == best
  assert len(tried) == len(set(tried)) <= 8


def test_the_target_is_this_machine_without_a_mesh():
  assert target_platform() == jax.default_backend()


# --- configs without their checkpoint ----------------------------------------------------------


def test_the_model_of_a_recalibration_is_known_before_its_checkpoint_is_there(tmp_path):
  config = recalibrate.get_config("llama2_7b_high")
  config.init.checkpoint = str(tmp_path / "none")
  model = drop(recalibrate.BASES["llama2_7b"].model)
  found = aot.with_model(config).model
  assert found.positions is None and found.qk_norm is not None and found.d_model == model.d_model
  config.init.model = None
  with pytest.raises(ConfigError, match=r"nothing is in .*none, and InitConfig.model is not given"):
    aot.with_model(config)


def test_the_model_of_the_papers_own_recalibration_too(tmp_path):
  config = pretrain.get_config("drope")
  assert isinstance(config, TrainConfig)
  config.init.checkpoint = str(tmp_path)
  assert aot.with_model(config).model == drop(pretrain.get_config("rope_14k").model)


# --- the command -------------------------------------------------------------------------------


ROPE = "--config=experiments/configs/pretrain.py:rope"


def test_a_missing_libtpu_is_named_with_its_extra(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ToolError, match=r"needs libtpu, which is not installed: pip install -e \"\.\[tpu\]\""):
    aot.tpu_devices("v5e:4x4")


def test_bad_usage_ends_with_2_and_one_line(command):
  ended = command("drope_jax.aot", ROPE, "--topology=v9:4x4")
  assert ended.status == 2 and ended.error().startswith("error: --topology: 'v9:4x4' is no topology")


STUBBED = """
import sys
from drope_jax import cli
from drope_jax.aot import __main__ as aot_command
needed = int(sys.argv.pop(1))
aot_command._measure = lambda config: {"peak": needed << 30, "hbm": 16 << 30}
aot_command.report = lambda figures: "all that it needs"
cli.run(aot_command.main)
"""


@pytest.mark.parametrize(("needed", "status"), [(15, 0), (17, 1)])
def test_what_does_not_fit_is_told_with_its_figures_and_ends_with_1(command, needed, status, tmp_path):
  record = tmp_path / "find-batch.json"
  ended = command("-c", STUBBED, needed, ROPE, "--topology=v5e:4x4", f"--json={record}")
  assert (ended.status, ended.stdout) == (status, "all that it needs\n"), ended.stderr
  assert json.loads(record.read_text())["peak"] == needed << 30
  assert ("error: does not fit: it needs 17.00 GiB a chip of 16 GiB" in ended.stderr.splitlines()) == bool(status)


def test_the_largest_batch_is_the_last_that_fits(monkeypatch, capsys):
  def measure(config, rows):
    if rows > 40:
      raise aot.DoesNotFit("the compiler says so")
    return {"peak": rows * 2**30, "hbm": 16 * 2**30, "compile_seconds": 1.0, "rows": rows}

  monkeypatch.setattr(aot_command, "_measure", measure)
  monkeypatch.setattr(aot_command, "EVALUATE", SimpleNamespace(value=None))  # whose flags nobody has parsed
  assert aot_command._find_batch(resolve(pretrain.get_config("rope")))["rows"] == 16
  assert capsys.readouterr().out.endswith("largest: 16\n")


@needs_libtpu
def test_a_slice_that_does_not_exist_is_refused():
  with pytest.raises(ConfigError, match="'v5e:5x5' is not a slice that exists"):
    aot.tpu_devices("v5e:5x5")


@needs_libtpu
def test_a_program_for_a_tpu_is_traced_with_its_kernel_and_dtype():
  mesh = make_mesh(MeshConfig(data=1, fsdp=-1), aot.tpu_devices("v5e:2x2"))
  config = pretrain.get_config("rope")
  with jax.set_mesh(mesh):
    assert target_platform() == "tpu" and compute_dtype(config.compute) == jnp.bfloat16
  config.data.batch_size = 4
  assert "splash_mqa_fwd" in str(aot.trace_train_step(resolve(config), mesh).jaxpr)


@needs_libtpu
def test_a_batch_that_the_mesh_does_not_divide_is_refused():
  config = pretrain.get_config("rope")
  config.data.batch_size = 6
  with pytest.raises(ConfigError, match=r"6; the mesh .* cuts it into 4 parts"):
    aot.trace_train_step(resolve(config), make_mesh(MeshConfig(data=1, fsdp=-1), aot.tpu_devices("v5e:2x2")))


# --- compiled for TPUs -------------------------------------------------------------------------


@needs_libtpu
@pytest.mark.slow  # a minute or two of compilation each
@pytest.mark.parametrize("settings", [{}, {"window": 300}, {"segments": True, "logit_scale": 1.3}])
def test_splash_compiles_for_a_tpu(settings):
  mesh = make_mesh(MeshConfig(data=2, tensor=2), aot.tpu_devices("v5e:2x2"))
  rows = jax.ShapeDtypeStruct((2, 1000), jnp.int32)  # not whole blocks
  q, k = (jax.ShapeDtypeStruct((2, 1000, heads, 64), jnp.bfloat16) for heads in (8, 2))
  how = {name: value for name, value in settings.items() if name != "segments"}

  def loss(q, k, v, ids):
    segments = Segments(ids, ids) if "segments" in settings else None
    return attention(q, k, v, kernel="splash", segments=segments, **how).astype(jnp.float32).sum()

  with jax.set_mesh(mesh):
    compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(q, k, k, rows).compile()
  text = compiled.as_text()
  assert text.count('custom_call_target="tpu_custom_call"') == 3  # forward, and backward for queries and for keys
  assert not traffic.square_buffers(hlo.parse(text), 1000, {1000})


@needs_libtpu
@pytest.mark.slow
def test_the_scratch_model_fits_a_v5e_16(tmp_path):
  figures = compiled_row(tmp_path, ROPE, "--topology=v5e:4x4", *ROWS["494M"])
  assert figures["chips"] == 16 and figures["rows"] == 1024
  assert not figures["square_buffers"]
  assert figures["collectives"]["all-gather"] > 0


@needs_libtpu
@pytest.mark.slow
def test_a_seven_billion_model_reads_65536_tokens(tmp_path):
  llama = "--config=experiments/configs/recalibrate.py:llama2_7b"
  figures = compiled_row(tmp_path, llama, "--topology=v5p:2x4x4", "--evaluate=65536", *ROWS["7B evaluation"])
  assert figures["length"] == 65_536 and not figures["square_buffers"]


@needs_libtpu
@pytest.mark.slow
def test_two_slices_exchange_gradients_alone(tmp_path):
  figures = compiled_row(tmp_path, ROPE, "--topology=v5e:2x2", "--slices=2", *ROWS["two slices"])
  assert figures["chips"] == 8 and figures["mesh"] == {"data": 2, "fsdp": 4}
  assert figures["collectives_between_slices"].keys() == {"all-reduce"}
  assert figures["collectives"]["all-gather"] > 0


ROWS = {
  "two slices": (
    "--config.mesh.data=1",
    "--config.mesh.fsdp=4",
    "--config.mesh.dcn_data=2",
    "--config.model.num_layers=2",
    "--config.model.vocab_size=1024",
    "--config.data.batch_size=32",
  ),
  "494M": (
    "--config.mesh.data=1",
    "--config.mesh.fsdp=16",
    "--config.compute.remat=full",
    "--config.optim.accumulation=4",
  ),
  "7B evaluation": ("--config.mesh.fsdp=4", "--config.mesh.context=8"),
}
