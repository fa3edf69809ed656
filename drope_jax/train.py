"""One training run from start to end: where its weights come from, the loop, how it ends.

The weights come from the first of these that applies:
  1. the last complete checkpoint of the run's own workdir, with optimizer state, data position and step;
  2. `config.init`: the weights of another run, under a transition and with a QK-norm inserted if asked for. Optimizer
     (unless `keep_optimizer`), schedule, step count and data start from the beginning;
  3. scratch: `config.model`, initialised from `config.seed`.

The parts are in training/: run.py (the resolved config), preflight.py (whether it fits), opening.py (claiming the
workdir), state.py (the first state), step.py (one step), heldout.py (the held-out loss) and log.py (records and logs).
"""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from drope_jax import checkpoint, distributed, hosts
from drope_jax.checkpoint import TrainState, digests, orbax_metrics
from drope_jax.config import TrainConfig
from drope_jax.data.identity import Content
from drope_jax.data.pipeline import train_batches
from drope_jax.data.prepare import check_outside
from drope_jax.data.tokenizers import load_tokenizer
from drope_jax.errors import FileError
from drope_jax.optim import make_optimizer
from drope_jax.parameters import Params
from drope_jax.serialization import to_dict
from drope_jax.sharding import make_mesh
from drope_jax.training.health import Evidence, Ruined, check_state
from drope_jax.training.heldout import HeldOut
from drope_jax.training.log import TrainLog, announce_compilation, introduce
from drope_jax.training.opening import claimed, last_step, record, set_later_steps_aside, warn_if_lost, with_order
from drope_jax.training.preflight import check_run
from drope_jax.training.profiling import Profiler
from drope_jax.training.run import Run, resolve
from drope_jax.training.state import abstract_frozen, abstract_state, fresh_state, open_teacher, state_from_init
from drope_jax.training.step import batch_sharding, jit_train_step, step_number

logger = logging.getLogger(__name__)


class Outcome(NamedTuple):
  """How a call of `train` ended."""

  step: int
  finished: bool  # False: stopped by SIGTERM or Ctrl-C after saving `step`; the same call goes on from there


def train(config: TrainConfig, workdir: epath.PathLike, extend: bool = False, from_step: int | None = None) -> Outcome:
  """Runs `config` in `workdir` up to its last step, resuming it if it was interrupted; a finished run returns at once.

  Writes config.json, metrics.jsonl, checkpoints/ and a copy of the tokenizer ("What a run writes" in
  docs/howto/curves.md).

  Args:
    extend: whether the fields of checkpoint.EXTENDABLE (steps and learning rate) may differ from those the workdir's
      run began with. It then continues from its last checkpoint under the new schedule, which counts from step 0.
      Refused if there is no run yet.
    from_step: continue from the checkpoint of this step instead of the last one, for example if that is damaged. Later
      checkpoints, and a copy of the records so far, are moved to `superseded/` of the workdir.

  Raises:
    ConfigError: the config is impossible, or does not fit the devices.
    CheckpointError: the workdir is another run's, a checkpoint is missing or damaged, or one cannot be saved.
    BusyError: another process writes to the workdir.
    FloatingPointError: loss, gradient or weights are not finite, or far too large; nothing is saved after the last
      checkpoint, and the batch and norms are written to a file (training/health.py).
  """
  workdir = epath.Path(workdir)
  run = with_order(resolve(config), workdir)
  config = run.config
  check_outside(config.data.dataset, workdir, "workdir")
  mesh = make_mesh(config.mesh, rows=config.data.batch_size // config.optim.accumulation)
  tokenizer = load_tokenizer(config.data.tokenizer)
  check_run(run, tokenizer, mesh)
  heldout = None if config.eval_every is None else HeldOut(run, tokenizer, mesh)
  data = train_batches(config.data, config.seed, *distributed.reader(batch_sharding(mesh), config.data.batch_size))
  _check_hosts(
    run, workdir, data.content, {"--extend": extend, "--step": from_step, digests.VARIABLE: digests.enabled()}
  )
  optimizer = make_optimizer(config.optim, run.model, config.steps)
  abstract = abstract_state(run.model, optimizer, mesh)
  orbax_metrics.turn_off()
  with contextlib.ExitStack() as opened:
    opened.enter_context(contextlib.closing(data))
    opened.enter_context(claimed(workdir, run, extend))
    opened.enter_context(jax.set_mesh(mesh))
    with hosts.telling(), checkpoint.open_manager(workdir) as there:
      last = last_step(there, from_step)
      if last is not None and last >= config.steps:
        # Not extended: otherwise it would be recorded with a learning rate at which no step was trained.
        checkpoint.check_ours(there, last, config, extend=False)
        record(config, workdir)
        return Outcome(last, finished=True)
      introduce(run, tokenizer, mesh)
      meta: dict[str, Any] = {"step": 0, "tokens": 0, "seconds": 0.0}
      if last is None:
        warn_if_lost(workdir, config)
      if last is not None:
        state, meta = checkpoint.resume(there, last, abstract, data, config, extend)
        if from_step is not None:
          set_later_steps_aside(there, from_step)
        logger.info("weights: those of step %d of %s, where the run goes on", last, workdir)
      elif config.init is not None:
        state = state_from_init(run, mesh, optimizer, abstract)
      else:
        state = fresh_state(run.model, optimizer, abstract, config.seed)
        logger.info("weights: drawn from seed %d", config.seed)
      record(config, workdir, tokenizer)  # now that there is a state to go on from
    manager = opened.enter_context(checkpoint.writing(workdir, config))
    opened.enter_context(hosts.telling())
    teacher = open_teacher(run, meta.get("teacher_step"))
    frozen = None if teacher is None else teacher.params(mesh)
    if teacher is not None:
      logger.info("teacher: %s, step %d, positions %s", teacher.workdir, teacher.step, teacher.model.positions)
    announce_compilation(run, None if heldout is None else heldout.description)

    step_function = jit_train_step(run, optimizer, abstract, abstract_frozen(run, mesh), mesh)
    log = TrainLog(run, workdir, meta["step"], meta["tokens"], meta["seconds"], meta.get("skipped", 0))

    def save(step: int, state: TrainState) -> None:
      at = None if teacher is None else teacher.step
      checkpoint.save(manager, step, state, data, config, log.tokens, log.seconds, at, log.skipped)

    with contextlib.closing(log), distributed.sigterm() as stop_at:

      def asked(step: int) -> bool:
        checkpoint.check_saved(manager)  # so that a failed save is reported now, and not by the next one
        return stop_at(step)

      profiler = Profiler(workdir / "profile", config.profile_steps)
      loop = _Loop(run, mesh, step_function, frozen, heldout, log, profiler, Evidence(workdir))
      step = loop.run(state, data, meta["step"], asked, save)
      checkpoint.finish(manager)
  return Outcome(step, finished=step >= config.steps)


def _check_hosts(run: Run, workdir: epath.Path, content: Content, flags: dict[str, Any]) -> None:
  """Raises ConfigError if the hosts of the run are not alike, or do not see the same workdir."""
  if jax.process_count() == 1:
    return
  checkpoints = workdir / "checkpoints"
  there = (
    sorted(int(path.name) for path in checkpoints.iterdir() if path.name.isdigit()) if checkpoints.exists() else []
  )
  config = to_dict(run.config)
  # Each host may have its own copy of the data, which `content` identifies.
  for name in ("directory", "source", "tokenizer", "num_workers"):
    del config["data"][name]
  hosts.check_alike({"config": config, "data": content.record, **flags, "checkpoints of the workdir": there})


@dataclasses.dataclass
class _Loop:
  """The training loop: dispatches step t + 1 before reading the results of step t; evaluates, logs and saves."""

  training: Run
  mesh: Mesh
  step_function: Callable[..., tuple[TrainState, dict[str, Any]]]
  frozen: Params | None
  heldout: HeldOut | None
  log: TrainLog
  profiler: Profiler
  evidence: Evidence

  def run(
    self,
    state: TrainState,
    data: Iterator[Any],
    step: int,
    stop_at: Callable[[int], bool],
    save: Callable[[int, TrainState], None],
  ) -> int:
    """Trains from `step` to the last step, or until `stop_at` is true; returns the step reached.

    Its state is saved, unless no step was done.
    """
    config, saved = self.training.config, step
    with contextlib.closing(self.profiler):
      if step == 0:
        self._evaluate(state, step)
      while step < config.steps and not stop_at(step):
        rows = self.log.wait_for(data)
        self.evidence.add(step + 1, rows)
        batch = jax.tree.map(self._on_devices, rows)
        state, report = self.step_function(state, batch, step_number(step), self.frozen)
        self.profiler.after_step(report)
        # Before this step's own report is added, so that reading waits for step t only, while t + 1 runs.
        if step % config.log_every == 0 or step == 1:
          self._record(step, state, step + 1)
        self.log.add(report)
        step += 1
        if step == config.steps or (config.eval_every and step % config.eval_every == 0):
          self._evaluate(state, step)
        if step == config.steps or step % config.checkpoint_every == 0:
          self._record(step, state, step, save)
          saved = step
    if saved != step:
      self._record(step, state, step, save)
    return step

  def _record(
    self, step: int, state: TrainState, state_step: int, save: Callable[[int, TrainState], None] | None = None
  ) -> None:
    """Writes the record of the steps up to this one and, if `save` is given, the state.

    Args:
      state_step: the last step whose update is in `state`.

    Raises:
      FloatingPointError: the numbers are not finite or far too large; the evidence is written to a file.
    """
    try:
      self.log.write(step)
      if save is not None:
        check_state(state, step)
    except Ruined as ruined:
      try:
        seen = f"and {self.evidence.write(ruined.step, step, self.log.reports, state, state_step)} what was seen"
      except FileError as error:  # the reason why the run ends matters more
        seen = f"but what was seen is lost ({error})"
      raise FloatingPointError(
        f"{ruined}; {self.evidence.workdir} keeps its earlier checkpoints, {seen}. To go on from the last one, run the "
        f"same again with --extend and a lower --config.optim.peak_lr (now {self.training.config.optim.peak_lr:g})"
      ) from ruined
    self.evidence.forget(step)
    if save is not None:
      save(step, state)

  def _on_devices(self, rows: np.ndarray) -> jax.Array:
    """The global array made of the rows that each host has read."""
    shape = (self.training.config.data.batch_size, *rows.shape[1:])
    return jax.make_array_from_process_local_data(batch_sharding(self.mesh), rows, shape)

  def _evaluate(self, state: TrainState, step: int) -> None:
    if self.heldout is None:
      return
    jax.block_until_ready(state.params)  # so that earlier steps do not count into its time
    start = time.monotonic()
    self.log.evaluated(self.heldout.measure(state.params, step), time.monotonic() - start)
