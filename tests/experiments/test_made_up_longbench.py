"""Made-up tasks in LongBench's format: the fact asked for occurs once, and LongBench's own code scores the answer."""

from pathlib import Path

import numpy as np
import pytest

from drope_jax.data.recall import Lines
from drope_jax.data.tokenizers import load_tokenizer
from drope_jax.errors import ConfigError
from drope_jax.evaluate.tasks.longbench import DATASETS, LongBench, score
from experiments import made_up_longbench
from experiments.studies import table2_table3_longbench

LENGTHS = (200, 800)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  directory = tmp_path_factory.mktemp("made") / "up"
  lines = Lines(load_tokenizer("byte"), [f"This is sentence number {n} of a text." for n in range(50)])
  made_up_longbench.write(directory, lines, LENGTHS, 20, seed=0)
  return directory


@pytest.mark.parametrize("dataset", made_up_longbench.DATASETS)
def test_the_fact_that_is_asked_for_is_there_once_and_is_the_best_answer(folder, dataset):
  records = LongBench(dataset=dataset, folder=folder, whole=True).records
  assert len(records) == 20
  for record in records:
    (value,) = record["answers"]
    assert record["context"].count(f"{record['input']} {value}") == 1 == record["context"].count(record["input"])
    assert DATASETS[dataset].prompt.format(**record).endswith(f"\n{record['input']}")
    scores = {answer: score(dataset, f" {answer}\n color -> teal", record) for answer in record["all_classes"]}
    assert scores.pop(value) == 1 and set(scores.values()) == {0}
  sizes = np.array([len(record["context"]) for record in records]).reshape(-1, len(LENGTHS))
  assert (np.abs(sizes - LENGTHS) < 60).all()  # a filler more or less
  depths = [record["context"].index(record["input"]) / len(record["context"]) for record in records]
  assert min(depths) < 0.3 < 0.7 < max(depths)


def test_a_study_makes_them_or_reads_the_released_files():
  study = table2_table3_longbench.SIZES["mini"]().study(Path("study"))
  assert study.eval_data.longbench == Path("study/data/made_up_longbench")
  with pytest.raises(ConfigError, match=r"LongTasks.made_up is True and longbench"):
    table2_table3_longbench.LongTasks(**vars(table2_table3_longbench.SIZES["mini"]()) | {"longbench": "data/longbench"})
