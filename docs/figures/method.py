"""The figures of docs/method.md, computed from the library's own tables: `python -m docs.figures.method`."""

import math
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from drope_jax.drope import FROM_SCRATCH_COEFFICIENT, SMOLLM_COEFFICIENT, temperature
from drope_jax.model_config import ModelConfig
from drope_jax.positions import RoPE
from drope_jax.scalings import NTK, PI, YaRN
from drope_jax.transitions import Fade, PartialDrop
from experiments.reporting.axes import STYLE
from experiments.reporting.looks import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, SKY, VERMILION

HERE = Path(__file__).parent
# Letters of about 11 px where a phone shows a figure 360 px wide; text stays text, so that it can be searched.
LOOK = {**STYLE, "font.size": 11, "axes.titlesize": 12, "svg.hashsalt": "drope", "svg.fonttype": "path"}
CONTEXT, HEAD, THETA = 128, 32, 10_000.0  # the quickstart's


def model() -> ModelConfig:
  """Of the quickstart's heads; its other sizes change nothing here."""
  return ModelConfig(
    vocab_size=8, d_model=8, num_layers=4, num_heads=1, num_kv_heads=1, head_dim=HEAD, d_ff=8, positions=RoPE(THETA)
  )


def omegas(positions: RoPE) -> np.ndarray:
  return np.asarray(positions.frequencies(HEAD).omega)


def angles() -> None:
  """Two pairs over eight training contexts: the fast one repeats itself, the slow one reaches angles never trained."""
  figure, both = plt.subplots(2, 1, figsize=(5, 4.6), sharex=True, layout="constrained")
  positions = np.arange(8 * CONTEXT + 1)
  for axes, pair, what in zip(both, (3, 8), ("it repeats itself", "new angles lie ahead"), strict=True):
    angle = positions * omegas(RoPE(THETA))[pair]
    seen = positions <= CONTEXT
    axes.plot(positions[seen], np.cos(angle[seen]), color=BLUE, linewidth=2.6, label="in training")
    axes.plot(positions[~seen], np.cos(angle[~seen]), color=VERMILION, linewidth=1.4, label="beyond it")
    turns = CONTEXT * omegas(RoPE(THETA))[pair] / (2 * math.pi)
    axes.set_title(f"{turns:.2g} turns in training: {what}", fontsize=11)
    axes.set_ylabel("cos of the angle")
    axes.set_ylim(-1.15, 1.15)
  both[0].legend(loc="lower right", ncols=2, frameon=True, framealpha=0.9, edgecolor="none")
  both[1].set_xlabel("distance between two tokens")
  both[1].set_xticks([CONTEXT * n for n in (0, 1, 2, 4, 8)])
  save(figure, "angles")


def turns() -> None:
  """How often each pair turns within the training context, and which of them a partial drop keeps."""
  figure, axes = plt.subplots(figsize=(5, 3.8), layout="constrained")
  pairs = np.arange(HEAD // 2)
  counts = CONTEXT * omegas(RoPE(THETA)) / (2 * math.pi)
  dropped = PartialDrop(turns=1.0).apply(model(), CONTEXT).positions
  kept = omegas(dropped) > 0 if isinstance(dropped, RoPE) else np.zeros_like(counts, bool)
  axes.axhline(1, color=INK, linewidth=1.2, linestyle="--")
  axes.annotate("one full turn", (len(pairs) - 0.6, 1), (0, 5), textcoords="offset points", ha="right")
  axes.plot(pairs[kept], counts[kept], "o", color=BLUE, markersize=8, label="kept by PartialDrop(turns=1)")
  axes.plot(pairs[~kept], counts[~kept], "o", color=VERMILION, markersize=8, markerfacecolor="white",
            markeredgewidth=2, label="dropped")  # fmt: skip
  axes.set_yscale("log")
  axes.set_yticks([0.01, 0.1, 1, 10], ["0.01", "0.1", "1", "10"])
  axes.set_xlabel("pair of dimensions, from fast to slow")
  axes.set_ylabel(f"turns within {CONTEXT} tokens")
  axes.legend(loc="lower left")
  save(figure, "turns")


def table() -> None:
  """What each way of changing the embedding does to the table of frequencies."""
  figure, panels = plt.subplots(2, 2, figsize=(5.6, 5.4), sharex=True, sharey=True, layout="constrained")
  pairs, before = np.arange(HEAD // 2), omegas(RoPE(THETA))

  def lines(axes: Axes, title: str, shown: list[tuple[str, np.ndarray, str, str]]) -> None:
    axes.set_title(title, fontsize=11)
    for label, gate, color, marker in shown:
      axes.plot(pairs, gate, color=color, marker=marker, markersize=4, linewidth=1.5, label=label)
    axes.legend(fontsize=9, loc="best", handlelength=1.4)

  def faded(order: str) -> list[tuple[str, np.ndarray, str, str]]:
    fade, looks = Fade(share=1.0, order=order), ((INK, "o"), (BLUE, "s"), (SKY, "^"), (ORANGE, "D"))
    shares = zip((0, 30, 60, 90), looks, strict=True)
    rows = [(percent, *look) for percent, look in shares]
    return [
      (f"{percent} %", np.asarray(fade.frequencies(model(), jnp.int32(percent), 100).omega)[0] / before, color, marker)
      for percent, color, marker in rows
    ]

  partial = PartialDrop(turns=1.0).apply(model(), CONTEXT).positions
  assert isinstance(partial, RoPE)
  lines(panels[0, 0], "dropped", [
    ("DroPE: all", np.zeros_like(before), VERMILION, "o"), ("partial drop", omegas(partial) / before, PURPLE, "o"),
  ])  # fmt: skip
  scalings = (("PI", PI(8.0), ORANGE, "s"), ("NTK", NTK(8.0), SKY, "^"), ("YaRN", YaRN(8.0, CONTEXT), GREEN, "D"))
  lines(panels[0, 1], "rescaled by 8", [
    (name, omegas(RoPE(THETA, scaling)) / before, color, marker) for name, scaling, color, marker in scalings
  ])  # fmt: skip
  lines(panels[1, 0], "Fade, all at once", faded("all"))
  panels[1, 0].get_legend().remove()
  for percent, left in ((0, 1.0), (30, 0.7), (60, 0.4), (90, 0.1)):
    panels[1, 0].annotate(f"after {percent} %", (15, left), (0, 4), textcoords="offset points", ha="right", fontsize=9)
  lines(panels[1, 1], "Fade, slow first", faded("slow_first"))
  for axes in panels[:, 0]:
    axes.set_ylabel("share of its frequency left")
  for axes in panels[1]:
    axes.set_xlabel("pair, fast to slow")
  panels[0, 0].set_ylim(-0.08, 1.12)
  save(figure, "table")


def sharpening() -> None:
  """The temperature over the length, and what it does to attention among ever more tokens."""
  figure, (left, right) = plt.subplots(2, 1, figsize=(5, 5.6), layout="constrained")
  extensions = np.geomspace(1, 16, 60)
  yarn = (0.1 * np.log(extensions) + 1) ** 2
  shown: tuple[tuple[str, Callable[[float], float], str, str], ...] = (
    ("c = 0.412 (paper, from scratch)", lambda s: temperature(s, FROM_SCRATCH_COEFFICIENT), VERMILION, "-"),
    ("c = 0.103 (paper, SmolLM)", lambda s: temperature(s, SMOLLM_COEFFICIENT), ORANGE, "-"),
    ("c = 0: no temperature", lambda s: temperature(s, 0.0), GREY, "--"),
  )
  for label, beta, color, style in shown:
    betas = np.array([beta(float(s)) for s in extensions])
    left.plot(extensions, betas, color=color, linestyle=style, linewidth=2, label=label)
    # One token scores 6 above all others, of which there are 128 s.
    best = np.exp(6 * betas)
    right.plot(extensions, best / (best + CONTEXT * extensions - 1), color=color, linestyle=style, linewidth=2)
  left.plot(extensions, yarn, color=GREEN, linestyle=":", linewidth=2.4, label="YaRN's factor on the logits")
  left.set_ylabel("β, on the logits")
  left.legend(fontsize=9)
  right.set_ylabel("attention on the one\ntoken that matches")
  right.set_ylim(0, 1)
  right.set_xlabel("s: length, in training contexts")
  for axes in (left, right):
    axes.set_xscale("log")
    axes.set_xticks([1, 2, 4, 8, 16], ["1", "2", "4", "8", "16"])
    axes.minorticks_off()
  save(figure, "temperature")


def save(figure: plt.Figure, name: str) -> None:
  figure.savefig(HERE / f"{name}.svg", metadata={"Date": None})
  plt.close(figure)


def main() -> None:
  with plt.rc_context(LOOK):
    angles()
    turns()
    table()
    sharpening()


if __name__ == "__main__":
  main()
