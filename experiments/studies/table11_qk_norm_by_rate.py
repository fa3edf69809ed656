"""QK-norm and the learning rate of the recalibration (paper: table 11 and figure 12).

The paper's final training losses, SmolLM-360M, with and without QK-norm: at 1e-3 2.496 and 6.334 (unstable), at 3e-4
2.555 and 2.530, at 3e-5 3.102 and 2.713. Added to its six runs are controls that keep RoPE with the same norms and
rates (`kept_...`), to separate the cost of the norm from the cost of the drop, and other norms: per head, of queries
only (which the paper mentions without numbers) and of keys only.

At `small` there are two rates, and the drop with the full norm and without a norm; the controls have no norm.

`python -m experiments.study --config=experiments/studies/table11_qk_norm_by_rate.py:SIZE --workdir=DIR
--seeds=0,1,2`. Every run is a tail from one trunk.

| size  |                 parameters |     T | runs | rows |     tokens | FLOPs (PaLM) |    minutes (on) |
| :---- | -------------------------: | ----: | ---: | ---: | ---------: | -----------: | --------------: |
| mini  |         935,040 to 936,064 |   128 |   22 |   21 |       6.1M |      3.93e13 | 5 (2 CPU cores) |
| small |   15,735,168 to 15,741,312 |   256 |    7 |    6 |     225.2M |      2.34e16 |    5 (one H200) |
| paper | 361,821,120 to 361,862,080 | 2,048 |   21 |   21 | 660,602.9M |      1.93e21 |                 |

Tokens and FLOPs (PaLM) are totals over the runs of a seed. Numbers to expect: docs/results/table11_qk_norm_by_rate.md.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from drope_jax.config import QKNorm
from drope_jax.transitions import Drop, Keep, Transition
from experiments.studies import sizes
from experiments.studies.branching import Branch, BranchingStudy, getter, tail

NORMS = {
  "none": None,
  "full": QKNorm(),
  "head": QKNorm(scope="head"),
  "queries": QKNorm(keys=False),
  "keys": QKNorm(queries=False),
}


@dataclasses.dataclass(unsafe_hash=True, kw_only=True)
class QKNormByRate(BranchingStudy):
  """The settings, as `--config.NAME=VALUE`."""

  title: ClassVar[str] = "QK-norm by learning rate (paper: table 11)"

  rates: tuple[float, ...]
  dropped_norms: tuple[str, ...] = tuple(NORMS)  # of the runs without embedding
  kept_norms: tuple[str, ...] = ("none", "full")  # of their controls
  extensions: tuple[float, ...] = (1,)
  tasks: tuple[str, ...] = ("perplexity",)

  def branches(self) -> Sequence[Branch]:
    kept = [self._branch("kept", Keep(), "rope", norm, rate) for norm in self.kept_norms for rate in self.rates]
    dropped = [self._branch("drop", Drop(), "nope", norm, rate) for norm in self.dropped_norms for rate in self.rates]
    return [*kept, *dropped]

  @staticmethod
  def _branch(name: str, transition: Transition, method: str, norm: str, rate: float) -> Branch:
    said = "no QK-norm" if norm == "none" else f"QK-norm: {norm}"
    label = f"{'RoPE, continued' if name == 'kept' else 'dropped'} ({said}, {rate:g})"
    inserted = NORMS[norm]
    init = {} if inserted is None else {"qk_norm": dataclasses.replace(inserted)}
    return tail(f"{name}_{norm}_{rate:g}", label, transition, (method,), init=init, optim={"peak_lr": rate})


SIZES = {
  "mini": sizes.of(QKNormByRate, sizes.mini, rates=(3e-4, 3e-3, 1e-2)),
  "small": sizes.of(
    QKNormByRate, sizes.small, rates=(2e-3, 1e-2), dropped_norms=("none", "full"), kept_norms=("none",)
  ),
  "paper": sizes.of_recipe(QKNormByRate, "smollm_360m_30b", qk_norm=False, rates=(3e-5, 3e-4, 1e-3)),
}
get_config = getter(SIZES)
