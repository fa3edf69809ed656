"""A small model for your own text, on a laptop or one GPU: pretrained with RoPE, then dropped and recalibrated.

`python -m experiments.train --config=experiments/configs/small.py --workdir=runs/mine --data=PATH
--train_tokenizer=4096`; then `small.py:drope` with the same `--data` in another workdir. It starts from runs/mine, or
from `--config.init.checkpoint`, and uses its tokenizer. It belongs to no table of the paper.

| ARG   | run                                              | steps | tokens |
|-------|--------------------------------------------------|-------|--------|
| rope  | RoPE, theta 10,000 (the default)                 |   600 |  2.46M |
| drope | dropped: needs `--config.init.checkpoint=DIR`    |   150 |  0.61M |

Parameters: 3.42M. FLOPs per token (PaLM, T 256): 2.288e7; the 600 steps: 5.62e13. Numbers to expect: not yet run.
"""

from drope_jax.config import ComputeConfig, DataConfig, InitConfig, ModelConfig, OptimConfig, TrainConfig
from drope_jax.errors import ConfigError
from drope_jax.positions import RoPE

ARGS = ("rope", "drope")


def get_config(arg: str = "rope") -> TrainConfig:
  """The config of one run of the table above."""
  if arg not in ARGS:
    raise ConfigError(f"small.py has no {arg!r}; allowed: {', '.join(ARGS)}")
  data = DataConfig(tokenizer="init" if arg == "drope" else "byte", context=256, batch_size=16)
  compute = ComputeConfig(scan_layers=False)  # few layers are faster unrolled
  if arg == "drope":
    optim = OptimConfig(peak_lr=1e-3, warmup_steps=15)
    return TrainConfig(init=InitConfig(checkpoint="runs/mine"), data=data, optim=optim, compute=compute, steps=150)
  model = ModelConfig(
    vocab_size=4096,
    d_model=256,
    num_layers=3,
    num_heads=4,
    num_kv_heads=4,
    head_dim=64,
    d_ff=688,
    positions=RoPE(theta=10_000.0),
  )
  return TrainConfig(
    model=model, data=data, optim=OptimConfig(peak_lr=1e-3, warmup_steps=20), compute=compute, steps=600
  )
