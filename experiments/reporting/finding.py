"""The finding: which rows differ by more than their spread, and the two sentences that say so."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from experiments.plan import Row
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
  claim: str  # of a subject and its value; a comparison follows, in `words`
  words: tuple[str, str, str]  # indexed by `compare`: level, better (1), worse (-1)
  show: Callable[[float], str]
  compare: Callable[[Figure, Figure], int]


WORDS = ("level with", "better than", "worse than")


def show_perplexity(loss: float) -> str:
  """exp(loss) to three or four digits."""
  if loss > 13:  # beyond half a million the digits say nothing
    return f"e^{loss:.1f}"
  perplexity = math.exp(loss)
  return f"{perplexity:.2f}" if perplexity < 10 else f"{perplexity:.1f}" if perplexity < 1000 else f"{perplexity:,.0f}"


def show_percent(share: float) -> str:
  return f"{100 * share:.0f} %"


PERPLEXITY = Measure(
  "perplexity", "loss", "perplexity", "in perplexity ({1}) {0} is", WORDS, show_perplexity, compare_losses
)
RETRIEVAL = Measure(
  "needles", "accuracy", "needle retrieval", "{0} finds {1} of needles,", ("level with", "more than", "fewer than"),
  show_percent, compare_accuracies,
)  # fmt: skip
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


Side = dict[Measure, tuple[Row, Figure]]  # for each measure the row that stands for one side of a comparison


def _side(study: Study, rows: Sequence[Row], context: int) -> Side:
  """For each measure the best of `rows` at `context`, retrieval first."""
  found = {measure: measured(study, rows, measure, context) for measure in reversed(measures(study))}
  best = {measure: best_rows(figures, measure)[0] for measure, figures in found.items() if figures}
  return {measure: (row, found[measure][row]) for measure, row in best.items()}


def _dropped(study: Study, context: int) -> tuple[Side, str]:
  """The side of the dropped model and its name: one row if one is best, or level with the best, in every measure."""
  rows = study.rows_of("drope")
  found = [figures for m in measures(study) if (figures := best_rows(measured(study, rows, m, context), m))]
  shared = [row for row in rows if found and all(row in best for best in found)]
  side = _side(study, shared[:1] or rows, context)
  several = len({row for row, _ in side.values()}) > 1
  return side, _arm(study, side, "the best dropped model", at_best=" at its best" if several else "")


def _arm(study: Study, side: Side, several: str, at_best: str = "") -> str:
  """The label of the arm that a side's rows are of and `at_best`, or `several`."""
  arms = {arm.label for row, _ in side.values() for arm in study.arms if arm.runs[-1] == row.run}
  return f"{arms.pop()}{at_best}" if len(arms) == 1 else several


def _budget(study: Study, role: str) -> str:
  """How the training tokens of a role's arms differ from the dropped ones'; nothing if not, or if not recorded."""
  theirs, ours = ([study.arm_tokens(arm) for arm in study.arms if arm.role == of] for of in (role, "drope"))
  ratios = [a / b for a in theirs for b in ours if a and b]
  if all(abs(ratio - 1) < 0.01 for ratio in ratios):
    return ""
  return f"{ratios[0]:.2f} times the training tokens" if len(ratios) == 1 else "unequal numbers of training tokens"


def _opening(study: Study) -> str:
  """What limits every claim, then `at`."""
  budget = _budget(study, "control")
  return f"With one seed{f' and {budget} for the control' if budget else ''}, at" if study.trained else "At"


def _chain(verdicts: Sequence[tuple[str, str]]) -> str:
  """`better than A and B`, `level with A but worse than B`, from the words and what each is said of."""
  text = ""
  for i, (word, other) in enumerate(verdicts):
    text += f"{word} {other}" if i == 0 else f" and {other}" if word == verdicts[i - 1][0] else f" but {word} {other}"
  return text


def _beyond(study: Study, context: int) -> str:
  """The dropped model against the control as trained, and against what helps the control without training."""
  dropped, subject = _dropped(study, context)
  start = f"{_opening(study)} {study.extension(context):g}× the training context, "
  if not dropped:
    return f"{start}the dropped model was not measured."
  plain, helped = (_side(study, study.rows_of("control", plain=plain), context) for plain in (True, False))
  label = next((row.label for row, _ in plain.values()), "")
  rivals = [  # each with its name at the first mention and at the second
    (plain, [f"its control ({label}: ", "the control ("]),
    (helped, ["the best training-free method (", "the best such method ("]),
  ]
  clauses = []
  for measure in reversed(measures(study)):
    if measure not in dropped:
      clauses.append(f"{measure.name} was not measured there")
    elif measure is RETRIEVAL and not any(f.value for f in measured(study, study.rows, measure, context).values()):
      clauses.append("no row finds a single needle")
    else:
      figure = dropped[measure][1]
      there = [(side[measure][1], names.pop(0)) for side, names in rivals if measure in side]
      verdicts = [(measure.words[measure.compare(figure, f)], f"{name}{measure.show(f.value)})") for f, name in there]
      claim = measure.claim.format(subject, measure.show(figure.value))
      clauses.append(f"{claim} {_chain(verdicts) or 'without a comparison'}")
      subject = "it"
  return f"{start}{'; '.join(clauses)}."


def _verdict(a: Side, b: Side, other: str, numbers: Mapping[Measure, str]) -> str:
  """`better than OTHER in needle retrieval (70 %) but worse in perplexity (60.8)`; empty without a common measure."""
  verdicts: list[tuple[str, str]] = []
  for measure in [measure for measure in a if measure in b]:
    word, than = WORDS[measure.compare(a[measure][1], b[measure][1])].split()
    start = "" if verdicts else f"{than} {other} "
    verdicts.append((word, f"{start}in {measure.name} ({numbers[measure]})"))
  return _chain(verdicts)


def _within(study: Study, start: str, longest: int) -> str:
  """What the drop costs at the training context, and whether a baseline does as well at the longest length."""
  start += f" the training context of {study.train_context:,} tokens, "
  dropped, name = _dropped(study, study.train_context)
  # Up to the training context every method runs the model as it was trained, so any row of the control will do.
  control = _side(study, study.rows_of("control"), study.train_context)
  numbers = {m: f"{m.show(dropped[m][1].value)} against {m.show(control[m][1].value)}" for m in dropped if m in control}
  price = f"{name} is {_verdict(dropped, control, 'the control', numbers)}"
  if not numbers:
    price = "the dropped model cannot be compared with its control: their figures are missing"
  baseline = _side(study, study.rows_of("baseline"), longest)
  also = _verdict(baseline, *_dropped(study, longest), {m: m.show(figure.value) for m, (_, figure) in baseline.items()})
  if not also:
    return f"{start}{price}."
  where = f"at {study.extension(longest):g}×, " if longest > study.train_context else ""
  tokens = f" ({budget})" if (budget := _budget(study, "baseline")) else ""
  return f"{start}{price}; {where}{_arm(study, baseline, 'the best baseline')}{tokens} is {also}."


def _longest(study: Study) -> int:
  return max([study.train_context, *study.contexts(*(measure.task for measure in measures(study)))])


def _best(study: Study, rows: Sequence[Row], context: int) -> str:
  """`A in needle retrieval (90 %; level with it: B, C) and D in perplexity (19.5)`."""
  found = []
  for measure, (row, figure) in _side(study, rows, context).items():
    level = ", ".join(other.label for other in best_rows(measured(study, rows, measure, context), measure)[1:])
    shown = measure.show(figure.value) + (f"; level with it: {level}" if level else "")
    found += [f"{row.label} in {measure.name} ({shown})"] if figure.value > 0 else []
  return " and ".join(found)


def finding(study: Study) -> str:
  """Two sentences: what the drop is worth at the longest length, and what it costs at the training context.

  Where several rows stand for a side (DroPE with and without the temperature), it is taken at its best; see sides_note.
  """
  longest = _longest(study)
  if not study.rows_of("drope"):
    nothing = "Of dropping nothing can be said: no row of this study is of a dropped model."
    best = _best(study, study.rows, longest) or "none measured"
    return f"{nothing} {_opening(study)} {study.extension(longest):g}× the training context, the best are {best}."
  if longest == study.train_context:
    return f"{_within(study, _opening(study), longest)} Nothing was measured beyond the training context."
  return f"{_beyond(study, longest)} {_within(study, 'At', longest)}"


def sides_note(study: Study) -> str:
  """Who the sides of the finding are: the control, and the best rows where there are several."""
  longest = _longest(study)
  controls = " or ".join(arm.label for arm in study.arms if arm.role == "control")  # of several the better
  notes = [f"The control ({controls}) keeps the positional embedding."] if controls else []
  sides = {"dropped row": study.rows_of("drope"), "training-free method": study.rows_of("control", plain=False)}
  for name, rows in sides.items():
    best = _best(study, rows, longest) if len(rows) > 1 and longest > study.train_context else ""
    notes += [f"The best {name} at {study.extension(longest):g}×: {best}."] if best else []
  return " ".join(notes)


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
