"""Reports of a study, a single run and an evaluation: complete, reproducible, and clear about bad records."""

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
from support.study_records import ACCURACIES, LOSSES, figures, study_of, temperature_fit, write_run

from drope_jax.errors import ReportError
from drope_jax.evaluate import results
from drope_jax.evaluate.results import Result
from drope_jax.positions import RoPE
from experiments.report import main, write_report

ROOT = Path(__file__).parents[3]
OLD = ROOT / "tests" / "support" / "quickstart_725dc9e"


def pictures(directory: Path) -> set[str]:
  return {path.name for path in directory.glob("*.png")}


@pytest.fixture(scope="module")
def written(trained, tmp_path_factory):
  """A whole study with its report."""
  workdir = tmp_path_factory.mktemp("written")
  (workdir / "study.json").write_text((trained / "study.json").read_text())
  (workdir / "runs").symlink_to(trained / "runs")
  fitted = temperature_fit({256: 1.2, 512: 1.4, 1024: 1.8})
  results.append(workdir / "results.jsonl", [*figures(LOSSES, ACCURACIES), *fitted])
  assert write_report(workdir) == workdir / "report.md"
  return workdir


def test_a_study_has_a_section_for_each_task_and_every_plot(written):
  text = (written / "report.md").read_text()
  found = pictures(written)
  assert found == {
    "summary.png", "loss.png", "recovery.png", "frequencies.png", "perplexity_by_position.png", "needles_by_depth.png",
  }  # fmt: skip
  for name in found:
    assert (written / name).read_bytes().startswith(b"\x89PNG") and f"]({name})" in text
  for task in ("perplexity", "needles"):
    assert f"\n## {task}\n" in text
  for content in ("quickstart --workdir=runs/quickstart", "Seed 0", "2 CPU cores, 4 GiB", "8 min 32 s", "jax 0.9.0"):
    assert content in text


def test_a_report_is_the_same_when_written_again(written):
  before = {path.name: path.read_bytes() for path in written.iterdir() if path.is_file()}
  write_report(written)
  assert before == {path.name: path.read_bytes() for path in written.iterdir() if path.is_file()}


# The headings of all columns of text.
TEXT = {"row", "run", "arm", "what it is", "starts from", "starts from changed", "setting", "value"}


def stored(path: Path) -> dict[str, list[str]]:
  """The columns of a CSV by their headings."""
  with path.open(newline="", encoding="utf-8") as file:
    heading, *lines = csv.reader(file)
  assert len(set(heading)) == len(heading), path.name
  return dict(zip(heading, zip(*lines, strict=True), strict=True))


def test_each_csv_has_one_number_per_cell_outside_of_its_columns_of_text(written, tmp_path):
  write_run(tmp_path / "single", positions=RoPE())
  write_report(tmp_path / "single")
  paths = [path for one in (written, tmp_path / "single") for path in (one / "tables").glob("*.csv")]
  assert {"runs", "heldout", "settings", "temperature_drope", "needles_accuracy"} <= {path.stem for path in paths}
  for path in paths:
    for heading, cells in stored(path).items():
      if heading not in TEXT:
        assert [float(cell) for cell in cells if cell], f"{path}: {heading} is empty"


def test_latex_has_no_character_that_pdflatex_lacks(written):
  """These tables have been compiled once, with booktabs as the only package."""
  paths = list((written / "tables").glob("*.tex"))
  assert len(paths) == len(list((written / "tables").glob("*.csv")))
  for path in paths:
    text = path.read_text(encoding="utf-8")
    assert text.isascii(), path.name
    for line in text.splitlines()[3:-2]:
      cells = re.sub(r"\\[_&%$#{}]|\\[a-z]+(\{\})?|\$[^$]*\$", "", line.removesuffix(r" \\"))
      assert not set(cells.replace("{}", "")) & set('_%#$~^\\<>|"'), line


def test_values_of_the_csv_are_those_that_are_shown(written):
  heldout, fit = (stored(written / "tables" / f"{name}.csv") for name in ("heldout", "temperature_drope"))
  at = heldout["arm"].index("DroPE")
  gap = heldout["held-out loss (nats per token) less the control's"][at]
  assert float(gap) == pytest.approx(3.2 - 2.85, abs=1e-9)
  assert heldout["tokens"][at] == str(400 * 4096)
  assert fit["length (tokens)"] == ("256", "512", "1024") and fit["best β on the edge of the grid"] == ("0", "0", "1")
  assert set(fit["β tried from"]) == {"1"} and set(fit["β tried to"]) == {"1.8"}
  by_position = stored(written / "tables" / "perplexity_perplexity_by_position.csv")
  assert by_position["position (tokens) from"][:2] == ("0", "64")
  assert by_position["position (tokens) to"][:2] == ("64", "128")
  runs = stored(written / "tables" / "runs.csv")
  assert runs["starts from"] == ("scratch", "rope", "rope", "scratch")
  assert runs["starts from changed"] == ("", "", "DroPE", "")
  accuracy = stored(written / "tables" / "needles_accuracy.csv")
  level = dict(zip(accuracy["row"], accuracy["accuracy at 1024 tokens level with the best"], strict=True))
  assert [row for row, is_level in level.items() if is_level == "1"] == ["RoPE + YaRN"]


def test_a_picture_that_can_no_longer_be_drawn_goes_and_those_of_others_stay(workdir):
  study_of(workdir, figures(LOSSES, ACCURACIES))
  write_report(workdir)
  mine = ("mine.png", "mine.pdf", "tables/mine.csv")
  for name in mine:
    (workdir / name).write_bytes(b"precious")
  with (workdir / "report.md").open("a") as report:
    report.write("\n![mine](mine.png)\n\nIts numbers: [mine](tables/mine.csv)\n")
  (workdir / "runs").unlink()
  (workdir / "results.jsonl").unlink()
  results.append(workdir / "results.jsonl", figures({"DroPE": (3.27, None, None, None)}, {}))
  text = write_report(workdir).read_text()
  assert pictures(workdir) == {"mine.png", "summary.png", "perplexity_by_position.png"}
  assert all((workdir / name).read_bytes() == b"precious" for name in mine)
  assert "No training record yet: `rope`, `rope_continued`, `drope`, `nope`." in text


def test_pictures_in_formats_of_an_earlier_report_stay_as_long_as_they_are_shown(workdir):
  study_of(workdir, figures(LOSSES, ACCURACIES))
  write_report(workdir, formats=("svg",))
  assert (workdir / "tables" / "needles_accuracy.csv").exists()
  write_report(workdir)
  assert (workdir / "summary.svg").exists() and (workdir / "needles_by_depth.svg").exists()
  (workdir / "results.jsonl").unlink()
  results.append(workdir / "results.jsonl", figures(LOSSES, {}))
  write_report(workdir)
  assert (workdir / "summary.svg").exists() and not list(workdir.glob("needles_by_depth.*"))
  assert not (workdir / "tables" / "needles_accuracy.csv").exists()


def test_a_report_that_did_not_list_its_files_deletes_none(workdir):
  """As earlier versions wrote them."""
  study_of(workdir, figures({"DroPE": (3.27, None, None, None)}, {}))
  (workdir / "needles_by_depth.png").write_bytes(b"of an earlier report")
  (workdir / "report.md").write_text("![needles](needles_by_depth.png)\n\n![mine](mine.png)\n")
  write_report(workdir)
  assert (workdir / "needles_by_depth.png").exists() and (workdir / "summary.png").exists()


def test_a_workdir_of_725dc9e_is_reported(tmp_path):
  workdir = shutil.copytree(OLD, tmp_path / "study")
  text = write_report(workdir).read_text()
  assert pictures(workdir) == {
    "summary.png", "loss.png", "frequencies.png", "perplexity_by_position.png", "needles_by_depth.png",
  }  # fmt: skip
  records = [json.loads(line) for line in (OLD / "results.jsonl").read_text().splitlines()]
  (loss,) = [r["value"] for r in records if (r["run"], r["metric"], r["context"]) == ("nope", "bits_per_byte", 256)]
  assert f"{loss:.3f}" in text and "c = **0.165**" in text
  assert "- **DroPE, β = 1**: `drope`, DroPE" in text and "`rope_continued`, the control" in text


def test_a_single_run_has_its_settings_and_curves(tmp_path):
  directory = tmp_path / "pretrained"
  write_run(directory, positions=RoPE(theta=500.0), heldout={1: [(0, 7.0), (400, 3.0)], 4: [(0, 7.0), (400, 4.5)]})
  text = write_report(directory).read_text()
  assert pictures(directory) == {"loss.png", "heldout.png"}
  assert "| model.positions.theta | `500.0` |" in text and "| `pretrained` | scratch |" in text
  assert "## What is compared" not in text
  figure = {"run": "pretrained", "method": "rope", "task": "needles", "context": 256, "extension": 2.0, "seed": 0}
  results.append(directory / "results.jsonl", [Result(metric="accuracy", value=0.25, n=8, **figure)])
  assert "| rope | 0.250 |" in write_report(directory).read_text()
  (tmp_path / "link").symlink_to(directory)
  assert write_report(tmp_path / "link").read_text().startswith("# Run link\n")


def test_an_evaluation_names_every_command_that_measured(tmp_path):
  shared = {"run": "model", "task": "copy", "metric": "loss", "extension": 2.0, "context": 64, "n": 50, "seed": 0}
  commands = ("evaluate --methods=rope", "evaluate --methods=yarn", "evaluate --methods=rope")
  found = [Result(value=1.0, method=one.split("=")[1], command=one, **shared) for one in commands]
  results.append(tmp_path / "results.jsonl", found)
  assert "```\nevaluate --methods=rope\nevaluate --methods=yarn\n```" in write_report(tmp_path).read_text()


def test_perplexities_of_other_tokens_are_not_ranked_and_bits_per_byte_are(tmp_path):
  """As with two tokenizers: the first has the lower loss per token, the second the lower loss per byte."""
  shared = {"task": "perplexity", "method": "rope", "extension": 2.0, "context": 64, "n": 50, "seed": 0}
  found = []
  for text, run, loss, bits in (("abc", "small", 1.0, 2.0), ("def", "large", 3.0, 1.0)):
    for metric, value in (("loss", loss), ("bits_per_byte", bits)):
      ends = {"low": value - 0.1, "high": value + 0.1, "better": "lower", "settings": {"text": text}}
      found.append(Result(run=run, metric=metric, value=value, **ends, **shared))
  results.append(tmp_path / "results.jsonl", found)
  report = write_report(tmp_path).read_text()
  assert "read different tokens" in report
  assert "| large, rope | **1.000 (0.900 to 1.100)** | 2× |" in report
  assert "| small, rope | 1.000 (0.900 to 1.100) |" in report and "perplexity |" not in report
  assert report.index("| bits_per_byte |") < report.index("| loss |")


def test_pictures_come_in_the_formats_that_are_asked_for(tmp_path, capsys):
  write_run(tmp_path / "run", positions=RoPE())
  assert main([str(tmp_path / "run"), "--formats=svg,pdf"]) == 0
  assert {path.name for path in (tmp_path / "run").glob("loss.*")} == {"loss.png", "loss.svg", "loss.pdf"}
  assert main([str(tmp_path / "run"), "--formats=gif"]) == 2
  assert "'gif' is not a picture format; allowed: png, svg, pdf" in capsys.readouterr().err


def test_an_evaluation_has_tables_and_pictures_of_its_tasks_alone(tmp_path):
  common = {"run": "model", "extension": 2.0, "context": 64, "n": 50, "seed": 0, "command": "evaluate it"}
  needle = {**common, "method": "yarn", "task": "niah_single_1", "metric": "string_match_all"}
  found = [
    Result(value=0.5, low=0.375, high=0.625, **needle),
    *(Result(by="depth", at=depth, value=depth, **needle) for depth in (0.0, 0.5, 1.0)),
    Result(metric="beta", value=1.125, **{**common, "method": "yarn", "task": "niah_single_1"}),
    Result(metric="loss", value=2.5, method="rope", task="copy", **common),
    Result(metric="loss", by="distance", at=16, value=2.75, method="rope", task="copy", **common),
  ]
  results.append(tmp_path / "results.jsonl", found)
  report = write_report(tmp_path).read_text()
  assert "evaluate it" in report and "| yarn | 0.500 (0.375 to 0.625) |" in report and "| rope | 2.500 |" in report
  assert "| 16 | 2.750 |" in report and "| yarn | 1.125 |" in report
  assert pictures(tmp_path) == {"summary.png", "niah_single_1_by_depth.png", "copy_by_distance.png"}
  assert "perplexity" not in report and "## The training" not in report


# --- the command -------------------------------------------------------------------------------


def test_command(command, written):
  ended = command("experiments.report", written)
  assert (ended.status, ended.stdout.strip()) == (0, str(written / "report.md"))


def test_bad_usage_exits_2(capsys):
  assert main([]) == 2
  assert "DIR" in capsys.readouterr().err


def _changed(workdir: Path, change) -> None:
  data = json.loads((workdir / "study.json").read_text())
  change(data)
  (workdir / "study.json").write_text(json.dumps(data))


@pytest.mark.parametrize(
  ("spoil", "message"),
  [
    (lambda w: (w / "study.json").unlink(), "study.json: cannot be read"),
    (lambda w: (w / "study.json").write_text("{"), "study.json: not JSON"),
    (lambda w: _changed(w, lambda data: data.pop("title")), "study.json: title is missing"),
    (lambda w: _changed(w, lambda data: data["rows"][0].update(run="rop")), "is of run 'rop', which no arm names"),
    (lambda w: (w / "results.jsonl").unlink(), "results.jsonl: holds no figure"),
    (lambda w: (w / "results.jsonl").write_text(""), "results.jsonl: holds no figure"),
    (lambda w: (w / "results.jsonl").write_text('{"run": 1}\n'), "results.jsonl:1: not a result"),
  ],
)
def test_spoilt_records_are_one_line_and_exit_1(workdir, capsys, spoil, message):
  study_of(workdir, figures(LOSSES, {}))
  spoil(workdir)
  assert main([str(workdir)]) == 1
  error = capsys.readouterr().err
  assert message in error and str(workdir) in error and error.count("\n") == 1
  assert not (workdir / "report.md").exists()


def test_an_unreadable_run_is_named(workdir):
  (workdir / "runs").unlink()
  write_run(workdir / "runs" / "rope")
  (workdir / "runs/rope/config.json").write_text("{}")
  with pytest.raises(ReportError, match=r"runs/rope/config\.json: "):
    study_of(workdir, figures(LOSSES, {}))
