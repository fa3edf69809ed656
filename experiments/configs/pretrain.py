"""The paper's models from scratch (table 4, left column): 494M parameters, Qwen2-0.5B's shape, FineWeb.

`python -m experiments.train --config=experiments/configs/pretrain.py:ARG --workdir=DIR --config.data.directory=... \
  --config.data.tokenizer=...`, with a TFDS dataset of documents and Qwen2's tokenizer.json.

| ARG          | run                                                    | steps  | tokens |
|--------------|--------------------------------------------------------|--------|--------|
| rope         | RoPE, theta 1e6 (the default)                          | 16,000 | 16.8B  |
| rope_14k     | RoPE for 14,000 steps, the start of DroPE              | 14,000 | 14.7B  |
| nope         | no positional embedding                                | 16,000 | 16.8B  |
| alibi        | ALiBi, slopes for 14 heads                             | 16,000 | 16.8B  |
| rnope_swa    | RNoPE-SWA, window 256 (the paper does not state one)   | 16,000 | 16.8B  |
| drope        | rope_14k dropped: needs `--config.init.checkpoint=DIR` |  2,000 |  2.1B  |

Parameters: 494.0M (357.9M without the embedding). FLOPs per token (PaLM, T 1024): 3.228e9; a 16,000-step run: 5.42e19.
Numbers to expect (table 6, validation perplexity): rope 21.72, drope 21.73, nope 23.77. Not yet run here.

In the paper rope_14k is the checkpoint of `rope` at step 14,000, with the schedule of 16,000 steps; here it is a run of
its own whose cosine ends at 14,000. To follow the paper exactly, train `rope` with `--config.keep_every=14000` and
start from `--config.init.step=14000`.
"""

from drope_jax.config import DataConfig, InitConfig, ModelConfig, OptimConfig, TrainConfig
from drope_jax.errors import ConfigError
from drope_jax.positions import ALiBi, Positions, RoPE, rnope_swa

CONTEXT = 1024
POSITIONS: dict[str, Positions] = {
  "rope": RoPE(theta=1e6),
  "rope_14k": RoPE(theta=1e6),
  "nope": None,
  "alibi": ALiBi(),
  "rnope_swa": rnope_swa(window=CONTEXT // 4),
}
ARGS = (*POSITIONS, "drope")


def get_config(arg: str = "rope") -> TrainConfig:
  """The config of one run of the table above."""
  if arg not in ARGS:
    raise ConfigError(f"pretrain.py has no {arg!r}; allowed: {', '.join(ARGS)}")
  data = DataConfig(directory="data/fineweb", tokenizer="data/qwen2/tokenizer.json", context=CONTEXT, batch_size=1024)
  model = ModelConfig(
    vocab_size=151_936,
    d_model=896,
    num_layers=24,
    num_heads=14,
    num_kv_heads=2,
    head_dim=64,
    d_ff=4864,
    positions=POSITIONS["rope_14k" if arg == "drope" else arg],
    norm_eps=1e-6,
  )
  if arg == "drope":
    return TrainConfig(
      init=InitConfig(checkpoint="runs/rope_14k", model=model),
      data=data,
      optim=OptimConfig(peak_lr=1e-3, warmup_steps=70),
      steps=2_000,
      seed=1,  # documents in another order than in the pretraining
    )
  return TrainConfig(
    model=model,
    data=data,
    optim=OptimConfig(peak_lr=3e-4, warmup_steps=520),
    steps=14_000 if arg == "rope_14k" else 16_000,
  )
