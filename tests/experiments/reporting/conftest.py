import pytest
from support.study_records import write_study


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
  """A study that was trained and never evaluated."""
  workdir = tmp_path_factory.mktemp("trained")
  write_study(workdir)
  return workdir


@pytest.fixture
def workdir(trained, tmp_path):
  """The same study, without results: a test adds its own."""
  (tmp_path / "study.json").write_text((trained / "study.json").read_text())
  (tmp_path / "runs").symlink_to(trained / "runs")
  return tmp_path
