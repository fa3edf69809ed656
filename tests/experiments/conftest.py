"""Fixtures of the tests that run commands."""

import pytest
from support.commands import make_files


@pytest.fixture(scope="session")
def files(tmp_path_factory):
  """See make_files; no test may change them."""
  return make_files(tmp_path_factory.mktemp("commands"))
