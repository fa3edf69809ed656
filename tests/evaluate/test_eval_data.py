"""What tasks read of a folder, and what is said of it."""

import logging

import pytest

from drope_jax.data.tokenizers import ByteTokenizer
from drope_jax.errors import ConfigError
from drope_jax.evaluate.eval_data import EvalData

TEXTS = [f"The tide of day {i} turns at noon, and again at dusk." for i in range(400)]


@pytest.fixture
def folder(tmp_path):
  (tmp_path / "texts").mkdir()
  for i, text in enumerate(TEXTS):
    (tmp_path / "texts" / f"{i}.txt").write_text(text)
  return str(tmp_path / "texts")


def test_the_cut_of_a_folder_without_splits_is_said(folder, caplog):
  caplog.set_level(logging.INFO)
  few = EvalData(tokenizer=ByteTokenizer(), longest=16, dataset=folder, num_documents=400)
  count = len(few.documents)
  assert 0 < count < 20
  assert f"{folder}: {count} documents are read, of the 1 % of 400 documents" in caplog.text
  way_out = f"{folder},heldout={folder}"
  assert f"--data={way_out}" in caplog.text
  caplog.clear()
  assert few.lines and f"the sentences of {count} documents are read" in caplog.text
  caplog.clear()
  assert len(EvalData(tokenizer=ByteTokenizer(), longest=16, dataset=way_out, num_documents=400).documents) == 400
  assert not caplog.text


@pytest.mark.parametrize("concatenate", [False, True])
def test_a_split_whose_documents_stand_in_another_is_explained(folder, concatenate):
  path = f"{folder},heldout={folder},fit={folder}"
  data = EvalData(tokenizer=ByteTokenizer(), longest=16, dataset=path, concatenate=concatenate)
  with pytest.raises(ConfigError, match=r"split 'fit': .*400 of 400 documents named for 'fit' were left out") as error:
    _ = data.fit_documents
  assert str(error.value).startswith(path)
