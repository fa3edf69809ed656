"""The measurements of the other side, transformers with torch (extra `hf`); the counterpart of ours.py."""

import tempfile
import time
from typing import Any

import numpy as np
import torch
import transformers

from drope_jax.config import ModelConfig
from drope_jax.interop import formats
from drope_jax.interop.exporting import export_model
from drope_jax.serialization import from_dict
from experiments.benchmarks.measuring import host_memory_peak, page_faults
from experiments.benchmarks.ours import ADAMW, OPTIM, Measure

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def _about(**more: Any) -> dict[str, Any]:
  versions = {"torch": torch.__version__, "transformers": transformers.__version__}
  return {"versions": versions, "device": torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu", **more}


def memory_peak() -> int:
  """Peak bytes of the GPU if there is one, else of this process."""
  return torch.cuda.max_memory_allocated() if DEVICE == "cuda" else host_memory_peak()


def _wait() -> None:
  if DEVICE == "cuda":
    torch.cuda.synchronize()


def _model(model: dict[str, Any], max_position: int) -> Any:
  """The transformers model equivalent to `model`, with random float32 weights and sdpa attention."""
  config = from_dict(ModelConfig, model)
  name = "qwen2" if config.qkv_bias else "llama"
  settings = formats.write_config(
    name, config, max_position=max_position, dtype="float32", logit_scale=1.0, eos_ids=(0,), bos_id=None
  )
  kind = settings.pop("model_type")
  torch.manual_seed(0)
  made = transformers.AutoModelForCausalLM.from_config(
    transformers.AutoConfig.for_model(kind, **settings), attn_implementation="sdpa"
  )
  return made.to(DEVICE)


def _random_tokens(model: dict[str, Any], *shape: int) -> torch.Tensor:
  return torch.from_numpy(np.random.default_rng(0).integers(0, model["vocab_size"], shape)).to(DEVICE)


def matmul(size: int, dtype: str) -> tuple[dict[str, Any], Measure]:
  """FLOP/s of a product of two size x size matrices."""
  x = torch.randn(size, size, dtype=getattr(torch, dtype), device=DEVICE)
  x @ x
  _wait()

  def measure(repeats: int) -> dict[str, Any]:
    begin = time.perf_counter()
    for _ in range(repeats):
      x @ x
    _wait()
    return {"flops": 2 * size**3 * repeats / (time.perf_counter() - begin)}

  return _about(), measure


def train_step(
  model: dict[str, Any], context: int, batch_size: int, dtype: str, compiled: bool, platform: str
) -> tuple[dict[str, Any], Measure]:
  """Seconds of a training step on one fixed batch: forward, backward, clip, AdamW (torch's fused one).

  Raises RuntimeError if torch runs on another platform.
  """
  if (platform == "gpu") != (DEVICE == "cuda"):
    raise RuntimeError(f"torch computes on {DEVICE} here, not on {platform}")
  net = _model(model, context)
  decayed = [p for p in net.parameters() if p.ndim > 1]
  kept = [p for p in net.parameters() if p.ndim <= 1]
  groups = [{"params": decayed, "weight_decay": ADAMW.weight_decay}, {"params": kept, "weight_decay": 0.0}]
  betas = (ADAMW.beta1, ADAMW.beta2)
  optimizer = torch.optim.AdamW(groups, lr=OPTIM.peak_lr, betas=betas, eps=ADAMW.eps, fused=True)
  tokens = _random_tokens(model, batch_size, context + 1)
  forward = torch.compile(net) if compiled else net

  def step() -> torch.Tensor:
    with torch.autocast(DEVICE, torch.bfloat16, enabled=dtype == "bfloat16"):
      logits = forward(input_ids=tokens[:, :-1], use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())
    loss.backward()
    torch.nn.utils.clip_grad_norm_(net.parameters(), OPTIM.clip_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss

  begin = time.perf_counter()
  step()
  _wait()
  first = time.perf_counter() - begin

  def measure(steps: int) -> dict[str, Any]:
    begin, faults = time.perf_counter(), page_faults()
    for _ in range(steps):
      loss = step()
    _wait()
    found = {"seconds": (time.perf_counter() - begin) / steps, "page_faults": (page_faults() - faults) / steps}
    return {**found, "loss": float(loss), "memory": memory_peak()}

  return _about(first_step_seconds=first, dtype=dtype), measure


def loss_of_a_text(length: int, model: dict[str, Any], directory: str | None = None) -> tuple[dict[str, Any], Measure]:
  """The mean loss of one text of `length` tokens as `model(tokens, labels=tokens)` gives it: seconds and memory."""
  net: Any
  if directory is None:
    net = _model(model, length + 1)
  else:
    with tempfile.TemporaryDirectory() as folder:
      target = f"{folder}/exported"
      export_model(directory, target)
      net = transformers.AutoModelForCausalLM.from_pretrained(target, attn_implementation="sdpa")
      net = net.to(DEVICE)
  if DEVICE == "cuda":
    net = net.bfloat16()  # as our side computes on a GPU
  tokens = _random_tokens(model, 1, length + 1)  # all but the first are predicted
  if DEVICE == "cuda":
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()  # without the float32 weights above
  before = memory_peak()

  def measure() -> dict[str, Any]:
    begin = time.perf_counter()
    with torch.no_grad():
      loss = float(net(input_ids=tokens, labels=tokens, use_cache=False).loss)
    return {"seconds": time.perf_counter() - begin, "loss": loss, "memory": memory_peak(), "memory_before": before}

  return _about(), measure


def generation(model: dict[str, Any], batch_size: int, prompt: int, new_tokens: int) -> tuple[dict[str, Any], Measure]:
  """Seconds to read prompts (to generate one token), and seconds to generate `new_tokens` greedily, without reading."""
  net = _model(model, prompt + new_tokens)
  if DEVICE == "cuda":
    net = net.bfloat16()
  tokens = _random_tokens(model, batch_size, prompt)

  def seconds(count: int) -> float:
    begin = time.perf_counter()
    net.generate(
      tokens,
      attention_mask=torch.ones_like(tokens),
      do_sample=False,
      min_new_tokens=count,
      max_new_tokens=count,
      pad_token_id=0,
    )
    _wait()
    return time.perf_counter() - begin

  seconds(2)

  def measure() -> dict[str, Any]:
    reading = seconds(1)
    # One token came with the reading: the others are scaled up to all.
    decode = (seconds(new_tokens) - reading) * new_tokens / (new_tokens - 1)
    return {"prefill": reading, "decode": decode, "memory": memory_peak()}

  return _about(), measure
