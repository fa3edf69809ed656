"""What `--data=PATH` means to the commands that are not experiments.train: studies, evaluations, haystacks."""

import dataclasses
import json

import pytest
from support.stored_documents import STORES, store

from drope_jax.data.splits import documents
from drope_jax.errors import ConfigError
from drope_jax.evaluate.haystack import read_essays
from experiments.plan import reading
from experiments.studies import partial_drop, quickstart, smollm2_lengths, smollm2_recalibration

TEXTS = [
  f"Document {i} is about this and that. " + "It goes on, and on. " * (5 + i % 40) + "Then it ends." for i in range(400)
]
FOLDERS = {"tfds": "/corpus", "tfrecord": "/corpus"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("kind", [kind for kind in STORES if kind not in ("user", "mixture", "tokens")])
def test_a_haystack_is_any_source(kind, tmp_path):
  store(kind, tmp_path / "data", TEXTS[:80])
  path = f"{tmp_path}/data{FOLDERS.get(kind, '')}"
  if kind in FOLDERS:
    with pytest.raises(ConfigError, match="the split 'heldout' is missing or empty; splits: train"):
      read_essays(path)
    path += ":train"
  expected = TEXTS[:80] if kind in ("text", *FOLDERS) else list(documents(path, "train"))
  assert read_essays(path) == "\n\n".join(expected) and len(expected) > 70


def test_a_haystack_of_tokens_is_one_line(tmp_path):
  store("tokens", tmp_path, TEXTS[:20])
  with pytest.raises(ConfigError, match=r"holds tokens, and text is needed.*--data=PATH"):
    read_essays(str(tmp_path / "shards"))


@pytest.mark.parametrize("kind", ["jsonl.gz", "parquet"])
def test_the_quickstart_makes_its_corpus_of_any_source(kind, tmp_path):
  store(kind, tmp_path / "data", TEXTS)
  settings = reading(quickstart.get_config(), str(tmp_path / "data"))
  settings.study(tmp_path / "work").prepare()
  held_out = [*documents(tmp_path / "work/data/corpus", "heldout"), *documents(tmp_path / "work/data/corpus", "fit")]
  assert held_out and set(held_out) <= set(TEXTS)
  whole = "".join(documents(tmp_path / "work/data/corpus", "train"))
  assert all(text in whole for text in documents(str(tmp_path / "data"), "train") if text not in held_out)


def test_every_study_reads_what_the_flag_names(tmp_path):
  store("text", tmp_path / "data", TEXTS[:3])
  path = str(tmp_path / "data")
  for study in (smollm2_lengths, smollm2_recalibration):
    assert reading(study.get_config(), path).dataset == path
  assert dataclasses.asdict(reading(partial_drop.get_config("small"), path)) == {
    **dataclasses.asdict(partial_drop.get_config("small")),
    "text": path,
    "data": "",  # a corpus of its own, in the workdir
  }


def test_a_study_without_data_or_a_path_without_documents_is_one_line(tmp_path):
  @dataclasses.dataclass
  class Fixed:
    seed: int = 0

  with pytest.raises(ConfigError, match="nowhere: no dataset here"):
    reading(quickstart.get_config(), str(tmp_path / "nowhere"))
  store("text", tmp_path / "data", TEXTS[:3])
  with pytest.raises(ConfigError, match="Fixed has no field `data`"):
    reading(Fixed(), str(tmp_path / "data"))


STUDY = """
import dataclasses
from drope_jax.config import DataConfig, ModelConfig, OptimConfig, TrainConfig
from drope_jax.data.tokenizers import load_tokenizer
from drope_jax.evaluate.eval_data import EvalData
from drope_jax.positions import RoPE
from experiments.plan import Arm, Row, Study


@dataclasses.dataclass(unsafe_hash=True, kw_only=True)
class Mine:
  data: str = ""

  def study(self, workdir):
    run = TrainConfig(
      model=ModelConfig(vocab_size=257, d_model=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, d_ff=16,
                        positions=RoPE(theta=1e4)),
      data=DataConfig(directory=self.data, context=16, batch_size=4), optim=OptimConfig(peak_lr=1e-3), steps=2,
      trackers=(),
    )
    return Study(
      title="Mine", seed=0, train_context=16, prepare=lambda: None, runs={"rope": run}, arms=(Arm("A", ("rope",)),),
      rows=(Row("rope", "rope", "A"),), lengths=(16, 32), tasks=("perplexity",),
      eval_data=lambda: EvalData(tokenizer=load_tokenizer("byte"), longest=32, dataset=self.data, num_documents=2),
    )


def get_config():
  return Mine()
"""


@pytest.mark.slow
def test_study_and_evaluate_read_a_source_by_its_path(command, tmp_path):
  for name, texts in (("train", TEXTS), ("held", [f"{text} It was held out." for text in TEXTS[:4]])):
    store("jsonl.zst", tmp_path / name, texts)
  path = f"{tmp_path}/train,heldout={tmp_path}/held,fit={tmp_path}/held"
  (tmp_path / "mine.py").write_text(STUDY)
  arguments = f"--config={tmp_path}/mine.py", f"--workdir={tmp_path}/study", f"--data={path}"
  done = command("experiments.study", *arguments)
  assert done.status == 0, done.stderr
  run = tmp_path / "study" / "runs" / "rope"
  assert json.loads((run / "config.json").read_text())["data"]["directory"] == path
  figures = [json.loads(line) for line in (tmp_path / "study" / "results.jsonl").read_text().splitlines()]
  assert {figure["context"] for figure in figures} == {16, 32}
  measured = f"--checkpoint={run}", f"--data={path}", f"--out={tmp_path}/measured", "--methods=rope"
  for more in (
    ("--lengths=1x,2x", "--tasks=perplexity"),
    ("--lengths=3072", "--tasks=niah_single_2", f"--haystack={tmp_path}/held", "--samples=1"),
  ):
    done = command("experiments.evaluate", *measured, *more)
    assert done.status == 0, done.stderr
  figures = [json.loads(line) for line in (tmp_path / "measured" / "results.jsonl").read_text().splitlines()]
  assert {figure["task"] for figure in figures} >= {"perplexity", "niah_single_2"}
