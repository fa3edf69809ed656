"""Fixtures of the tests of bad input."""

import pytest
from support.bad_input import make_place


@pytest.fixture(scope="session")
def place(tmp_path_factory):
  """See make_place; no test may change it."""
  return make_place(tmp_path_factory.mktemp("place"))
