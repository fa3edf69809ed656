"""The spread over seeds is that of the records, and needs seeds that differ."""

import json

from drope_jax.evaluate import results
from drope_jax.evaluate.results import Result
from experiments.seeds import main


def study(directory, seed: int, loss: float, accuracy: float | None):
  directory.mkdir()
  record = {
    "title": "A study",
    "command": "none",
    "seed": seed,
    "train_context": 128,
    "machine": "",
    "versions": {},
    "seconds": 1.0,
    "arms": [{"label": "RoPE", "runs": ["rope"]}],
    "rows": [{"run": "rope", "method": "rope", "label": "RoPE"}],
  }
  (directory / "study.json").write_text(json.dumps(record))
  common = {"run": "rope", "method": "rope", "context": 256, "extension": 2.0, "n": 100, "seed": seed}
  figures = [Result(task="perplexity", metric="loss", value=loss, **common)]
  if accuracy is not None:
    figures.append(Result(task="needles", metric="accuracy", value=accuracy, **common))
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


def test_bad_input_is_one_line(tmp_path, capsys):
  first, same = (study(tmp_path / name, 0, 3.0, 0.5) for name in ("first", "same"))
  other = study(tmp_path / "other", 1, 3.0, None)
  for directories, said in (
    ([first, same], "seeds are [0, 0]; a spread needs at least two, all different"),
    ([first], "seeds are [0]; a spread needs at least two, all different"),
    ([first, other], f"{other}: no accuracy of RoPE in needles at 256 tokens"),
    ([first, str(tmp_path / "none")], "none"),
  ):
    assert main(directories) == 1
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
