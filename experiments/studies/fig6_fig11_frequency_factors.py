"""What each method does to the frequencies of RoPE (paper: figures 6 and 11).

`python -m experiments.study --config=experiments/studies/fig6_fig11_frequency_factors.py:SIZE --workdir=DIR` writes
figures/frequency_factors.png and .csv: gamma_m = omega'_m / omega_m of every pair m under PI, NTK and YaRN, for the
rotations of the model of that size (`paper`: the 494M model) and `--config.extensions=2,3,4`. Methods that change the
training, which the paper's figures leave out, are added: the drop (all zero), the partial drop, which is ours, and
CoPE's soft gate; these do not depend on the extension. The dotted line is after the last pair that makes a full turn
within the context.

Nothing is trained, there are no parameters and no tokens, and FLOPs are negligible. By definition, which tests check,
PI has 1 / s at every pair; NTK goes from 1 at the fastest to 1 / s at the slowest pair; YaRN has 1 up to one pair and 1
/ s from another on. Numbers to expect: docs/results/figures.md."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from drope_jax.errors import check
from drope_jax.positions import RoPE
from drope_jax.scalings import NTK, PI, CoPE, Scaling, YaRN, base_frequencies
from experiments.plan import Study, check_at_least_one
from experiments.reporting.looks import GREEN, GREY, INK, ORANGE, PURPLE, SKY, VERMILION
from experiments.studies import sizes
from experiments.studies.branching import getter
from experiments.studies.figures import Out, only_drawn, panels, save, write_csv
from experiments.studies.partial_drop import rope_of

CAPTION = (
  "The factor on the frequency of every pair of rotations: 1 keeps it, 0 is no rotation. Pairs to the left of the "
  "dotted line make a full turn within the training context."
)
LOOKS: Mapping[str, dict[str, Any]] = {
  "PI": {"color": ORANGE, "marker": "s"},
  "NTK": {"color": SKY, "marker": "^"},
  "YaRN": {"color": GREEN, "marker": "D"},
  "CoPE": {"color": INK, "marker": "v"},
  "partial drop": {"color": PURPLE, "marker": "o"},
  "drop": {"color": VERMILION, "marker": "X"},
}


def factors(theta: float, head_dim: int, context: int, extension: float) -> dict[str, np.ndarray]:
  """gamma (h/2,) of every method at an extension."""
  rope, base = RoPE(theta), base_frequencies(theta, head_dim)
  scalings: Mapping[str, Scaling] = {
    "PI": PI(extension),
    "NTK": NTK(extension),
    "YaRN": YaRN(extension, context),
    "CoPE": CoPE(context),
  }
  scaled = {name: np.asarray(rope.rescaled(how).frequencies(head_dim).omega) / base for name, how in scalings.items()}
  return {**scaled, "partial drop": (turns(theta, head_dim, context) >= 1).astype(float), "drop": np.zeros_like(base)}


def turns(theta: float, head_dim: int, context: int) -> np.ndarray:
  """How many turns each pair makes within the context, float64 (h/2,)."""
  return base_frequencies(theta, head_dim) * context / (2 * np.pi)


@dataclasses.dataclass(unsafe_hash=True, kw_only=True)
class FrequencyFactors:
  """The settings, as `--config.NAME=VALUE`."""

  theta: float  # base of the rotations
  head_dim: int
  context: int  # of the training, in tokens
  extensions: tuple[float, ...] = (2, 3, 4)  # multiples of the context

  def __post_init__(self) -> None:
    check_at_least_one(self, "context", "extensions")
    check(self.theta > 0, f"FrequencyFactors.theta is {self.theta}; it must be above 0")
    check(
      self.head_dim > 1 and self.head_dim % 2 == 0, f"FrequencyFactors.head_dim is {self.head_dim}; it must be even"
    )

  def study(self, workdir: Path) -> Study:
    title = "Factors on RoPE's frequencies (paper: figures 6 and 11)"
    return only_drawn(title, self.context, {"frequency_factors": CAPTION}, self.draw)

  def draw(self, out: Out) -> None:
    shape = (self.theta, self.head_dim, self.context)
    figure, axes = panels(len(self.extensions))
    full_circle = float((turns(*shape) >= 1).sum()) - 0.5
    rows = []
    for axis, extension in zip(axes, self.extensions, strict=True):
      for name, gamma in factors(*shape, extension).items():
        axis.plot(gamma, label=name, **LOOKS[name], markersize=4, markevery=2, linewidth=1.4)
        rows += [(extension, name, pair, value) for pair, value in enumerate(gamma)]
      axis.axvline(full_circle, color=GREY, linestyle=":", label="left: full turns in context")
      axis.set(title=f"s = {extension:g}", xlabel="pair m (fastest first)", ylabel="γ = ω′ / ω", ylim=(-0.03, 1.05))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=8)
    caption = f"RoPE with base {self.theta:,.0f}, heads of {self.head_dim} dimensions, context {self.context:,}."
    write_csv(out.folder / "frequency_factors.csv", ("extension", "method", "pair", "gamma"), rows)
    save(figure, caption, out, "frequency_factors")


def _of(size: sizes.Size) -> FrequencyFactors:
  settings = size()
  model = settings["model"]
  return FrequencyFactors(theta=rope_of(model).theta, head_dim=model.head_dim, context=settings["context"])


SIZES = {
  "mini": lambda: _of(sizes.mini),
  "small": lambda: _of(sizes.small),
  "paper": lambda: _of(sizes.paper),
}
get_config = getter(SIZES)
