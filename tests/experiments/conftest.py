"""Fixtures of the tests that run commands."""

import pytest
from support.commands import make_files, serving


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  return make_files(tmp_path_factory.mktemp("commands"))


@pytest.fixture(scope="module")
def command(tmp_path_factory):
  with serving(tmp_path_factory.getbasetemp()) as run:
    yield run
