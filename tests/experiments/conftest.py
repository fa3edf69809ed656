"""Fixtures of the tests that run commands."""

import random

import pytest
from support.commands import make_files
from support.tiny_run import WORDS, tiny_corpus

from drope_jax.data.corpus import build_corpus
from drope_jax.data.splits import documents


@pytest.fixture(scope="session")
def files(tmp_path_factory):
  """See make_files; no test may change them."""
  return make_files(tmp_path_factory.mktemp("commands"))


@pytest.fixture(scope="session")
def study_corpus(tmp_path_factory):
  """The directory of `tiny_corpus` with a document held out that is long enough to measure on."""
  directory = tmp_path_factory.mktemp("study_corpus")
  training = list(documents(tiny_corpus(directory / "training"), "train"))
  long = " ".join(random.Random(0).choices(WORDS, k=40))
  return str(build_corpus(directory / "corpus", {"train": training, "heldout": [long]}))
