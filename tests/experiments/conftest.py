"""Fixtures of the tests that run commands."""

import pytest
from support.commands import make_files


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  """See make_files."""
  return make_files(tmp_path_factory.mktemp("commands"))
