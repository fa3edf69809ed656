"""What is wrong with a call of the harness is said before its libraries are imported."""

import os

import pytest

from drope_jax.errors import UserError
from drope_jax.evaluate import harness_call

CALL = ["run", "--model", "drope_jax", "--tasks", "arc_easy", "--model_args"]


@pytest.fixture
def run(tmp_path):
  """What looks like a run's workdir."""
  (tmp_path / "checkpoints").mkdir()
  return tmp_path


@pytest.mark.parametrize(
  ("arguments", "named"),
  [
    ("", "checkpoint=DIR"),
    ("checkpoint={run}/nowhere", "nowhere"),
    ("checkpoint={run},unknown=3", "'unknown'"),
    ("checkpoint={run},length=x", "length=x"),
    ("checkpoint={run},method=YaRN", "yarn"),
    ("checkpoint={run},c=much", "c=much"),
    ("checkpoint={run},bos=maybe", "bos=maybe"),
  ],
)
def test_a_wrong_argument_is_named(run, arguments, named):
  with pytest.raises(UserError, match=named):
    harness_call.check_call([*CALL, arguments.format(run=run)])


def test_right_arguments_and_other_models_pass(run):
  good = f"checkpoint={run},method=drope,c=0.1,length=4096,step=3,bos=True,batch_tokens=64"
  harness_call.check_call([*CALL, good])
  harness_call.check_call([*CALL, *good.split(",")])
  harness_call.check_call([*CALL[:-1], f"--model_args={good}"])
  harness_call.check_call(["run", "--model", "hf", "--model_args", "pretrained=x"])
  harness_call.check_call(["ls", "tasks"])


def test_the_arguments_are_those_of_the_model():
  pytest.importorskip("lm_eval")
  import inspect

  from drope_jax.evaluate.harness import DropeJax

  refused = {"self", "batch_size", "max_batch_size", "device"}
  assert set(harness_call.ARGUMENTS) == set(inspect.signature(DropeJax.__init__).parameters) - refused


def test_without_a_network_libraries_are_told_so(monkeypatch):
  requests, constants = (pytest.importorskip(name) for name in ("requests", "huggingface_hub.constants"))

  def unreachable(*arguments, **keywords):
    raise requests.ConnectionError

  monkeypatch.setattr(requests, "head", unreachable)
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
  monkeypatch.setattr("socket.setdefaulttimeout", lambda seconds: None)
  for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
    monkeypatch.setenv(name, "0")
  harness_call.prepare_network()
  assert constants.HF_HUB_OFFLINE and os.environ["HF_DATASETS_OFFLINE"] == "1"
