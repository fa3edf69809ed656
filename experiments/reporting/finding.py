"""The finding: which rows differ by more than their spread, and the two sentences that say so."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from experiments.plan import Arm, Row
from experiments.reporting.records import Figure, Study

Z = 1.96  # two-sided 95 %
# Every row is measured on the same documents. So what parts two of them by chance is, with many tokens, less the choice
# of documents than the seed of the training: twice the standard deviation over three seeds of the quickstart, for most
# rows at most lengths (experiments/RESULTS.md). What another model's is, nobody has measured here.
LOSS_MARGIN = 0.05  # nats per token, 5 % of the perplexity
# With few tokens it is the documents: the standard deviation, over tokens, of the difference of two rows' losses. The
# records have means alone, so this is a round number on the high side.
TOKEN_SPREAD = 1.0  # nats


def compare_losses(a: Figure, b: Figure) -> int:
  """1 if loss `a` is lower (better) than `b` by more than its spread, -1 if higher, 0 if they are level."""
  margin = max(LOSS_MARGIN, Z * TOKEN_SPREAD / math.sqrt(min(a.n, b.n)))
  difference = b.value - a.value
  return 0 if abs(difference) <= margin else (1 if difference > 0 else -1)


def standard_error(accuracy: Figure) -> float:
  """Of a share of n prompts answered."""
  return math.sqrt(accuracy.value * (1 - accuracy.value) / accuracy.n)


def compare_accuracies(a: Figure, b: Figure) -> int:
  """1 if accuracy `a` is higher than `b` by a two-proportion z-test at 95 %, -1 if lower, 0 if level."""
  pooled = (a.value * a.n + b.value * b.n) / (a.n + b.n)
  spread = math.sqrt(max(pooled * (1 - pooled), 0.0) * (1 / a.n + 1 / b.n))  # pooled may exceed 1 by rounding
  difference = a.value - b.value
  return 0 if abs(difference) <= Z * spread else (1 if difference > 0 else -1)


class Measure(NamedTuple):
  """One of the two things a row is judged by."""

  task: str
  metric: str
  name: str
  best: str  # as in "A has ..."
  show: Callable[[float], str]
  compare: Callable[[Figure, Figure], int]


def show_perplexity(loss: float) -> str:
  """exp(loss) to three or four digits."""
  if loss > 13:  # beyond half a million the digits say nothing
    return f"e^{loss:.1f}"
  perplexity = math.exp(loss)
  return f"{perplexity:.2f}" if perplexity < 10 else f"{perplexity:.1f}" if perplexity < 1000 else f"{perplexity:,.0f}"


def show_percent(share: float) -> str:
  return f"{100 * share:.0f} %"


PERPLEXITY = Measure("perplexity", "loss", "perplexity", "the lowest perplexity", show_perplexity, compare_losses)
RETRIEVAL = Measure(
  "needles", "accuracy", "needle retrieval", "the best needle retrieval", show_percent, compare_accuracies
)
MEASURES = (PERPLEXITY, RETRIEVAL)


def measures(study: Study) -> list[Measure]:
  """What this study measures."""
  return [measure for measure in MEASURES if measure.task in study.tasks]


def best_rows(figures: Mapping[Row, Figure], measure: Measure) -> list[Row]:
  """The row with the best figure, then those level with it, in the order of the table; no row twice."""
  if not figures:
    return []
  sign = 1 if measure is RETRIEVAL else -1
  best = max(figures, key=lambda row: sign * figures[row].value)
  return [best, *(row for row in figures if row is not best and measure.compare(figures[row], figures[best]) == 0)]


def measured(study: Study, rows: Sequence[Row], measure: Measure, context: int) -> dict[Row, Figure]:
  """The figures that there are."""
  found = {row: study.figure(row, measure.task, context, measure.metric) for row in rows}
  return {row: figure for row, figure in found.items() if figure is not None}


def _enumerate(items: Sequence[str]) -> str:
  return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


WORDS = {1: "ahead of", 0: "level with", -1: "behind"}


def _verdict(words: Mapping[Measure, int], other: str, numbers: Mapping[Measure, str] | None = None) -> str:
  """`behind OTHER in perplexity (26.3 against 18.0) but level with it in needle retrieval (...)`; shorter if alike."""
  names = [f"in {measure.name}" + (f" ({numbers[measure]})" if numbers else "") for measure in words]
  first, *more = words.values()
  if not more:
    return f"{WORDS[first]} {other} {names[0]}"
  if more[0] != first:
    return f"{WORDS[first]} {other} {names[0]} but {WORDS[more[0]]} it {names[1]}"
  return f"{WORDS[first]} {other} " + (_enumerate(names) if numbers else "in both")


Side = dict[Measure, tuple[Row, Figure]]  # for each measure the row that stands for one side of a comparison


def _side(study: Study, rows: Sequence[Row], context: int) -> Side:
  """For each measure the best of `rows` at `context`."""
  found = {}
  for measure in measures(study):
    figures = measured(study, rows, measure, context)
    if figures:
      best = best_rows(figures, measure)[0]
      found[measure] = (best, figures[best])
  return found


def _only(side: Side, measures: Sequence[Measure]) -> Side:
  return {measure: side[measure] for measure in measures}


def _compared(a: Side, b: Side) -> dict[Measure, int]:
  """1, 0 or -1 for each measure that both sides have."""
  return {
    measure: measure.compare(a[measure][1], b[measure][1]) for measure in MEASURES if measure in a and measure in b
  }


def _arms(study: Study, side: Side) -> list[Arm]:
  """The arms of a side's rows, each once."""
  rows = [row for row, _ in side.values()]
  return list(dict.fromkeys(arm for row in rows for arm in study.arms if arm.runs[-1] == row.run))


def _budget(study: Study, arms: Sequence[Arm], controls: Sequence[Arm]) -> str:
  """How the training tokens of two arms compare; nothing where that is not one pair or not recorded."""
  tokens = [study.arm_tokens(arm) for arm in (*arms, *controls)]
  if len(arms) != 1 or len(controls) != 1 or None in tokens:
    return ""
  ratio = (tokens[0] or 0) / (tokens[1] or 1)
  return ", as many training tokens" if abs(ratio - 1) < 0.01 else f", {1 / ratio:.2f} times the training tokens"


def _in_context(study: Study) -> str:
  context = study.train_context
  start = ("With one seed and at" if study.trained else "At") + f" the training context of {context:,} tokens"
  if not study.rows_of("drope"):
    return f"{start}, nothing can be said of dropping: no row of this study is of a dropped model."
  # Up to the training context every method runs the model as it was trained, so a side is named by its arm.
  drope, control = (_side(study, study.rows_of(role), context) for role in ("drope", "control"))
  words = _compared(drope, control)
  if not words:
    return f"{start}, the dropped model cannot be compared with its control: their figures are missing."
  drope, control = _only(drope, list(words)), _only(control, list(words))
  numbers = {m: f"{m.show(drope[m][1].value)} against {m.show(control[m][1].value)}" for m in words}
  arms, controls = _arms(study, drope), _arms(study, control)
  ours, theirs = ("; ".join(arm.label for arm in side) for side in (arms, controls))
  if len(arms) > 1:
    ours = f"the best dropped model for each ({ours})"
  other = f"its control ({theirs}: the embedding kept{_budget(study, arms, controls)})"
  return f"{start}, {ours} is {_verdict(words, other, numbers)}."


def _leader(figures: Mapping[Row, Figure], measure: Measure) -> str:
  """`A has the lowest perplexity (1.2)`, or who shares it, or that nobody retrieves."""
  best = best_rows(figures, measure)
  if not best:
    return f"{measure.name} was not measured there"
  shown = measure.show(figures[best[0]].value)
  if measure is RETRIEVAL and not figures[best[0]].value > 0:
    return "no row retrieves a single needle"
  if len(best) == 1:
    return f"{best[0].label} has {measure.best} ({shown})"
  if len(best) == len(figures):
    return f"all rows are level in {measure.name} ({best[0].label}: {shown})"
  if len(best) > 3:
    return f"{len(best)} of {len(figures)} rows are level at {measure.best} ({best[0].label}: {shown})"
  labels = [f"{row.label} ({measure.show(figures[row].value)})" for row in best]
  return f"{_enumerate(labels)} are level at {measure.best}"


def _leaders(study: Study, context: int) -> str:
  """Who is best in each measure."""
  figures = {measure: measured(study, study.rows, measure, context) for measure in measures(study)}
  best = [best_rows(figures[measure], measure) for measure in figures]
  if len(best) == 2 and best[0] == best[1] and len(best[0]) == 1 and figures[RETRIEVAL][best[0][0]].value > 0:
    row = best[0][0]
    return f"{row.label} has both " + _enumerate([f"{m.best} ({m.show(figures[m][row].value)})" for m in MEASURES])
  return ", while ".join(_leader(figures[measure], measure) for measure in figures)


def _numbers(side: Side) -> str:
  return _enumerate([measure.show(figure.value) for measure, (_, figure) in side.items()])


def _named(side: Side) -> str:
  """`A: 28.5 and 44 %`, or where the measures have different rows `A: 28.5; B: 44 %`."""
  if _is_one_row(side):
    return f"{next(iter(side.values()))[0].label}: {_numbers(side)}"
  return "; ".join(f"{row.label}: {measure.show(figure.value)}" for measure, (row, figure) in side.items())


def _is_one_row(side: Side) -> bool:
  return len({row for row, _ in side.values()}) == 1


def _beyond(study: Study) -> str:
  contexts = study.contexts(*(measure.task for measure in measures(study)))
  if not contexts or contexts[-1] <= study.train_context:
    return "Nothing was measured beyond the training context."
  context = contexts[-1]
  sentence = f"At {study.extension(context):g}× that length ({context:,} tokens), {_leaders(study, context)}"
  drope = _side(study, study.rows_of("drope"), context)
  plain = _side(study, study.rows_of("control", plain=True), context)
  helped = _side(study, study.rows_of("control", plain=False), context)
  verdicts = []
  words = _compared(drope, plain)
  if words:
    rival = _only(plain, list(words))
    shown = _numbers(rival) if _is_one_row(rival) else _named(rival)
    verdicts.append(_verdict(words, f"the control as trained ({shown})"))
  words = _compared(drope, helped)
  if words:
    verdicts.append(_verdict(words, f"the best method that needs no training ({_named(_only(helped, list(words)))})"))
  if verdicts:
    ours = f"the dropped model at its best row for each ({_named(drope)})"
    if _is_one_row(drope):
      ours = f"{next(iter(drope.values()))[0].label} ({_numbers(drope)})"
    sentence += f"; {ours} is {', and '.join(verdicts)}"
  return sentence + "."


def finding(study: Study) -> str:
  """Two sentences computed from the figures: in context against the control, and at the longest length against all.

  Where several rows stand for one side (DroPE with and without the temperature), the side is taken at its best row for
  each measure, and that row is named.
  """
  return f"{_in_context(study)} {_beyond(study)}"


def spread_note(study: Study) -> str:
  """What "level" means in the finding and in the tables."""
  losses = (
    f"two losses are closer than {LOSS_MARGIN} nats per token ({100 * (math.exp(LOSS_MARGIN) - 1):.0f} % of the "
    "perplexity; more where few tokens were measured)"
  )
  if not study.trained:
    return (
      f"“Level” means that {losses}. All rows read the same documents, which are few: an ordering that rests on a "
      "small difference may turn with others."
    )
  prompts = ", or that two retrievals do not differ significantly (95 %, from the number of prompts)"
  note = f"“Level” means that {losses}{prompts if RETRIEVAL in measures(study) else ''}. Everything here is one seed."
  return f"{note} {study.spread}".rstrip()
