"""Measuring a checkpoint: every task under every method at every length, each figure recorded once."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from drope_jax.checkpoint import Checkpoint
from drope_jax.errors import ConfigError
from drope_jax.evaluate import results
from drope_jax.evaluate.coefficient import fitted_coefficient
from drope_jax.evaluate.eval_data import EvalData
from drope_jax.evaluate.figures import BETA, Figure
from drope_jax.evaluate.methods import Inference, Method, inference
from drope_jax.evaluate.progress import Progress
from drope_jax.evaluate.recorder import Recorder
from drope_jax.evaluate.results import Measurement, plain
from drope_jax.evaluate.samples import fingerprint
from drope_jax.evaluate.subject import BATCH_TOKENS, Subject
from drope_jax.evaluate.task import Task
from drope_jax.model_config import ModelConfig

logger = logging.getLogger(__name__)


def weights_of(loaded: Checkpoint) -> dict[str, Any]:
  """Identifies a checkpoint among others of the same name: its step, and a hash of the row sums of all parameters."""
  sums = (np.asarray(leaf).sum(axis=-1, dtype=np.float64) for leaf in jax.tree.leaves(loaded.params))
  return {"step": loaded.step, "weights": fingerprint(sums)}


def _how(method: str, trained: ModelConfig, context: int, length: int, task: Task, c: float | None) -> Inference:
  """The inference of a measurement; with c = 0 as long as c is not fitted."""
  given = (c or 0.0) if Method.parse(method).reads_c else None
  return inference(method, trained, context, length, given, bounded=task.bounded)


def check(
  trained: ModelConfig, context: int, methods: Sequence[str], lengths: Sequence[int], tasks: Sequence[Task]
) -> None:
  """Raises ConfigError for a method that is impossible for the model `trained` at `context` tokens, or a task that is
  impossible at a length."""
  for length in lengths:
    for task in tasks:
      crops = {_how(method, trained, context, length, task, None).crop for method in methods}
      for crop in sorted(crops, key=lambda crop: crop is not None):  # what is refused only with one is its fault
        try:
          task.check(length, crop)
        except ConfigError as error:
          at = f"{task.name} at {length} tokens"
          said = str(error).removeprefix(f"{at}: ").removeprefix(f"{task.name}: ")
          which = "this task, or this length" if crop is None else "this task, this length, or method 'crop'"
          raise ConfigError(f"{at}: {said}; leave out {which}") from error


def evaluate(
  run: str,
  loaded: Checkpoint,
  methods: Sequence[str],
  lengths: Sequence[int],
  tasks: Sequence[Task],
  data: EvalData,
  out: Path,
  c: float | None = None,
  *,
  command: str = "",
  batch_tokens: int = BATCH_TOKENS,
  bos: bool = False,
) -> None:
  """Measures every task under every method at every length, except for what `out`, a results.jsonl, already holds.

  Args:
    methods: see methods.py; duplicates are ignored, as for lengths.
    tasks: see tasks.make_tasks.
    c: the temperature's coefficient for `drope`; None: fitted if a method needs it.
    command: written into every record.
    batch_tokens, bos: see subject.Subject.

  Raises:
    ConfigError: before anything is measured, for a method that is impossible for this checkpoint, a c that no method
      reads, a BOS that the tokenizer does not have, or a task that is impossible at a length.
    results.ResultsError: if `out` cannot be read, or a figure is not finite.
  """
  context = loaded.context
  methods, lengths = list(dict.fromkeys(methods)), list(dict.fromkeys(lengths))
  reading = [method for method in methods if Method.parse(method).reads_c]
  if c is not None and not reading:
    raise ConfigError(f"c is {c}, which no method of {', '.join(methods)} reads; it is that of method 'drope'")

  check(loaded.model, context, methods, lengths, tasks)
  asked = [(length, task, method) for length in lengths for task in tasks for method in methods]
  subject = Subject(
    params=loaded.params,
    how=Inference(loaded.model),
    tokenizer=data.tokenizer,
    train_context=context,
    batch_tokens=batch_tokens,
    bos=bos,
  )
  recorder = Recorder(path=out, train_context=context, command=command)
  done, weights = results.measured(out), weights_of(loaded)
  progress = Progress.to_terminal([])
  if reading and c is None and max(lengths) > context:
    rest = [length for length, *_ in asked]
    c = fitted_coefficient(run, loaded, weights, data, lengths, recorder, subject, progress, rest)
  # Methods may run the same model: within the training context, most scalings of RoPE leave it unchanged.
  missing: dict[tuple[str, int, Inference], list[tuple[Task, Measurement]]] = {}
  settings_of = {(length, task.name): task.settings(length) for length in lengths for task in tasks}
  for length, task, method in asked:
    how = _how(method, loaded.model, context, length, task, c)
    settings = {**weights, "bos": bos, **settings_of[length, task.name], "beta": how.logit_scale}
    measurement = Measurement(
      run=run, method=method, task=task.name, context=length, seed=data.seed, settings=plain(settings)
    )
    if measurement not in done:
      missing.setdefault((task.name, length, how), []).append((task, measurement))
  progress.plan([length for _, length, _ in missing])
  for (_, length, how), same in missing.items():
    task, first = same[0]
    names = ", ".join(measurement.method for _, measurement in same)
    progress.begin(f"{run}  {names}  {task.name} at {length} tokens")
    subject = dataclasses.replace(subject, how=how, progress=progress, log=recorder.log_of(first))
    main, *others = task.measure(subject, length)
    for _, measurement in same:
      recorder.write(measurement, [main, Figure(BETA, how.logit_scale, main.n), *others])
    progress(1.0)
    logger.info("%s  %s  %s at %d tokens: %s  %s", run, names, task.name, length, _shown(main), progress.remaining())


def _shown(figure: Figure) -> str:
  interval = "" if figure.low is None else f" ({figure.low:.3f} to {figure.high:.3f})"
  return f"{figure.metric} {figure.value:.3f}{interval}, n = {figure.n:,}"
