"""The spread over seeds follows from the records, and needs different seeds."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.study_records import write_study

from drope_jax.evaluate import results
from drope_jax.evaluate.results import Result
from experiments import report
from experiments import study as study_module
from experiments.reporting.writing import markdown
from experiments.seeds import main, seed_report


def study(directory, seed: int, loss: float, accuracy: float | None, yarn: float | None = None, command: str = "none"):
  directory.mkdir()
  record = {
    "title": "A study",
    "command": command,
    "seed": seed,
    "train_context": 128,
    "machine": "",
    "versions": {},
    "seconds": 1.0,
    "arms": [{"label": "RoPE", "runs": ["rope"]}],
    "rows": [
      {"run": "rope", "method": "rope", "label": "RoPE"},
      {"run": "rope", "method": "yarn", "label": "RoPE + YaRN"},
    ],
  }
  (directory / "study.json").write_text(json.dumps(record))
  common = {"run": "rope", "method": "rope", "context": 256, "extension": 2.0, "n": 100, "seed": seed}
  figures = [Result(task="perplexity", metric="loss", value=loss, **common)]
  if accuracy is not None:
    figures.append(Result(task="needles", metric="accuracy", value=accuracy, **common))
  if yarn is not None:
    figures.append(Result(task="perplexity", metric="loss", value=yarn, **common | {"method": "yarn"}))
  results.append(directory / "results.jsonl", figures)
  return str(directory)


def test_mean_and_spread(tmp_path, capsys):
  figures = {0: (3.0, 0.5), 1: (3.5, 0.7), 2: (4.0, 0.9)}
  directories = [study(tmp_path / str(seed), seed, *values) for seed, values in figures.items()]
  assert main(directories) == 0
  printed = capsys.readouterr().out
  assert "| RoPE | 3.500 ± 0.500 |" in printed
  assert "| RoPE | 0.700 ± 0.200 |" in printed
  assert "2× (256)" in printed and "over seeds 0, 1, 2" in printed
  assert "YaRN" not in printed  # a row that no seed has measured, as with --only


def test_bad_input_is_one_line(tmp_path, capsys):
  first, same = (study(tmp_path / name, 0, 3.0, 0.5) for name in ("first", "same"))
  other, more = study(tmp_path / "other", 1, 3.0, None), study(tmp_path / "more", 2, 3.0, 0.5, 3.1)
  longer = study(tmp_path / "longer", 3, 3.0, 0.5)
  path = tmp_path / "longer" / "study.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | {"train_context": 64}))
  for directories, said in (
    ([first, same], "seeds are [0, 0]; a spread needs at least two, all different"),
    ([first], "seeds are [0]; a spread needs at least two, all different"),
    ([first, other], f"{other}: no accuracy of RoPE in needles at 256 tokens"),
    ([first, more], f"{first}: no loss of rope, yarn in perplexity at 256 tokens, which {more} has"),
    ([first, longer], f"{longer}: its training context is 64, that of {first} 128; seeds are of one study"),
    ([first, str(tmp_path / "none")], "none"),
  ):
    assert main(directories) == 1
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_differences_are_taken_within_a_seed(tmp_path, capsys):
  """The rows differ by 0.1, 0.2 and 0.3: t(0.975, 2) is 4.303, so the interval is 0.2 ± 4.303 * 0.1 / sqrt(3)."""
  losses = {0: 3.0, 1: 3.5, 2: 4.0}
  studies = [study(tmp_path / str(seed), seed, loss, None, loss + 0.1 * (seed + 1)) for seed, loss in losses.items()]
  assert main([*studies, "--control=RoPE"]) == 0
  printed = capsys.readouterr().out
  assert "difference from “RoPE” of the same seed" in printed
  assert "| RoPE + YaRN | +0.200 ± 0.100 (-0.048 to +0.448) |" in printed
  assert main([*studies, "--control=PI"]) == 1
  assert "--control is 'PI'; rows: RoPE, RoPE + YaRN" in capsys.readouterr().err


def test_the_control_is_the_run_that_kept_its_embedding(tmp_path):
  workdirs = []
  for seed in (0, 1):
    workdirs.append(tmp_path / str(seed))
    workdirs[-1].mkdir()
    write_study(workdirs[-1])
    description = json.loads((workdirs[-1] / "study.json").read_text())
    (workdirs[-1] / "study.json").write_text(json.dumps(description | {"seed": seed}))
    shared = {"context": 128, "extension": 1.0, "n": 100, "seed": seed, "task": "perplexity", "metric": "loss"}
    rows = {("rope_continued", "rope"): 3.0 + seed, ("drope", "nope"): 3.4 + seed}
    found = [Result(run=run, method=method, value=loss, **shared) for (run, method), loss in rows.items()]
    results.append(workdirs[-1] / "results.jsonl", found)
  report = "\n\n".join(map(markdown, seed_report(workdirs)))
  assert "| DroPE, β = 1 | +0.400 ± 0.000 (+0.400 to +0.400) |" in report
  # The recovery curves of write_study, after 0, 200 and 400 steps: 6.2 - 2.95, 3.4 - 2.9, 3.2 - 2.85.
  (recovery,) = [line for line in report.splitlines() if line.startswith("| drope |")]
  assert [float(cell.split()[0]) for cell in recovery.split("|")[2:5]] == [3.25, 0.5, 0.35]


def test_seeds_md_has_pictures_and_each_table_as_files(tmp_path, capsys):
  losses = {0: 3.0, 1: 3.5}
  studies = [study(tmp_path / str(seed), seed, loss, 0.5, loss + 0.2) for seed, loss in losses.items()]
  assert main([*studies, "--control=RoPE", f"--out={tmp_path / 'out'}", "--formats=svg"]) == 0
  assert capsys.readouterr().out.strip() == str(tmp_path / "out" / "seeds.md")
  text = (tmp_path / "out" / "seeds.md").read_text()
  assert text.startswith("# A study\n") and "](seeds_lengths.png)" in text
  assert {path.name for path in (tmp_path / "out").glob("seeds_*")} == {"seeds_lengths.png", "seeds_lengths.svg"}
  names = {"perplexity_loss", "perplexity_loss_less_control", "needles_accuracy", "needles_accuracy_less_control"}
  assert {path.name for path in (tmp_path / "out" / "tables").iterdir()} == {
    f"{name}.{suffix}" for name in names for suffix in ("csv", "tex")
  }
  first = (tmp_path / "out" / "tables" / "perplexity_loss_less_control.csv").read_text().splitlines()
  name = "loss (nats per token) less the control's at 256 tokens"
  assert first[0] == ",".join(["row", name, *(f"{name} {one}" for one in ("low", "high", "n", "sd"))])
  assert first[1].startswith("RoPE + YaRN,0.2,") and first[1].endswith(",2,0")


def test_seeds_md_shows_the_figures_that_the_study_of_each_seed_drew(tmp_path):
  for seed in (0, 1):
    workdir = Path(study(tmp_path / f"seed-{seed}", seed, 3.0, 0.5))
    path = workdir / "study.json"
    figures = {"my_heads": "What my heads see.", "my_heads_two": "Another.", "not_drawn": "Nothing."}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"figures": figures}))
    (workdir / "report.md").touch()
    (workdir / "figures").mkdir()
    for name in ("my_heads.png", "my_heads_all.csv", "my_heads_two.csv", "my_headset.csv"):
      (workdir / "figures" / name).touch()
  assert report.main([str(tmp_path)]) == 0
  text = (tmp_path / "seeds.md").read_text()
  for seed in (0, 1):
    folder = f"seed-{seed}/figures"
    assert f"![What my heads see.]({folder}/my_heads.png)" in text
    assert f"*What my heads see. The numbers: [my_heads_all.csv]({folder}/my_heads_all.csv).*" in text
  assert "not_drawn" not in text and "my_heads_two" not in text and "my_headset" not in text
  assert report.main([str(tmp_path)]) == 0  # which deletes pictures that it no longer shows, and not these
  assert (tmp_path / "seed-0" / "figures" / "my_heads.png").exists()


def test_report_merges_the_finished_seeds_of_a_folder(tmp_path, capsys):
  for seed in (2, 10, 3):
    study(tmp_path / f"seed-{seed}", seed, 3.0 + seed / 10, 0.5)
    (tmp_path / f"seed-{seed}" / "report.md").touch()
  (tmp_path / "seed-3" / "report.md").unlink()  # a study that is still at work
  assert report.main([str(tmp_path), "--formats=svg"]) == 0
  out, err = capsys.readouterr()
  assert out.strip() == str(tmp_path / "seeds.md") and (tmp_path / "seeds_lengths.svg").exists()
  assert "| RoPE | 3.600 ± 0.566 |" in (tmp_path / "seeds.md").read_text()  # of 3.2 and 4.0
  assert str(tmp_path / "seed-3") in err and err.count("\n") == 1
  for seed in (2, 10):
    (tmp_path / f"seed-{seed}" / "report.md").unlink()
  assert report.main([str(tmp_path)]) == 1
  assert f"{tmp_path}: no seed-N in it has a report.md" in capsys.readouterr().err


def test_seeds_that_are_run_later_are_merged_with_the_earlier_ones(tmp_path, monkeypatch):
  @dataclasses.dataclass
  class Settings:
    seed: int = 0

    def study(self, workdir):
      return SimpleNamespace(runs={"rope": None})

  def run_study(settings, workdir, **how):
    study(workdir, settings.seed, 3.0 + settings.seed / 10, 0.5)
    (workdir / "report.md").touch()

  monkeypatch.setattr(study_module, "run_study", run_study)
  study_module.run_seeds(Settings(), [0], tmp_path)
  assert not (tmp_path / "seeds.md").exists()
  study_module.run_seeds(Settings(), [2, 1], tmp_path)
  assert "over seeds 0, 1, 2" in (tmp_path / "seeds.md").read_text()
  study_module.run_seeds(Settings(), [3], tmp_path)
  assert "over seeds 0, 1, 2, 3" in (tmp_path / "seeds.md").read_text()


def test_the_table_of_the_paper_stands_beside_ours(tmp_path, capsys):
  command = "python -m experiments.study --config=/a/studies/table1_needles.py:mini --workdir='a b'"
  studies = [study(tmp_path / f"seed-{seed}", seed, 3.0, 0.5, command=command) for seed in (0, 1)]
  assert main([*studies, f"--out={tmp_path}"]) == report.main([studies[0]]) == 0
  capsys.readouterr()
  for path in (tmp_path / "seeds.md", tmp_path / "seed-0" / "report.md"):
    assert "| DroPE | 28.0 | 41.6 | 23.3 |" in path.read_text()  # Table 1
    assert (path.parent / "tables" / "paper_table_1.csv").read_text().startswith("method,multi-query,")
  other = study(tmp_path / "other", 0, 3.0, 0.5, command=command.replace("table1_needles", "mine"))
  assert report.main([other]) == 0 and "paper" not in (tmp_path / "other" / "report.md").read_text()


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_the_data_of_a_page_gives_its_tables_as_latex(tmp_path, capsys, seeds):
  studies = [study(tmp_path / f"seed-{seed}", seed, 3.0 + seed, None, 3.25 + seed) for seed in seeds]
  assert main([*studies, "--control=RoPE", f"--page={tmp_path / 'mine.md'}"]) == 0
  data = str(tmp_path / "data" / "mine.json")
  assert main([data, f"--out={tmp_path}"]) == 0
  found = (tmp_path / "tables" / "perplexity_loss_less_control.tex").read_text()
  assert r"\begin{tabular}" in found and "RoPE + YaRN & +0.250" in found
  assert ("seed 0 alone" in (tmp_path / "seeds.md").read_text()) == (len(seeds) == 1)
  capsys.readouterr()
  assert main([data, "--control=RoPE"]) == 2 and "--control" in capsys.readouterr().err
