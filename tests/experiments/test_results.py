"""The pages of docs/results match the figures in data/, and verdicts follow the stated rule."""

import dataclasses
import importlib
import json
import shutil
from pathlib import Path

import pytest
from support.study_records import ACCURACIES, LOSSES, figures, study_of, write_study

from drope_jax.errors import ReportError
from drope_jax.evaluate.results import Result
from experiments import results, seeds
from experiments.reporting import aim, claims, verdicts
from experiments.reporting.making import shareable
from experiments.reporting.paper_tables import paper_tables
from experiments.reporting.spread import Spread, spread
from experiments.reporting.study_page import DATA, MOST_BYTES, digest, findings, page_text, picture_digest, write_page
from experiments.reporting.summary_files import csv_text, read_summary
from experiments.reporting.table import MISSING

PAGES = results.pages(results.RESULTS)
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_is_current(page):
  """Otherwise run `python -m experiments.results`."""
  summary = read_summary(page.parent / DATA / f"{page.stem}.json")
  assert page.read_text() == page_text(summary, page.stem, findings(page))
  pictures = list((page.parent / DATA).glob(f"{page.stem}_*.png"))
  shown = [path for path in pictures if f"({DATA}/{path.name})" in page.read_text()]
  assert shown
  for path in shown:
    assert picture_digest(path) == digest(summary) and path.stat().st_size <= MOST_BYTES


def test_the_index_is_current():
  assert (results.RESULTS / "index.md").read_text() == results.index_text(results.RESULTS)


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory):
  """Two seeds, in which the dropped model's loss differs from the control's by 0.38 and 0.40 in context."""
  made = []
  for seed in (0, 1):
    made.append(tmp_path_factory.mktemp(f"seed-{seed}"))
    write_study(made[-1])
    description = json.loads((made[-1] / "study.json").read_text())
    (made[-1] / "study.json").write_text(json.dumps(description | {"seed": seed}))
    losses = {label: [value + 0.1 * seed for value in values] for label, values in LOSSES.items()}
    losses["DroPE"] = [value + 0.02 * seed for value in losses["DroPE"]]
    study_of(made[-1], figures(losses, ACCURACIES))
  return made


@pytest.fixture(scope="module")
def page(workdirs, tmp_path_factory):
  """The page of both seeds, and its files."""
  path = tmp_path_factory.mktemp("results") / "quick.md"
  return seeds.write_study_page(workdirs, path, commit="abc1234")


def test_a_page_says_how_it_was_made_and_what_came_out(page):
  text = page.read_text()
  for part in ("seeds 0, 1", "commit abc1234", "2 CPU cores, 4 GiB", "--workdir=runs/quick", "(data/quick.csv)"):
    assert part in text
  # 3.27 + 0.12 - 2.99 and 3.27 - 2.89: 0.39 ± 0.0141, and t(0.975, 1) is 12.706.
  assert "| DroPE | 3.330 ± 0.085 | 3.660 ± 0.085 | **+0.390 (+0.263 to +0.517)** |" in text
  assert "[Dropping positional embeddings, in small](quick.md)" in (page.parent / "index.md").read_text()


def test_a_page_is_the_same_from_the_files_beside_it_and_keeps_what_a_person_wrote(page):
  before = {path.name: path.read_bytes() for path in page.parent.rglob("*") if path.is_file()}
  results.write_all(page.parent)
  assert before == {path.name: path.read_bytes() for path in page.parent.rglob("*") if path.is_file()}
  note = page.parent / DATA / "quick.txt"
  note.write_text("The drop costs 0.4 nats.\n")
  write_page(page, pictures=False)
  assert "\n\nThe drop costs 0.4 nats.\n\n" in page.read_text()
  note.unlink()


def test_a_summary_is_read_as_it_was_written(page, workdirs):
  path = page.parent / DATA / "quick.json"
  written, here = read_summary(path), seeds.summary_of(workdirs, "quick", commit="abc1234")
  assert csv_text(written) == csv_text(here)
  assert dataclasses.replace(written, figures={}) == dataclasses.replace(here, figures={})
  assert list(written.figures) == list(here.figures)


def test_workdirs_of_other_models_are_not_seeds_of_one_study(workdirs, tmp_path):
  other = shutil.copytree(workdirs[1], tmp_path / "other")
  path = other / "runs" / "nope" / "config.json"
  config = json.loads(path.read_text())
  config["model"]["d_ff"] += 8
  path.write_text(json.dumps(config))
  with pytest.raises(ReportError, match=f"{other}: nope has another model than in {workdirs[0]}"):
    seeds.summary_of([workdirs[0], other], "quick")


@pytest.mark.parametrize(
  ("spoil", "said"),
  [
    (lambda text: text.replace(",0,3.27,", ",0,much,"), "not a figure"),
    (lambda text: text.replace(",0,3.27,", ",0,nan,"), r"not a figure \(loss is nan .*; numbers must be finite"),
    (lambda text: "\n".join(text.splitlines()[:-1]) + "\n", "has seeds"),
    (lambda text: text.replace("context", "length", 1), "not a figure"),
  ],
)
def test_spoilt_figures_are_named(page, tmp_path, spoil, said):
  for name in ("quick.json", "quick.csv"):
    text = (page.parent / DATA / name).read_text()
    (tmp_path / name).write_text(spoil(text) if name.endswith("csv") else text)
  with pytest.raises(ReportError, match=rf"quick\.csv.*{said}"):
    read_summary(tmp_path / "quick.json")


@pytest.mark.parametrize(
  ("command", "shown"),
  [
    (
      "python -m experiments.study --config=experiments/studies/a.py:mini --workdir=/tmp/x/seed-1 --config.seed=1 "
      "--runs=/tmp/runs --data=/home/me/text",
      "python -m experiments.study --config=experiments/studies/a.py:mini --workdir=runs/a --data=text --seeds=1,2",
    ),
    ("python -m experiments.study --config=a.py --workdir=/x --seeds=1", None),
    (
      "python -m experiments.study --config=/a.py --workdir=/x --data=/home/me/a.jsonl,heldout=/b/c,bad=skip "
      "--only=drop,control --config.data=gs://bucket/d",
      "python -m experiments.study --config=a.py --workdir=runs/a --data=a.jsonl,heldout=c,bad=skip "
      "--only=drop,control --config.data=gs://bucket/d --seeds=1,2",
    ),
  ],
)
def test_commands_lose_the_paths_of_their_machine(command, shown):
  expected = shown or "python -m experiments.study --config=a.py --workdir=runs/a --seeds=1,2"
  assert shareable(command, "a", [1, 2]) == expected


def test_a_page_shows_what_copying_gains_by_distance(tmp_path):
  """At the longest length, where both seeds may have an accuracy of 0."""
  made = []
  for seed in (0, 1):
    made.append(tmp_path / f"seed-{seed}")
    made[-1].mkdir()
    write_study(made[-1])
    description = json.loads((made[-1] / "study.json").read_text())
    (made[-1] / "study.json").write_text(json.dumps(description | {"seed": seed}))
    common = {"run": "drope", "method": "nope", "task": "copy", "seed": seed, "n": 10, "better": "higher"}
    found = []
    for context in (128, 256):
      here = {**common, "context": context, "extension": context / 128}
      found += [Result(metric=metric, value=0.0, **here) for metric in ("accuracy", "gain")]
      for at in (16, 32):
        value = (0.1 if at == 16 else 0.5) + 0.2 * seed + context
        found += [Result(metric="accuracy", value=0.0, by="distance", at=at, **here)]
        found += [Result(metric="gain", value=value, by="distance", at=at, **here)]
    study_of(made[-1], found)
  text = page_text(seeds.summary_of(made, "copying"), "copying")
  assert "| copy 2×: gain (nats per token) by distance | 16 tokens | 32 tokens |" in text
  assert "| DroPE, β = 1 | 256.200 ± 0.141 | 256.600 ± 0.141 |" in text


# --- claims ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ("values", "above", "below", "expected"),
  [
    ((0.1, 0.11, 0.12), 0.0, None, verdicts.HOLDS),
    ((0.1, 0.11, 0.12), None, 0.0, verdicts.FAILS),
    ((-0.1, 0.2, 0.1), 0.0, None, verdicts.OPEN),
    ((0.001, 0.002, 0.003), None, 0.02, verdicts.HOLDS),
    ((0.001, 0.002, 0.003), -0.02, 0.02, verdicts.HOLDS),
    ((0.01, 0.02, 0.03), -0.02, 0.02, verdicts.OPEN),
    ((0.1,), 0.0, None, verdicts.OPEN),
  ],
)
def test_a_verdict_follows_the_rule(values, above, below, expected):
  asked = claims.Comparison("s", ("a", "rope"), ("b", "rope"), "perplexity", "loss", 1, above, below)
  assert verdicts.verdict(spread(values), asked) == expected


@pytest.mark.parametrize(
  ("found", "expected"),
  [
    ([], verdicts.UNTESTED),
    (["holds", "holds"], verdicts.HOLDS),
    (["holds", "open"], verdicts.OPEN),
    (["open", "does not hold"], verdicts.FAILS),
  ],
)
def test_one_that_fails_refutes_a_claim(found, expected):
  assert verdicts.overall(found) == expected


def test_a_claim_does_not_hold_by_what_is_measured_of_it_alone(workdirs):
  summary = seeds.summary_of(workdirs, "quick")
  first = claims.Comparison("quick", ("rope_continued", "rope"), ("drope", "nope"), "perplexity", "loss", 1, below=0.0)
  unmeasured = first._replace(second=("alibi", "alibi"))
  expected_of = {(first,): verdicts.HOLDS, (first, unmeasured): verdicts.OPEN, (unmeasured,): verdicts.UNTESTED}
  for comparisons, expected in expected_of.items():
    claim = claims.Claim("RoPE has the lower loss.", "table 1", comparisons)
    line = verdicts.claims_table([claim], {"quick": summary}, "claim", {}).splitlines()[-1]
    assert f"**{expected}**" in line
    assert ("not measured: open" in line) == (comparisons == (first, unmeasured))


def test_a_claim_may_compare_the_lengths_of_one_model(workdirs):
  summary = seeds.summary_of(workdirs, "quick")
  (row,) = [row for row in summary.rows if (row.run, row.method) == ("drope", "nope")]
  near, far = sorted(summary.contexts("perplexity"))[:: len(summary.contexts("perplexity")) - 1]
  ratio = far / summary.train_context
  asked = claims.Comparison("quick", ("drope", "nope"), ("drope", "nope"), "perplexity", "loss", ratio, below=0.0)
  asked = asked._replace(second_extension=near / summary.train_context)
  expected = [
    b - a for a, b in zip(*(summary.values(row, "perplexity", one, "loss") for one in (near, far)), strict=True)
  ]
  assert expected != [0, 0] and verdicts.difference(summary, asked).mean == pytest.approx(sum(expected) / 2)
  line = verdicts.claims_table([claims.Claim("It rises.", "table 1", (asked,))], {"quick": summary}, "claim", {})
  assert f"“{row.label}”, loss at {ratio:g}× minus {near / summary.train_context:g}×" in line


@pytest.mark.parametrize(
  ("cost", "at_4", "at_8", "said"),
  [
    ((0.004, 0.006), (-0.02, 0.03), (-0.04, 0.0), "**reached**"),
    ((0.021, 0.030), (-0.02, 0.03), (-0.04, 0.0), "**missed**"),
    ((0.004, 0.006), (-0.09, -0.06), (-0.04, 0.0), "**missed**"),
    ((0.004, 0.006), (-0.02, 0.03), (-0.06, 0.0), "**open**"),
    ((0.016, 0.024), (-0.02, 0.03), (-0.04, 0.0), "**open**"),
  ],
)
def test_the_aim_needs_the_cost_and_the_needles_at_both_lengths(monkeypatch, workdirs, cost, at_4, at_8, said):
  """One study has half a turn, a second the full drop without a temperature; nobody has measured the rest."""
  found = {1: cost, 4: at_4, 8: at_8}
  measured = {("partial_drop_half", ("turns_0.5", "rope")), ("partial_drop", ("drop", "nope"))}

  def difference(_, asked):
    low, high = found[asked.extension]
    return Spread((low + high) / 2, 2, 0.1, low, high) if (asked.study, asked.first) in measured else None

  monkeypatch.setattr(aim, "difference", difference)
  summary = seeds.summary_of(workdirs, "quick", commit="abc1234")
  table = aim.aim_table({"partial_drop_half": summary, "partial_drop": summary}).splitlines()
  (line,) = [line for line in table if line.startswith("| 0.9M, 128 tokens, base 1e4")]
  half, one, two, full = line.strip("| ").split(" | ")[1:]
  assert said in half and "(partial_drop_half.md)" in half and (one, two) == (MISSING, MISSING)
  assert said in full and "(partial_drop.md)" in full
  assert table[-1].split(" | ")[1:] == [MISSING, MISSING, MISSING, f"{MISSING} |"]


def test_a_person_judges_what_no_rule_decides(tmp_path):
  path = tmp_path / "verdicts.json"
  assert verdicts.judged(path) == {}
  given = {"figure 4": {"evidence": "[figures](figures.md): larger in all layers", "verdict": "holds"}}
  path.write_text(json.dumps(given))
  (line,) = [line for line in results.index_text(tmp_path).splitlines() if "| figure 4 |" in line]
  assert line.endswith("| [figures](figures.md): larger in all layers | **holds** (judged) |")
  for where, verdict in (("table 6", "holds"), ("figure 4", "surely")):
    path.write_text(json.dumps({where: {"evidence": "seen", "verdict": verdict}}))
    with pytest.raises(ReportError, match=where):
      verdicts.judged(path)


def settings_of(page):
  """Of the study of a page: `partial_drop` is at mini, `partial_drop_small` at small, `..._256` at mini_256."""
  studies = ROOT / "experiments" / "studies"
  name = next(name for name in (page, page.rpartition("_")[0]) if (studies / f"{name}.py").exists())
  module, size = importlib.import_module(f"experiments.studies.{name}"), page.removeprefix(name).strip("_")
  if not hasattr(module, "SIZES"):
    return module.get_config()
  return module.SIZES[size if size in module.SIZES else f"mini_{size}".strip("_")]()


def test_claims_are_about_rows_that_their_studies_measure():
  every = [one for claim in (*claims.PAPER, *claims.OURS) for one in claim.comparisons]
  for name in {one.study for one in every}:
    study = settings_of(name).study(Path("study"))
    rows = {(row.run, row.method) for row in study.rows}
    for one in every:
      if one.study == name:
        assert {one.first, one.second} <= rows and one.task in study.tasks, one
        assert one.extension * study.train_context in study.lengths, one
  for claim in claims.PAPER:
    assert claim.comparisons or claim.tests or claim.wants, claim.text
    assert not claim.tests or (ROOT / claim.tests).exists()


def test_the_tables_of_the_paper_belong_to_studies_that_are_there():
  for table in paper_tables():
    assert (ROOT / "experiments" / "studies" / f"{table.study}.py").exists()
    assert {len(row) for row in table.rows} == {len(table.header)}
