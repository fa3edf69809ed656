"""Measuring a checkpoint: every task under every method at every length, each figure into results.jsonl once."""

import dataclasses
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from drope_jax import drope
from drope_jax.checkpoint import Checkpoint
from drope_jax.config import ModelConfig
from drope_jax.errors import ConfigError
from drope_jax.evaluate import results
from drope_jax.evaluate.catalog import EvalData
from drope_jax.evaluate.methods import Inference, Method, inference
from drope_jax.evaluate.perplexity import documents_at_once, position_losses
from drope_jax.evaluate.progress import Progress
from drope_jax.evaluate.results import BETA, LOSS, Measurement, Result, as_text
from drope_jax.evaluate.samples import SampleLog, fingerprint
from drope_jax.evaluate.tasks import BATCH_TOKENS, Figure, Subject, Task, mean_figure

FIT_TASK = "temperature"
BETAS = (0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.6, 1.8, 2.0)

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
  """Where figures go: what their records say beside the measurement itself."""

  path: Path  # of results.jsonl; answers to samples go into `samples/` beside it
  train_context: int
  command: str = ""

  def write(self, measurement: Measurement, figures: Iterable[Figure]) -> None:
    """Appends the figures of one measurement."""
    results.append(
      self.path,
      [
        Result(
          **{**measurement._asdict(), "settings": json.loads(measurement.settings)},
          extension=measurement.context / self.train_context,
          **figure._asdict(),
          command=self.command,
        )
        for figure in figures
      ],
    )

  def log_of(self, measurement: Measurement) -> SampleLog:
    *names, settings = map(str, measurement)
    name = ".".join([*names, fingerprint([settings])]).replace("/", "-")
    return SampleLog(self.path.parent / "samples" / f"{name}.jsonl")


def fit_temperature(
  run: str,
  loaded: Checkpoint,
  weights: dict[str, Any],
  data: EvalData,
  lengths: Sequence[int],
  place: Place,
  subject: Subject,
  progress: Progress,
  rest: Sequence[float] = (),
) -> float:
  """c of beta = 1 + c ln s on the `fit` split, its whole grid written to results.jsonl as it is measured.

  What is there of the same fit (these lengths, documents and weights) is not measured again. The figures have intervals
  over documents; c has none, since the rows behind the recorded losses are not kept.

  Args:
    weights: `weights_of(loaded)`.
    subject: how the model is run; `how` is the fit's own.
    rest: the weights of what `progress` tells of after this.
  """
  lengths = sorted({length for length in lengths if length > loaded.context})
  documents = [subject.begin(document)[: lengths[-1] + 1] for document in data.fit_documents]
  beyond = {length / loaded.context: length for length in lengths}
  names = {beta: f"{LOSS}@beta={beta:.2f}" for beta in BETAS}
  settings = {
    **weights,
    "bos": subject.bos,
    "extensions": list(beyond),
    "betas": list(BETAS),
    "documents": len(documents),
    "concatenated": data.concatenate,
    "text": fingerprint(documents),
  }
  at = {length: Measurement(run, "drope", FIT_TASK, length, data.seed, as_text(settings)) for length in lengths}
  known = {(r.context, r.metric): r.value for r in results.read(place.path) if r.measurement == at.get(r.context)}
  missing = {length: [beta for beta in BETAS if (length, names[beta]) not in known] for length in lengths}
  progress.plan([*(length * len(betas) for length, betas in missing.items()), *rest])
  for length, betas in missing.items():
    progress.begin(f"{run}  {FIT_TASK} at {length} tokens")
    for done, beta in enumerate(betas):
      how = Inference(loaded.model, logit_scale=beta)
      nll_NT = position_losses(
        loaded.params,
        how,
        documents,
        length=length,
        batch_size=documents_at_once(how, len(documents), length, subject.batch_tokens),
        compute=subject.compute,
        progress=_part_of(progress, done, len(betas)),
      )
      figure = mean_figure(names[beta], nll_NT.mean(axis=1, dtype=np.float64), n=nll_NT.size)
      place.write(at[length], [figure])
      known[length, figure.metric] = figure.value
  fit = drope.fit_temperature(lambda s, beta: known[beyond[s], names[beta]], list(beyond), BETAS)
  count = len(documents)
  for extension, length in beyond.items():
    if extension in fit.on_edge:
      logger.warning(
        "%s  at %g times the training context the best beta, %g, ends the grid: the true one may lie beyond, "
        "and c would change with it",
        run,
        extension,
        fit.best[extension],
      )
    if (length, BETA) not in known:
      place.write(at[length], [Figure(BETA, fit.best[extension], count * length)])
  if (lengths[-1], "c") not in known:
    place.write(at[lengths[-1]], [Figure("c", fit.c, count)])
  return fit.c


def _part_of(progress: Progress, done: int, total: int) -> Callable[[float], None]:
  """What to tell of one of `total` equal steps, of which so many are done."""
  return lambda share: progress((done + share) / total)


def weights_of(loaded: Checkpoint) -> dict[str, Any]:
  """What tells a checkpoint from others of its name: its step, and the sum of every row of every parameter."""
  sums = (np.asarray(leaf).sum(axis=-1, dtype=np.float64) for leaf in jax.tree.leaves(loaded.params))
  return {"step": loaded.step, "weights": fingerprint(sums)}


def _how(method: str, trained: ModelConfig, context: int, length: int, task: Task, c: float | None) -> Inference:
  """What a measurement runs; before the fit of c as with c = 0."""
  how = inference(method, trained, context, length, (c or 0.0) if Method.parse(method).reads_c else None)
  return how.within_context() if task.bounded and length <= context else how


def check(
  trained: ModelConfig, context: int, methods: Sequence[str], lengths: Sequence[int], tasks: Sequence[Task]
) -> None:
  """Raises ConfigError for a method that a checkpoint of config `trained`, made at `context` tokens, does not allow, or
  a task that is impossible at a length."""
  for length in lengths:
    for task in tasks:
      for crop in dict.fromkeys(_how(method, trained, context, length, task, None).crop for method in methods):
        task.check(length, crop)


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
  """Measures what `out`, a results.jsonl, does not hold yet.

  Args:
    methods: see methods.py; one that is named twice is measured once, and so is a length.
    tasks: see catalog.py.
    c: the temperature's coefficient, of `drope`; None: fitted if a method needs it.
    command: written into every record.
    batch_tokens, bos: see tasks.Subject.

  Raises:
    ConfigError: for a method that is impossible for this checkpoint, a c that no method reads, a BOS that the tokenizer
      does not have, or a task that is impossible at a length, before anything is measured.
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
  place = Place(path=out, train_context=context, command=command)
  done, weights = results.measured(out), weights_of(loaded)
  progress = Progress.to_terminal([])
  if reading and c is None and max(lengths) > context:
    rest = [length for length, *_ in asked]
    c = fit_temperature(run, loaded, weights, data, lengths, place, subject, progress, rest)
  # What two methods run may be the same: within the training context most that rescale RoPE leave it as it is.
  missing: dict[tuple[str, int, Inference], list[tuple[Task, Measurement]]] = {}
  settings_of = {(length, task.name): task.settings(length) for length in lengths for task in tasks}
  for length, task, method in asked:
    how = _how(method, loaded.model, context, length, task, c)
    settings = {**weights, "bos": bos, **settings_of[length, task.name], "beta": how.logit_scale}
    measurement = Measurement(run, method, task.name, length, data.seed, as_text(settings))
    if measurement not in done:
      missing.setdefault((task.name, length, how), []).append((task, measurement))
  progress.plan([length for _, length, _ in missing])
  for (_, length, how), same in missing.items():
    task, first = same[0]
    names = ", ".join(measurement.method for _, measurement in same)
    progress.begin(f"{run}  {names}  {task.name} at {length} tokens")
    subject = dataclasses.replace(subject, how=how, progress=progress, log=place.log_of(first))
    main, *others = task.measure(subject, length)
    for _, measurement in same:
      place.write(measurement, [main, Figure(BETA, how.logit_scale, main.n), *others])
    progress(1.0)
    logger.info("%s  %s  %s at %d tokens: %s  %s", run, names, task.name, length, _shown(main), progress.remaining())


def _shown(figure: Figure) -> str:
  interval = "" if figure.low is None else f" ({figure.low:.3f} to {figure.high:.3f})"
  return f"{figure.metric} {figure.value:.3f}{interval}, n = {figure.n:,}"
