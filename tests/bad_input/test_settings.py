"""Bad settings of runs and studies, and values of classes that no other program would find again."""

import dataclasses

import pytest
from support.bad_input import check_input, check_refused
from support.configs import run

from drope_jax.config import InitConfig
from drope_jax.errors import ConfigError
from drope_jax.serialization import save_config
from drope_jax.transitions import Transition

TRAIN = "experiments.train --config={place}/tiny.py --workdir={out}"
FROM = "experiments.train --config={place}/tiny.py:{place}/finished --workdir={out}"
QUICKSTART = "experiments.quickstart --workdir={out}"
AOT = "drope_jax.aot --config={place}/tiny.py --topology=v5e:2x2"
HUGE = 2**40

INPUTS = [
  (TRAIN, "--config={place}/nowhere.py", "nowhere.py"),
  (TRAIN, "--config=experiments/studies/quickstart.py", "--config"),
  (TRAIN, "--config.steps=0", "TrainConfig.steps"),
  (TRAIN, "--config.steps=1e3", "TrainConfig.steps"),
  (TRAIN, "--config.stps=1", "TrainConfig.stps"),
  (TRAIN, "--config.seed=-1", "TrainConfig.seed"),
  (TRAIN, f"--config.seed={HUGE}", "TrainConfig.seed"),
  (TRAIN, "--config.optim.peak_lr=nan", "OptimConfig.peak_lr"),
  (TRAIN, "--config.optim.clip_norm=0", "OptimConfig.clip_norm"),
  (TRAIN, "--config.optim.accumulation=3", "OptimConfig.accumulation"),
  (TRAIN, "--config.data.context=0", "DataConfig.context"),
  (TRAIN, "--config.data.tokenizer={place}/corpus", "corpus"),
  (TRAIN, "--config.data.directory={place}/nowhere", "nowhere"),
  (TRAIN, "--config.data.directory=ftp://host/data", "ftp://host/data"),
  (TRAIN, "--config.data.split=nothing", "nothing"),
  (TRAIN, "--config.data.min_tokens=100000", "DataConfig.context"),
  (TRAIN, "--config.model.vocab_size=10", "ModelConfig.vocab_size"),
  (TRAIN, "--config.model.num_heads=3", "ModelConfig.num_heads"),
  (TRAIN, "--config.model.positions=RoPE(theta=nan)", "RoPE.theta"),
  (TRAIN, "--config.keep_every=7", "TrainConfig.keep_every"),
  (TRAIN, "--config.eval_extensions=()", "TrainConfig.eval_extensions"),
  (TRAIN, "--config.trackers=wandb", "wandb"),
  (TRAIN, f"--config.model.d_model={HUGE}", "ModelConfig"),
  (TRAIN, f"--config.model.num_layers={HUGE}", "ModelConfig"),
  (TRAIN, f"--config.data.batch_size={HUGE}", "half of batch_size"),
  (TRAIN, f"--config.data.context={HUGE}", "DataConfig.batch_size"),
  (TRAIN, "--config.init.step=5", "TrainConfig.init.checkpoint"),
  (TRAIN, "--data=", "--data"),
  (TRAIN, "--data=~/nowhere", "/nowhere"),
  (TRAIN, "--workdir={place}/tiny.py", "tiny.py"),
  (TRAIN, "--workdir={place}/corpus", "corpus"),
  (TRAIN, "--workdir={place}/finished", "belongs to another run"),
  (TRAIN, "--stopped_status=-1", "--stopped_status"),
  (FROM, "--config.init.step=7", "step 7"),
  (FROM, "--config.init.checkpoint={place}/corpus", "corpus"),
  (FROM, "--config.init.checkpoint=", "InitConfig.checkpoint"),
  (FROM, "--config.init.transition=Fade(nan)", "Fade.share"),
  (FROM, "--config.init.transition=own:Bare", "--import=PATH.py"),
  (FROM, "--import={place}/own.py --config.init.transition=own:Bare", "not a dataclass"),
  (FROM, "--import={place}/own.py --config.init.transition=Bare", "not a dataclass"),
  (QUICKSTART, "--steps=0", "--steps"),
  (QUICKSTART, "--seed=-1", "--seed"),
  (QUICKSTART, "--workdir=gs://bucket/run", "--workdir"),
  (QUICKSTART, "--workdir={place}/corpus", "--workdir"),
  (QUICKSTART, "--config={place}/tiny.py", "--config"),
  (QUICKSTART, "--config.documents=0", "Quickstart.documents"),
  (QUICKSTART, "--config.needles_per_depth=0", "Quickstart.needles_per_depth"),
  (QUICKSTART, "--config.extensions=()", "Quickstart.extensions"),
  ("experiments.study --workdir={out}", "--config={place}/tiny.py", "--config"),
  (AOT, "--topology=v5e", "--topology"),
  (AOT, "--json={place}/nowhere/x", "--json"),
]


@pytest.mark.parametrize(("base", "added", "named"), INPUTS, ids=lambda text: text.split(" ")[0])
def test_it_is_named_in_one_line_and_nothing_is_written(command, place, tmp_path, base, added, named):
  check_input(command, place, tmp_path / "out", f"{base} {added}", named)


@pytest.mark.parametrize(
  "line",
  [
    "experiments.train --config={place}/tiny.py --data={texts} --workdir={out}",
    "experiments.quickstart --data={texts} --workdir={out}",
    "experiments.study --config=experiments/studies/smollm2_lengths.py --data={texts} --workdir={out}",
    "experiments.evaluate --checkpoint={place}/finished --dataset={texts} --out={out}",
    "drope_jax.data.tokenize --data={texts} --out={out}",
    "drope_jax.data.report --data={texts} --out={out}",
  ],
)
def test_a_folder_within_the_data_is_refused_before_anything_is_written_there(command, place, tmp_path, line):
  (tmp_path / "a.txt").write_text("a text " * 100)
  out = tmp_path / "below" / "run"
  check_refused(command(*line.format(place=place, texts=tmp_path, out=out).split()), "all of which is read as data")
  assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_class_within_a_function_is_refused_when_it_would_be_written(tmp_path):
  @dataclasses.dataclass(unsafe_hash=True)
  class Inner(Transition):
    pass

  config = run(init=InitConfig(checkpoint="x", transition=Inner()))
  with pytest.raises(ConfigError, match=r"init.transition is of class .*Inner, which no other program can import"):
    save_config(config, tmp_path / "config.json")
  assert not (tmp_path / "config.json").exists()
