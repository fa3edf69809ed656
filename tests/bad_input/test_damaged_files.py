"""Damaged files: each is one line that names the file or its folder, and nothing is written."""

import json
import shutil

import pytest
from support.bad_input import check_refused, digest
from support.damages import (
  cut,
  deleted,
  emptied,
  field,
  folder,
  index_naming,
  noise,
  record,
  text,
)

from drope_jax.data.sources.prepared import TFDS
from drope_jax.errors import DataError

STEP = "finished/checkpoints/2"
META = f"{STEP}/meta/metadata"
CONFIG, METRICS = "finished/config.json", "finished/metrics.jsonl"
STUDY, RESULTS = "study/study.json", "study/results.jsonl"
SHARD = "corpus/text_corpus-train.array_record-00000-of-00001"
INFO, FEATURES = "corpus/dataset_info.json", "corpus/features.json"
INDEX = "hf/model.safetensors.index.json"
DEEP = '{"a":' + "[" * 5000

GENERATE = "experiments.generate --prompt=x --max_new_tokens=4 --checkpoint={here}/"
IMPORT = "drope_jax.interop import {here}/"
READERS = {  # what reads the folder that a file is in
  "finished": GENERATE + "finished",
  "imported": GENERATE + "imported",
  "corpus": "drope_jax.data.report --data={here}/corpus",
  "study": "experiments.report {here}/study",
  "hf": IMPORT + "hf {out}",
  "gguf": IMPORT + "gguf/model.gguf {out} --tokenizer={here}/gguf",
}
REPORT = "experiments.report {here}/finished"

DAMAGES = [
  *((META, damage) for damage in (cut, emptied, deleted, folder, noise)),
  *((META, text(content)) for content in ("[]", "3", "null", "{}", DEEP)),
  (META, field("config", ...)),
  (META, field("config", [])),
  (META, field("config.model", None)),
  (META, field("config.model.num_layers", ...)),
  (META, field("config.model.num_layers", "2")),
  (META, field("config.model.num_layers", 10**12)),
  (META, field("config.model.positions", {"type": "nowhere:Spiral"})),
  (META, field("tokens", "many")),
  (META, field("versions", ...)),
  ("imported/checkpoints/0/meta/metadata", field("context", 0)),
  ("imported/checkpoints/0/meta/metadata", field("context", "x")),
  ("imported/checkpoints/0/meta/metadata", field("model", ...)),
  *((f"{STEP}/params/manifest.ocdbt", damage) for damage in (cut, emptied, deleted, folder, noise)),
  *((f"{STEP}/params/_METADATA", damage) for damage in (cut, emptied, folder, noise)),
  *((f"{STEP}/{item}", damage) for item in ("params", "meta") for damage in (deleted, noise)),
  *(("finished/checkpoints", damage) for damage in (deleted, folder, noise)),
  *(("imported/tokenizer.json", damage) for damage in (cut, emptied, deleted, folder, noise)),
  ("imported/tokenizer.json", field("model.vocab", 3)),
  ("imported/tokenizer.json", field("model.vocab", {})),
  ("imported/tokenizer_config.json", cut),
  ("imported/tokenizer_config.json", text("[]")),
  ("imported/tokenizer_config.json", field("eos_token", "nothing")),
  ("finished/tokenizer_config.json", text("{}")),
  *((CONFIG, damage, REPORT) for damage in (cut, emptied, folder, noise)),
  *((CONFIG, text(content), REPORT) for content in ("[]", "3", "{}")),
  (CONFIG, field("steps", "x"), REPORT),
  (CONFIG, field("versions", []), REPORT),
  *((METRICS, damage, REPORT) for damage in (emptied, deleted, folder, noise)),
  *((METRICS, text(content), REPORT) for content in ("[]\n", "3\n", '{"step": 1}\n')),
  (METRICS, record(0, {"loss": None}), REPORT),
  (METRICS, record(0, {"tokens": "x"}), REPORT),
  (METRICS, record(0, {"step": -1}), REPORT),
  *((STUDY, damage) for damage in (cut, emptied, folder, noise)),
  *((STUDY, text(content)) for content in ("[]", "3", "null", "{}")),
  (STUDY, field("arms", [3])),
  (STUDY, field("arms.0.runs", 3)),
  (STUDY, field("rows.0.label", 3)),
  (STUDY, field("train_context", 0)),
  (STUDY, field("versions", [1])),
  (STUDY, field("seconds", "x")),
  (STUDY, field("pretrained", {"rope": 3})),
  *((RESULTS, damage) for damage in (emptied, deleted, folder, noise)),
  (RESULTS, record(0, [])),
  (RESULTS, record(0, {"value": "x"})),
  (RESULTS, record(0, {"n": 0})),
  (RESULTS, record(0, {"extension": 0})),
  (RESULTS, record(0, {"at": [1]})),
  (RESULTS, record(0, {"settings": 3})),
  *((SHARD, damage) for damage in (cut, emptied, deleted, folder, noise)),
  *((INFO, damage) for damage in (cut, emptied, noise)),
  (INFO, text("3")),
  (INFO, field("splits.0.shardLengths", ["x"])),
  (INFO, field("splits.0.shardLengths", ["1000000"])),
  *((FEATURES, damage) for damage in (cut, deleted, noise)),
  (FEATURES, text("3")),
  *(("hf/config.json", damage) for damage in (cut, deleted, noise)),
  *(("hf/model.safetensors", damage) for damage in (cut, emptied, deleted, folder, noise)),
  (INDEX, index_naming("../outside.safetensors")),
  (INDEX, index_naming("{outside}")),
  *(("gguf/model.gguf", damage) for damage in (cut, emptied, noise)),
]


def _case(file, damage, reader=""):
  """Files that are cut off or hold other fields are tried by default, the coarser damages with the slow tests."""
  marks = [pytest.mark.slow] if damage in (emptied, folder, noise) else []
  return pytest.param(file, damage, reader, marks=marks, id=f"{file}-{damage.__name__[:40]}")


@pytest.mark.parametrize(("file", "damage", "reader"), [_case(*case) for case in DAMAGES])
def test_it_is_named_in_one_line_and_nothing_is_written(command, place, tmp_path, file, damage, reader):
  top = file.split("/")[0]
  shutil.copytree(place / top, tmp_path / top)
  damage(tmp_path / file)
  before = digest(tmp_path)
  line = (reader or READERS[top]).format(here=tmp_path, out=tmp_path / "out")
  check_refused(command(*line.split()), str(tmp_path / top))
  assert digest(tmp_path) == before


RUNS_CODE = """
import pathlib
pathlib.Path(__file__).with_name("ran").touch()
"""


@pytest.mark.parametrize(
  "features",
  [
    {"pythonClassName": "harmful.Feature", "featuresDict": {"features": {}}},
    {"python_class_name": "harmful.Feature", "featuresDict": {"features": {}}},
    {"type": "harmful.Feature", "content": {}},
    {
      "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
      "featuresDict": {"features": {"text": {"pythonClassName": "harmful.Feature", "text": {}}}},
    },
  ],
  ids=["proto", "snake", "legacy", "inner"],
)
def test_no_class_of_others_is_imported_for_a_dataset(place, tmp_path, monkeypatch, features):
  shutil.copytree(place / "corpus", tmp_path / "corpus")
  (tmp_path / "corpus" / "features.json").write_text(json.dumps(features))
  (tmp_path / "harmful.py").write_text(RUNS_CODE)
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(DataError, match=r"features.json: names the class harmful.Feature"):
    TFDS(str(tmp_path / "corpus")).open()
  assert not (tmp_path / "ran").exists()


def test_a_record_that_is_not_as_it_was_written_is_named(place, tmp_path):
  shutil.copytree(place / "corpus", tmp_path / "corpus")
  shard = tmp_path / SHARD
  data = bytearray(shard.read_bytes())
  data[2000:2040] = bytes(40)
  shard.write_bytes(data)
  records = TFDS(str(tmp_path / "corpus")).open()
  with pytest.raises(DataError, match=r"train\.array_record.*record \d+.*is damaged; copy the file again"):
    [records[i] for i in range(len(records))]
