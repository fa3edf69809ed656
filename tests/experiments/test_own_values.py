"""An embedding that a user defines in a file, from training to evaluation, by the commands."""

import json

import pytest
from support.bad_input import check_refused

SPIRAL = """
import dataclasses
import numpy as np
from drope_jax.positions import Embedding, Frequencies


@dataclasses.dataclass(unsafe_hash=True)
class Spiral(Embedding):
  rate: float = 0.5

  def frequencies(self, head_dim, length=None):
    return Frequencies(self.rate ** np.arange(head_dim // 2), 1.0)
"""


def test_an_embedding_of_a_file_is_trained_and_measured(command, files, tmp_path):
  (tmp_path / "spirals.py").write_text(SPIRAL)
  run, ours = tmp_path / "run", f"--import={tmp_path / 'spirals.py'}"
  train = (
    f"--config={files / 'tiny.py'}",
    f"--workdir={run}",
    "--config.steps=2",
    "--config.model.positions=Spiral(0.25)",
  )
  refused = command("experiments.train", *train)
  assert refused.status == 2 and "'Spiral'" in refused.error() and not run.exists()
  (tmp_path / "stray.py").write_text("class Spiral: pass")
  refused = command("experiments.train", *train, f"--import={tmp_path / 'stray.py'}")
  assert "'stray:Spiral', which does not derive from Embedding" in refused.error()
  ended = command("experiments.train", *train, ours)
  assert ended.status == 0, ended.stderr
  recorded = json.loads((run / "config.json").read_text())["model"]["positions"]
  assert recorded == {"type": "spirals:Spiral", "rate": 0.25}

  measure = (f"--checkpoint={run}", f"--out={tmp_path / 'out'}", "--lengths=1x", "--tasks=perplexity", "--documents=2")
  refused = command("experiments.evaluate", *measure)
  assert "spirals:Spiral" in refused.error() and "--import=spirals" in refused.error()
  assert refused.status != 0 and not (tmp_path / "out").exists()
  ended = command("experiments.evaluate", *measure, ours)
  assert ended.status == 0, ended.stderr
  assert '"loss"' in (tmp_path / "out" / "results.jsonl").read_text()


OBJECTIVE = """
import dataclasses
from drope_jax.objective import Objective


@dataclasses.dataclass(unsafe_hash=True)
class Hasty(Objective):
  def __call__(self, inputs):
    return inputs.student().state
"""


def test_a_mistake_in_an_objective_of_a_file_is_one_line(command, files, tmp_path):
  (tmp_path / "hasty.py").write_text(OBJECTIVE)
  ours = (f"--import={tmp_path / 'hasty.py'}", "--config.objective=Hasty()")
  ended = command("experiments.train", f"--config={files / 'tiny.py'}", f"--workdir={tmp_path / 'run'}", *ours)
  check_refused(ended, f"{tmp_path}/hasty.py, line 9, in __call__: AttributeError: 'Hidden' object has no attribute")


@pytest.mark.slow
def test_an_embedding_of_the_config_file_itself_is_found_by_its_name(command, files, tmp_path):
  run, config = tmp_path / "run", tmp_path / "swirl.py"
  config.write_text(
    SPIRAL + (files / "tiny.py").read_text().replace("vocab_size=264", "vocab_size=264, positions=Spiral()")
  )
  arguments = (f"--config={config}", f"--workdir={run}", "--config.steps=1", "--config.optim.warmup_steps=0")
  ended = command("experiments.train", *arguments, "--config.model.positions.rate=0.75")
  assert ended.status == 0, ended.stderr
  recorded = json.loads((run / "config.json").read_text())["model"]["positions"]
  assert recorded == {"type": "swirl:Spiral", "rate": 0.75}
  generate = (f"--checkpoint={run}", "--prompt=the", "--max_new_tokens=2")
  assert "--import=swirl" in command("experiments.generate", *generate).error()
  ended = command("experiments.generate", *generate, f"--import={config}")
  assert ended.status == 0, ended.stderr
