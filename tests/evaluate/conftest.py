"""Fixtures of evaluation."""

import pytest
from support.ruler import ESSAY

from drope_jax.data.tokenizers import train_bpe
from drope_jax.evaluate.ruler_prompts import Material


@pytest.fixture(scope="module")
def material(tmp_path_factory):
  """What RULER's prompts are made of."""
  return Material(train_bpe([ESSAY[:60_000]], 1024, tmp_path_factory.mktemp("tokenizer")), ESSAY)
