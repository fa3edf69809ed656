"""What every study promises in its docstring: its sizes, its controls, and that each of its runs can be trained."""

import dataclasses
import importlib
import math
import pkgutil
import re
import types
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import NamedTuple

import jax
import pytest
from jax.sharding import AbstractMesh, AxisType
from support.lowering import lowered_run, traced_run

from drope_jax.aot.traced_flops import traced_flops
from drope_jax.config import TrainConfig
from drope_jax.evaluate.methods import inference
from drope_jax.evaluate.tasks import task_classes, task_groups
from drope_jax.metrics import flops_per_token
from drope_jax.objective import NextToken
from drope_jax.optimizers import AdamW
from drope_jax.positions import RoPE
from drope_jax.sharding import AXES
from drope_jax.training.preflight import check_layout
from drope_jax.training.run import Run, start_from
from drope_jax.transitions import Keep, Transition
from experiments import costs, page, studies
from experiments.models import run_models
from experiments.plan import Figures, Pretrained
from experiments.studies.branching import BranchingStudy

NAMES = [module.name for module in pkgutil.iter_modules(studies.__path__)]
MODULES = {name: importlib.import_module(f"experiments.studies.{name}") for name in NAMES}
SIZED = {name: module for name, module in MODULES.items() if hasattr(module, "SIZES")}
STUDIES = {name: module for name, module in SIZED.items() if isinstance(module.get_config("mini"), BranchingStudy)}
DRAWN_ALONE = {"fig4_bias_gradients", "fig6_fig11_frequency_factors"}  # without runs
WORKDIR = Path("study")
MESH = AbstractMesh((1, 2, 1, 1), AXES, axis_types=(AxisType.Auto,) * 4)
FROM_SCRATCH = {"fig3_rope_against_nope"}  # it has no tail: RoPE itself is the control


def made(name, size):
  study = STUDIES[name].SIZES[size]().study(WORKDIR)
  return study, run_models(study, WORKDIR)


def every_size(name):
  for size in STUDIES[name].SIZES:
    yield size, *made(name, size)


def test_every_table_and_figure_of_the_paper_has_a_study():
  wanted = """table1_needles fig2_recovery fig3_rope_against_nope fig4_bias_gradients fig5_yarn_is_a_crop
    fig6_fig11_frequency_factors fig7_positional_head fig8_semantic_head table2_table3_longbench table5_in_context
    table6_when_to_drop tables7_8_9_by_length table10_extension table11_qk_norm_by_rate temperature_fit controls
    recalibration recalibration_hybrid recalibration_budget stage1 order_and_loops partial_drop partial_drop_rule
    partial_drop_half"""
  assert set(wanted.split()) <= {*STUDIES, *DRAWN_ALONE}
  assert set(SIZED) - set(STUDIES) == DRAWN_ALONE


@pytest.mark.parametrize("name", SIZED)
def test_every_study_has_the_three_sizes(name):
  assert {"mini", "small", "paper"} <= set(SIZED[name].SIZES)


@pytest.mark.parametrize("name", STUDIES)
def test_the_table_of_sizes_is_that_of_the_configs(name):
  module = STUDIES[name]
  table = page.size_table(module)
  assert table in module.__doc__, f"python -m experiments.page {module.__file__}"
  minutes = {
    cells[0]: cells[-1] for line in table.splitlines() if (cells := [c.strip() for c in line.split("|")[1:-1]])
  }
  for start, most, machine in (("mini", 30, "(2 CPU cores)"), ("small", 8, "(one H200)")):
    for number, named in (minutes[size].split(maxsplit=1) for size in minutes if size.startswith(start)):
      assert int(number) <= most and named == machine


@pytest.mark.parametrize("name", SIZED)
def test_a_page_names_what_the_contract_asks_for(name):
  text = " ".join(MODULES[name].__doc__.split())
  for part in ("python -m experiments.", "oken", "arameters", "FLOPs", "Numbers to expect"):
    assert part in text, part
  assert re.search(r"[Pp]aper", text)


@pytest.mark.parametrize("name", SIZED)
def test_a_docstring_says_where_its_numbers_are(name):
  """`python -m experiments.page experiments/studies/NAME.py` writes it."""
  found = page.NUMBERS.search(MODULES[name].__doc__)
  assert found, "Numbers to expect: not yet run, or a page of docs/results"
  assert " ".join(found[0].split()).endswith(f"Numbers to expect: {page.numbers(MODULES[name])}")


def test_the_page_of_a_study_that_was_run_is_named_in_its_docstring(tmp_path, monkeypatch):
  monkeypatch.setattr(page, "PAGES", tmp_path)
  study = ModuleType("experiments.studies.a_study")
  begins = "x" * 90
  for text, run, written in (
    (
      "A seed. Numbers to expect: not yet run; a pilot",
      True,
      "A seed. Numbers to expect: docs/results/a_study.md; a pilot",
    ),
    ("Numbers to expect: not yet\nrun. A", True, "Numbers to expect: docs/results/a_study.md. A"),
    ("Numbers to expect: docs/results/a_study.md.", False, "Numbers to expect: not yet run."),
    (f"{begins}Numbers to expect: not yet run.", True, f"{begins}Numbers to expect:\ndocs/results/a_study.md."),
  ):
    (tmp_path / "a_study.md").write_text("") if run else (tmp_path / "a_study.md").unlink()
    assert page.with_numbers(text, page.numbers(study)) == written


def test_studies_that_draw_figures_of_their_own_share_a_page(tmp_path, monkeypatch):
  monkeypatch.setattr(page, "PAGES", tmp_path)
  (tmp_path / "figures.md").touch()
  plain = MODULES["table1_needles"].SIZES["mini"]().study(WORKDIR)
  for figures, written in ((None, "not yet run"), (Figures({}, lambda *_: None), "docs/results/figures.md")):
    study = dataclasses.replace(plain, figures=figures)
    module = ModuleType("experiments.studies.a_study")
    module.SIZES = {"mini": lambda study=study: SimpleNamespace(study=lambda workdir: study)}
    assert page.numbers(module) == written


@pytest.mark.parametrize("name", STUDIES)
def test_every_run_fits_its_mesh_and_every_row_can_be_measured(name):
  names = {*task_classes(), *task_groups()}
  for size, study, models in every_size(name):
    for run, config in study.runs.items():
      if isinstance(config, TrainConfig):
        check_layout(resolved(config, models[run], models), AbstractMesh((1, 2, 1, 1), AXES))
    for row in study.rows:
      for length in study.lengths:
        inference(row.method, models[row.run], study.train_context, length, 0.1 if row.method == "drope" else None)
    assert set(study.tasks) <= names, size
    assert study.rows and len({row.label for row in study.rows}) == len(study.rows)  # labels tell rows apart
    assert {run for arm in study.arms for run in arm.runs} <= set(study.runs)


@pytest.mark.parametrize("name", STUDIES)
def test_every_tail_that_changes_the_embedding_has_a_control_beside_it(name):
  """A run that starts from the same weights and keeps the embedding."""
  for size, study, _ in every_size(name):
    tails = [run for run in study.runs.values() if isinstance(run, TrainConfig) and run.init is not None]
    kept = {run.init.checkpoint for run in tails if run.init.transition == Keep()}
    changed = {run.init.checkpoint for run in tails if run.init.transition != Keep()}
    assert changed <= kept, size
    assert changed or name in FROM_SCRATCH


@pytest.mark.parametrize("name", STUDIES)
def test_tails_of_one_trunk_see_the_same_batches(name):
  for _, study, _ in every_size(name):
    seen = {
      (run.init.checkpoint, run.seed, run.data)
      for run in study.runs.values()
      if isinstance(run, TrainConfig) and run.init is not None
    }
    assert len(seen) == len({checkpoint for checkpoint, *_ in seen})


def resolved(config, model, models):
  """The run, with the model that it would start from."""
  if config.init is None:
    return Run(config, model)
  by_path = {str(WORKDIR / "runs" / name): start for name, start in models.items()}
  return start_from(config, config.init.model or by_path[config.init.checkpoint])


def program(run):
  """What distinguishes compiled steps: not rates, budgets or the numbers in a table of rotations."""
  config, model = run.config, run.trained
  positions = "rope" if isinstance(model.positions, RoPE) else model.positions
  others = dataclasses.replace(model, positions=None)
  changes = config.init is not None and type(config.init.transition).frequencies is not Transition.frequencies
  transition = config.init.transition if changes else None
  return (str(others), str(positions), str(config.objective), type(config.optim.optimizer).__name__, str(transition),
          config.data.batch_size, config.data.context)  # fmt: skip


class Held(NamedTuple):
  """What a lowered train step takes in."""

  parameters: int
  context: int  # tokens of a row, without the one more that is the last target
  tokens: int  # of a step


def held(lowered):
  state, batch, *_ = lowered.in_avals[0]
  rows, length = batch["tokens"].shape
  return Held(sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params)), length - 1, rows * (length - 1))


def step_flops(run, objective):
  """FLOPs of the matrix products in a traced step, as PaLM counts them.

  That is with all of the scores, and without what is computed a second time or belongs to the optimizer.
  """
  once = {"attention": "reference", "scan_layers": True, "remat": "none", "loss_chunk": run.config.data.context}
  compute = dataclasses.replace(run.config.compute, **once)
  optim = dataclasses.replace(run.config.optim, optimizer=AdamW())
  config = dataclasses.replace(run.config, compute=compute, optim=optim, objective=objective)
  return traced_flops(traced_run(dataclasses.replace(run, config=config), MESH).jaxpr).flops


def run_flops(run, known):
  """Of all steps; `known` keeps what has been traced, by all that makes the products of a step others."""
  config, steps = run.config, run.config.steps

  def of(objective):
    key = (str(dataclasses.replace(run.trained, positions=None)), str(objective), config.data.batch_size,
           config.data.context)  # fmt: skip
    if key not in known:
      known[key] = step_flops(run, objective)
    return known[key]

  own, objective = of(NextToken()), config.objective
  if objective.frozen() is None:
    return steps * own
  # The traced step always has the teacher; the run asks it for a share of the steps.
  return steps * own + sum(objective.extra_forwards(step, steps) for step in range(steps)) * (of(objective) - own)


def promised(name, size):
  """The row of a size in the table of a study's docstring, by its headings."""
  table = page.TABLE.search(MODULES[name].__doc__)[0]
  header, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
  (row,) = [row for row in rows if row[0] == size]
  return dict(zip(header, row, strict=True))


@pytest.mark.parametrize("name", STUDIES)
def test_a_docstring_says_that_small_has_fewer_runs_than_mini(name):
  """Its text describes the runs of `mini`, so it also names the sizes for one GPU that leave some of them out."""
  runs = {size: made(name, size)[0].runs.keys() for size in STUDIES[name].SIZES if size.startswith(("mini", "small"))}
  for size in runs:
    if size.startswith("small") and runs["mini"] - runs[size]:
      assert f"`{size}`" in STUDIES[name].__doc__, sorted(runs["mini"] - runs[size])


@pytest.mark.slow
def test_every_run_of_every_size_lowers_and_holds_what_its_page_promises():
  """Each run is lowered, or has the program of one that is; what a page says is counted in these programs."""
  lowered, known = {}, {}
  for name in STUDIES:
    for size, study, models in every_size(name):
      trained = [run for run, config in study.runs.items() if not isinstance(config, Pretrained)]
      found, tokens, flops = [], 0, 0.0
      for run in (resolved(study.runs[one], models[one], models) for one in trained):
        if program(run) not in lowered:
          step = lowered_run(run, MESH)
          assert "sharding" in step.as_text()
          lowered[program(run)] = held(step)
        found.append(lowered[program(run)])
        tokens += found[-1].tokens * run.config.steps
        flops += run_flops(run, known)
      said = promised(name, size)
      sizes = sorted({one.parameters for one in found})
      assert said["parameters"] == " to ".join(f"{number:,}" for number in dict.fromkeys((sizes[0], sizes[-1])))
      assert {f"{one.context:,}" for one in found} == {said["T"]}
      assert (said["runs"], said["tokens"]) == (str(len(found)), f"{tokens / 1e6:,.1f}M")
      assert float(said["FLOPs (PaLM)"]) == pytest.approx(flops, rel=0.01), (name, size)
  assert len(lowered) > 20


def test_time_here_follows_what_was_measured():
  assert costs.seconds(6.39e6 * 34_000, 6.39e6, "cpu") == pytest.approx(1.0)
  assert costs.seconds(1.04e8 * 1_300_000, 1.04e8, "NVIDIA H200") == pytest.approx(1.0)
  assert costs.seconds(1e12, 1e9, "TPU v9") != costs.seconds(1e12, 1e9, "TPU v9")  # nothing has been measured there
  study, models = made("partial_drop", "small")
  measured = 306  # of seed 1, see docs/results/partial_drop_small.md
  assert costs.estimate(study, models, "NVIDIA H200") == pytest.approx(measured, rel=0.1)


def test_several_devices_share_the_training_of_each_run_and_of_all(monkeypatch):
  study, models = made("partial_drop", "paper")
  monkeypatch.setattr(jax, "devices", lambda: [types.SimpleNamespace(device_kind="NVIDIA H200")])
  monkeypatch.setattr(costs, "show_time", str)
  of_runs, whole = {}, {}
  for count in (1, 4):
    monkeypatch.setattr(jax, "device_count", lambda count=count: count)
    lines = [line.split("|") for line in costs.run_table(study, models, WORKDIR, {}).splitlines()]
    of_runs[count] = sum(float(line[7]) for line in lines[2:])
    whole[count] = costs.estimate(study, models)
  assert of_runs[4] == pytest.approx(of_runs[1] / 4)
  assert whole[1] - whole[4] == pytest.approx(of_runs[1] - of_runs[4])  # measuring and compiling take as long


def test_flops_count_what_a_teacher_reads():
  study, models = made("controls", "mini")
  by_name = {cost.name: cost for cost in costs.run_costs(study, models)}
  assert by_name["drop_taught"].tokens == by_name["drop"].tokens
  assert by_name["drop_taught"].flops == pytest.approx(by_name["drop"].flops * (1 + 0.8 / 3), rel=1e-2)
  assert by_name["control_flops"].flops == pytest.approx(by_name["drop_taught"].flops, rel=1e-2)


def test_a_search_for_factors_is_counted():
  def reading(generations):
    settings = STUDIES["table10_extension"].SIZES["mini"]()
    study = dataclasses.replace(settings, generations=generations).study(WORKDIR)
    models = run_models(study, WORKDIR)
    return costs.evaluation_flops(study, models), flops_per_token(models["control"], 8 * settings.context) / 3

  (some, _), (twice, per_token) = reading(10), reading(20)
  assert twice - some == pytest.approx(10 * 16 * 16 * 1024 * per_token)  # generations, population, prompts, tokens
