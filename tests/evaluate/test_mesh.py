"""Evaluation on one device or eight: the same figures, and each device with its part of the work."""

import pytest
from support.eight_devices import on_eight_devices
from support.tiny_run import tiny_corpus, tiny_model, tiny_run

from drope_jax.config import MeshConfig
from drope_jax.data.corpus import build_corpus
from drope_jax.errors import ConfigError
from drope_jax.evaluate import results
from drope_jax.positions import RoPE
from drope_jax.sharding import parse_mesh
from drope_jax.train import train

MESHES = {"one": None, "data": {"data": 8}, "both": {"data": 2, "tensor": 2, "context": 2}}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
  """Figures by mesh, and what the script says of them."""
  workdir = tmp_path_factory.mktemp("mesh")
  run = tiny_run(tiny_corpus(workdir / "corpus"), model=tiny_model(positions=RoPE()), steps=5)
  train(run, workdir / "run")
  held_out = build_corpus(
    workdir / "held_out", {"heldout": [f"Tide {i} was high. Ships left at dawn. " * 9 for i in range(9)]}
  )
  directories = (held_out, workdir / "run", workdir / "out")
  answer = on_eight_devices("evaluate_mesh_script.py", *directories, jobs=MESHES)
  figures = {name: results.read(workdir / "out" / name / "results.jsonl") for name in MESHES}
  return figures, answer["shards"]


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [name for name in MESHES if name != "one"])
def test_figures_are_those_of_one_device(evaluated, mesh):
  figures, _ = evaluated
  one, others = figures["one"], figures[mesh]
  assert {r.task for r in one} == {"perplexity", "needles"} and len({r.method for r in one}) == 2
  assert [(r.measurement, r.metric, r.by, r.at, r.n) for r in others] == [
    (r.measurement, r.metric, r.by, r.at, r.n) for r in one
  ]
  for theirs, ours in zip(others, one, strict=True):
    assert theirs.value == pytest.approx(ours.value, rel=1e-5, abs=1e-6), ours


@pytest.mark.slow
def test_each_device_has_its_part(evaluated):
  _, shards = evaluated
  assert shards["one"]["rows"] == 8 and shards["data"]["rows"] == 1 and shards["both"]["rows"] == 4
  long = shards["one"]["long"]
  assert shards["data"]["long"] == long and shards["both"]["long"] == long // 2
  queries = shards["one"]["queries"]
  assert shards["data"]["queries"] == queries
  assert shards["both"]["queries"] == queries // 4  # at one time: the chunks of a device's half come one by one


def test_a_mesh_is_read_from_text():
  assert parse_mesh(["data=4", "context=2"]) == MeshConfig(data=4, context=2)
  assert parse_mesh(["context", "fsdp=2"]) == MeshConfig(data=1, fsdp=2, context=-1)
  assert parse_mesh(["data=1", "fsdp=-1"]) == MeshConfig(data=1, fsdp=-1)
  assert parse_mesh(["context=8"]) == MeshConfig(data=-1, context=8)
  for bad in (["data"], ["rows=2"], ["data=2", "data=4"], ["data=-2"], ["data=two"]):
    with pytest.raises(ConfigError, match="--mesh has '" + bad[-1]):
      parse_mesh(bad)
  with pytest.raises(ConfigError, match=r"MeshConfig\.data is 0"):
    parse_mesh(["data=0"])
