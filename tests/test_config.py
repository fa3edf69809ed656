"""Configs: what they refuse."""

import pytest
from support.configs import SHAPE, model, run

from drope_jax.config import (
  ComputeConfig,
  DataConfig,
  MeshConfig,
  ModelConfig,
  OptimConfig,
  QKNorm,
)
from drope_jax.data.sources import Text
from drope_jax.errors import ConfigError
from drope_jax.positions import ALiBi, Layer, LayerPattern, RoPE, rnope_swa
from drope_jax.scalings import NTK, PI
from drope_jax.serialization import checked


@pytest.mark.parametrize("field", SHAPE)
@pytest.mark.parametrize("value", [0, -1])
def test_sizes_are_positive(field, value):
  with pytest.raises(ConfigError, match=f"ModelConfig.{field} is {value}"):
    model(**{field: value})


@pytest.mark.parametrize(
  "build, named",
  [
    (lambda: model(num_heads=4, num_kv_heads=3), "ModelConfig.num_heads is 4"),
    (lambda: model(num_heads=2, num_kv_heads=4), "ModelConfig.num_heads is 2"),
    (lambda: model(head_dim=5), "ModelConfig.head_dim is 5"),
    (lambda: model(head_dim=5, positions=rnope_swa(4)), "ModelConfig.head_dim is 5"),
    (lambda: model(head_dim=2, positions=RoPE(scaling=NTK(2.0))), "ModelConfig.head_dim is 2"),
    (lambda: model(positions="rope"), "ModelConfig.positions"),
    (lambda: model(positions=PI(2.0)), "ModelConfig.positions"),  # forgot RoPE(scaling=...)
    (lambda: model(positions=LayerPattern((RoPE(), None))), "ModelConfig.positions"),  # forgot Layer(...)
    (lambda: model(positions=LayerPattern((Layer("rope"),))), "ModelConfig.positions.layers[0].positions is 'rope'"),
    (lambda: model(positions=LayerPattern((Layer(), Layer(PI(2.0))))), "layers[1].positions is PI(factor=2.0)"),
    (lambda: model(positions=LayerPattern((Layer(RoPE(), 2.5),))), "ModelConfig.positions.layers[0].window is 2.5"),
    (lambda: model(positions=LayerPattern((Layer(RoPE(), True),))), "ModelConfig.positions.layers[0].window is True"),
    (lambda: model(positions=RoPE(scaling="yarn")), "ModelConfig.positions.scaling is 'yarn'; allowed: PI, NTK"),
    (lambda: model(positions=LayerPattern((Layer(RoPE(scaling=2.0)),))), "layers[0].positions.scaling is 2.0"),
    (lambda: model(norm_eps=0.0), "ModelConfig.norm_eps"),
    (lambda: model(norm_eps=float("nan")), "ModelConfig.norm_eps"),
    (lambda: model(init_std=-0.1), "ModelConfig.init_std"),
    (lambda: QKNorm("heads"), "QKNorm.scope is 'heads'; allowed: full, head"),
    (lambda: QKNorm(queries=False, keys=False), "QKNorm"),
    (lambda: ComputeConfig(dtype="float16"), "ComputeConfig.dtype is 'float16'; allowed: auto, float32, bfloat16"),
    (lambda: ComputeConfig(attention="flash"), "ComputeConfig.attention is 'flash'; allowed: auto, reference"),
    (lambda: ComputeConfig(remat="all"), "ComputeConfig.remat is 'all'; allowed: none, full, dots"),
    (lambda: ComputeConfig(remat_keep=("mlp",)), "ComputeConfig.remat_keep is ('mlp',); it takes names of qkv, attent"),
    (lambda: ComputeConfig(remat="full", remat_offload=("attention",)), "it takes names of input, qkv, mlp"),
    (
      lambda: ComputeConfig(remat="full", remat_keep=("mlp", "qkv"), remat_offload=("qkv",)),
      "ComputeConfig.remat_offload names qkv, which remat_keep keeps already",
    ),
    (lambda: ComputeConfig(loss_chunk=0), "ComputeConfig.loss_chunk"),
    (lambda: DataConfig(directory="d", context=0, batch_size=1), "DataConfig.context is 0"),
    (lambda: DataConfig(directory="d", context=1, batch_size=0), "DataConfig.batch_size is 0"),
    (lambda: DataConfig(directory="d", context=1, batch_size=1, num_workers=-1), "DataConfig.num_workers is -1"),
    (lambda: OptimConfig(peak_lr=-1.0), "OptimConfig.peak_lr is -1.0"),
    (lambda: OptimConfig(peak_lr=float("nan")), "OptimConfig.peak_lr is nan"),
    (lambda: OptimConfig(peak_lr=1.0, schedule="linear"), "OptimConfig.schedule is 'linear'; allowed: cosine, wsd"),
    (lambda: OptimConfig(peak_lr=1.0, schedule="wsd"), "OptimConfig.decay_steps is 0"),
    (lambda: OptimConfig(peak_lr=1.0, decay_steps=5), "OptimConfig.decay_steps is 5"),
    (lambda: OptimConfig(peak_lr=1.0, warmup_steps=-1), "OptimConfig.warmup_steps is -1"),
    (lambda: OptimConfig(peak_lr=1.0, floor=1.5), "OptimConfig.floor is 1.5"),
    (lambda: OptimConfig(peak_lr=1.0, schedule="constant", floor=0.1), "OptimConfig.floor is 0.1; schedule 'constant'"),
    (lambda: OptimConfig(peak_lr=1.0, clip_norm=0.0), "OptimConfig.clip_norm is 0.0"),
    (lambda: OptimConfig(peak_lr=1.0, accumulation=0), "OptimConfig.accumulation is 0"),
    (lambda: MeshConfig(data=0), "MeshConfig.data is 0"),
    (lambda: MeshConfig(data=2, tensor=-2), "MeshConfig.tensor is -2"),
    (lambda: MeshConfig(data=-1, fsdp=-1), "more than one -1"),
    (lambda: run(model=None), "TrainConfig needs model"),
    (
      lambda: run(data=DataConfig(directory="d", tokenizer="init", context=8, batch_size=1)),
      "DataConfig.tokenizer is 'init', which needs TrainConfig.init",
    ),
    (lambda: run(steps=0), "TrainConfig.steps is 0"),
    (lambda: run(log_every=0), "TrainConfig.log_every is 0"),
    (lambda: run(checkpoint_every=0), "TrainConfig.checkpoint_every is 0"),
    (lambda: run(keep_latest=0), "TrainConfig.keep_latest is 0"),
    (lambda: run(keep_every=0), "TrainConfig.keep_every is 0"),
    (lambda: run(trackers=("mlflow",)), "TrainConfig.trackers has 'mlflow'; allowed: tensorboard, wandb"),
    (lambda: run(optim=OptimConfig(peak_lr=1.0, accumulation=3)), "OptimConfig.accumulation is 3"),
    (lambda: run(optim=OptimConfig(peak_lr=1.0, warmup_steps=11)), "--config.optim.warmup_steps"),
    (lambda: run(optim=OptimConfig(peak_lr=1.0, schedule="wsd", warmup_steps=6, decay_steps=5)), "decay_steps is 11"),
  ],
)  # fmt: skip
def test_impossible_settings_are_refused_in_one_line(build, named):
  with pytest.raises(ConfigError) as error:
    build()
  assert named in str(error.value)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("positions", [None, ALiBi(), LayerPattern((Layer(None), Layer(ALiBi(), 4)))])
def test_an_odd_head_dim_is_refused_only_where_something_rotates(positions):
  assert model(head_dim=5, positions=positions).head_dim == 5


def test_the_smallest_values_are_allowed():
  smallest = dict.fromkeys(SHAPE, 1) | {"head_dim": 2}
  data = DataConfig(directory="d", context=1, batch_size=1)
  tiny = run(model=ModelConfig(**smallest), data=data, steps=1, log_every=1, checkpoint_every=1, keep_latest=1)
  assert checked(tiny) == tiny


@pytest.mark.parametrize("where", [{"directory": "d"}, {"source": Text("t")}, {}])
def test_the_dataset_is_named_by_whichever_field_says_it(where):
  assert DataConfig(**where, context=1, batch_size=1).dataset == next(iter(where.values()), "")


def test_defaults_are_not_shared_between_configs():
  first, second = run(), run()
  first.mesh.fsdp = 2
  first.compute.remat = "full"
  assert second.mesh == MeshConfig() and second.compute == ComputeConfig()
  one, other = model(), model()
  one.positions.theta = 5.0
  assert other.positions == RoPE() and model().positions == RoPE()
