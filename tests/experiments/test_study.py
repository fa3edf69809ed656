"""How a study runs: who owns its workdir, what is refused before the first run, and what its files record."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from support.tiny_run import contents, tiny_model, tiny_run

from drope_jax.config import ModelConfig, TrainConfig
from drope_jax.data.tokenizers import load_tokenizer
from drope_jax.errors import BusyError, CheckpointError, ConfigError
from drope_jax.evaluate.eval_data import EvalData
from drope_jax.workdir import sole_writer
from experiments import study as study_module
from experiments.plan import Arm, Figures, Row, Study
from experiments.report import write_report
from experiments.reporting.records import read_study
from experiments.studies import fig4_bias_gradients
from experiments.study import run_study


@dataclasses.dataclass(unsafe_hash=True, kw_only=True)
class Tiny:
  """Settings of a study of one run, of context 16."""

  corpus: str
  model: ModelConfig = dataclasses.field(default_factory=tiny_model)
  longest: int = 32
  task: str = "perplexity"
  seed: int = 0

  def study(self, workdir: Path) -> Study:
    run = tiny_run(self.corpus, model=self.model, steps=2, seed=self.seed)
    return Study(
      title="Tiny",
      seed=self.seed,
      train_context=16,
      prepare=lambda: (workdir / "data").mkdir(exist_ok=True),
      runs={"rope": run},
      arms=(Arm("RoPE", ("rope",)),),
      rows=(Row("rope", "rope", "RoPE"), Row("rope", "yarn", "RoPE + YaRN")),
      lengths=(16, self.longest),
      tasks=(self.task,),
      eval_data=lambda: EvalData(
        tokenizer=load_tokenizer("byte"), longest=self.longest, dataset=self.corpus, num_documents=1
      ),
    )


@pytest.fixture(scope="module")
def settings(study_corpus):
  return Tiny(corpus=study_corpus)


@pytest.fixture(scope="module")
def done(settings, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("study") / "done"
  run_study(settings, workdir, formats=("svg",))
  return workdir


def test_the_pictures_of_its_report_come_in_the_formats_that_are_asked_for(done):
  names = {path.name for path in done.iterdir()}
  assert {"summary.png", "summary.svg"} <= names and not any(name.endswith(".pdf") for name in names)


@pytest.mark.slow
def test_doing_it_again_changes_no_file_and_keeps_how_it_was_made(settings, done, monkeypatch):
  monkeypatch.setattr("drope_jax.cli.command_line", lambda: "another command")
  for module in ("drope_jax.serialization", "experiments.study"):
    monkeypatch.setattr(f"{module}.library_versions", lambda: {"jax": "99"})
  before = contents(done)
  run_study(settings, done)
  assert contents(done) == before


def test_a_workdir_of_another_study_is_refused_by_the_field(settings, done):
  before = contents(done)
  other = dataclasses.replace(settings, model=tiny_model(d_ff=32))
  with pytest.raises(CheckpointError, match=r"done belongs to another study: model.d_ff: 24 there, 32 here"):
    run_study(other, done)
  assert contents(done) == before


def test_a_workdir_of_another_kind_of_study_is_refused_by_its_name(done):
  before = contents(done)
  with pytest.raises(CheckpointError, match=r"done belongs to another study: its settings are a \w+, and these a Bias"):
    run_study(fig4_bias_gradients.get_config("mini"), done)
  assert contents(done) == before


def test_a_second_start_is_refused_and_a_study_does_not_lock_its_own_runs_out(settings, done):
  with sole_writer(done, "results"):
    before = contents(done)
    with pytest.raises(BusyError, match=f"{done}: another process writes here"):
      run_study(settings, done)
    assert contents(done) == before
  assert not [path for path in done.rglob("*.lock")]


def test_a_directory_of_other_things_is_refused(settings, tmp_path):
  (tmp_path / "thesis.tex").write_text("precious")
  with pytest.raises(ConfigError, match="is not empty and holds no study"):
    run_study(settings, tmp_path)
  assert contents(tmp_path) == {"thesis.tex": b"precious"}


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"longest": 4096}, "no document has 4097 tokens"),
    ({"task": "needle"}, "task is 'needle'"),
    ({"model": tiny_model(positions=None)}, "method 'rope' is impossible for a checkpoint with positions None"),
  ],
)
def test_what_cannot_be_measured_is_refused_before_a_run(settings, tmp_path, monkeypatch, changes, message):
  monkeypatch.setattr(study_module, "train", lambda *_: pytest.fail("it trains"))
  workdir = tmp_path / "study"
  with pytest.raises(ConfigError, match=message):
    run_study(dataclasses.replace(settings, **changes), workdir)
  assert not (workdir / "config.json").exists() and not (workdir / "runs").exists()


def test_settings_that_were_refused_can_be_corrected(settings, tmp_path):
  workdir = tmp_path / "study"
  with pytest.raises(ConfigError, match="task is 'needle'"):
    run_study(dataclasses.replace(settings, task="needle"), workdir)
  (workdir / "data" / "corpus").write_text("of the settings that were wrong")
  run_study(settings, workdir)
  assert not (workdir / "data" / "corpus").exists()
  assert not (workdir / "config.begun.json").exists()


@pytest.mark.parametrize("length", [0, 40])
def test_a_config_json_that_was_cut_off_is_written_again(settings, done, length):
  path = done / "config.json"
  whole = path.read_text()
  path.write_text(whole[:length])
  run_study(settings, done)
  assert path.read_text() == whole


def test_the_record_of_a_study_is_there_from_the_start_and_seconds_add_up(settings, tmp_path, monkeypatch):
  evaluate, seen = study_module.evaluate, []

  def interrupted(*arguments, **more):
    evaluate(*arguments, **more)
    raise InterruptedError("the machine is gone")

  def watched(config: TrainConfig, workdir: Path):
    seen.append(json.loads((tmp_path / "study.json").read_text())["seconds"])
    return train(config, workdir)

  train = study_module.train
  monkeypatch.setattr(study_module, "train", watched)
  monkeypatch.setattr(study_module, "evaluate", interrupted)
  with pytest.raises(InterruptedError):
    run_study(settings, tmp_path)
  first = read_study(tmp_path)
  assert seen == [0.0] and first.seconds > 0
  assert "RoPE + YaRN" in write_report(tmp_path).read_text()
  # As if the last measurement had not been made: the second start has something to do.
  results = tmp_path / "results.jsonl"
  lines = [line for line in results.read_text().splitlines() if json.loads(line)["method"] != "yarn"]
  results.write_text("\n".join(lines) + "\n")
  monkeypatch.setattr(study_module, "evaluate", evaluate)
  run_study(settings, tmp_path)
  assert seen[1] == first.seconds < read_study(tmp_path).seconds


def test_figures_that_a_start_could_not_draw_again_are_drawn_by_the_next(settings, done, tmp_path, monkeypatch):
  """That start measured something again and was cut off while it drew; the old pictures are still there."""
  workdir, without, drawn = shutil.copytree(done, tmp_path / "study"), Tiny.study, []

  def draw(folder: Path, formats):
    drawn.append(formats)
    if len(drawn) == 2:
      raise InterruptedError("the machine is gone")
    (folder / "mine.png").touch()

  def study(self, place: Path):
    return dataclasses.replace(without(self, place), figures=Figures({"mine": "Mine."}, draw))

  monkeypatch.setattr(Tiny, "study", study)
  run_study(settings, workdir)
  results = workdir / "results.jsonl"
  lines = [line for line in results.read_text().splitlines() if json.loads(line)["method"] != "yarn"]
  results.write_text("".join(f"{line}\n" for line in lines))
  monkeypatch.setattr("drope_jax.cli.command_line", lambda: "a command that makes the new records longer than the old")
  with pytest.raises(InterruptedError):
    run_study(settings, workdir)
  run_study(settings, workdir)
  assert len(drawn) == 3
  run_study(settings, workdir)  # nothing is left to do
  assert len(drawn) == 3
