"""What each method does to the frequencies of RoPE (paper: figures 6 and 11).

`python -m experiments.studies.fig6_fig11_frequency_factors --out=DIR [--theta=1e6 --head-dim=64 --context=1024
--factors 2 3 4]` writes frequency_factors.png and .csv: gamma_m = omega'_m / omega_m of every pair m under PI, NTK and
YaRN; the default is the shape of the paper's 494M model. Methods that change the training, which the paper's figures
leave out, are added: the drop (all zero), the partial drop, which is ours, and CoPE's soft gate; these do not depend on
the extension. The dotted line is after the last pair that makes a full turn within the context.

Nothing is trained, there are no parameters and no tokens, and FLOPs are negligible. Numbers to expect (tests check
them): PI 1 / s at every pair; NTK from 1 at the fastest to 1 / s at the slowest pair; YaRN 1 up to one pair and 1 / s
from another on.
"""

import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from drope_jax import cli
from drope_jax.positions import RoPE
from drope_jax.scalings import NTK, PI, CoPE, Scaling, YaRN, base_frequencies
from experiments.reporting.looks import GREEN, GREY, INK, ORANGE, PURPLE, SKY, VERMILION
from experiments.studies.figures import add_out, panels, save, styled, write_csv

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


@styled
def draw(given: Namespace) -> None:
  shape = (given.theta, given.head_dim, given.context)
  figure, axes = panels(len(given.factors))
  full_circle = float((turns(*shape) >= 1).sum()) - 0.5
  rows = []
  for axis, extension in zip(axes, given.factors, strict=True):
    for name, gamma in factors(*shape, extension).items():
      axis.plot(gamma, label=name, **LOOKS[name], markersize=4, markevery=2, linewidth=1.4)
      rows += [(extension, name, pair, value) for pair, value in enumerate(gamma)]
    axis.axvline(full_circle, color=GREY, linestyle=":", label="left: full turns in context")
    axis.set(title=f"s = {extension:g}", xlabel="pair m (fastest first)", ylabel="γ = ω′ / ω", ylim=(-0.03, 1.05))
  figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=8)
  base, head_dim, context = shape
  caption = f"RoPE with base {base:,.0f}, heads of {head_dim} dimensions, context {context:,}."
  save(figure, caption, given, "frequency_factors")
  write_csv(given.out / "frequency_factors.csv", ("extension", "method", "pair", "gamma"), rows)


def _parser() -> cli.Parser:
  parser = cli.Parser(prog="python -m experiments.studies.fig6_fig11_frequency_factors", about=__doc__)
  add_out(parser)
  parser.add_argument("--theta", type=float, default=1e6, help="base of the rotations")
  parser.add_argument("--head-dim", type=int, default=64, help="dimensions of a head")
  parser.add_argument("--context", type=int, default=1024, help="training context, in tokens")
  parser.add_argument("--factors", type=float, nargs="+", default=[2.0, 3.0, 4.0], metavar="S", help="extensions")
  return parser


def main(arguments: Sequence[str] | None = None) -> int:
  """The command; returns its exit status."""
  return cli.run_parsed(_parser(), draw, arguments)


if __name__ == "__main__":
  sys.exit(main())
