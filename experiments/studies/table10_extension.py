"""Needles at 2, 4 and 8 times the context, also with searched factors (paper: table 10).

The paper, SmolLM-360M: NTK 29.84, 14.37, 7.19; YaRN 48.25, 25.62, 12.18; LongRoPE2 44.20, 26.20, 16.45; DroPE 74.92,
55.00, 52.20 %. Added here is the control that it lacks: RoPE trained on for the same tokens (`control`), with the same
rescalings.

`python -m experiments.study --config=experiments/studies/table10_extension.py:SIZE --workdir=DIR --seeds=0,1,2`.
LongRoPE2's row is the control with one factor per pair; the study searches for the factors at the longest length
(experiments/factor_search.py; `--config.generations=0` leaves the row out). The original also fine-tunes with its
factors; the paper does not say how it made that row. `mini` and `small` train a trunk of their own, and their needles
are facts by topic.

| size  |  parameters |     T | runs | rows |     tokens | FLOPs (PaLM) |    minutes (on) |
| :---- | ----------: | ----: | ---: | ---: | ---------: | -----------: | --------------: |
| mini  |     935,040 |   128 |    3 |    9 |       1.3M |      8.18e12 | 5 (2 CPU cores) |
| small |  15,735,168 |   256 |    3 |    9 |     125.0M |      1.30e16 |    4 (one H200) |
| paper | 361,862,080 | 2,048 |    2 |    9 | 251,658.2M |      7.36e20 |                 |

Tokens and FLOPs (PaLM) are totals over the runs of a seed. Numbers to expect: docs/results/table10_extension.md.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from drope_jax.config import DataConfig, TrainConfig
from drope_jax.scalings import YaRN
from drope_jax.transitions import Replace
from experiments.factor_search import Search, Searched
from experiments.plan import Pretrained
from experiments.studies import sizes
from experiments.studies.branching import Branch, getter, tail
from experiments.studies.partial_drop import rope_of
from experiments.studies.table2_table3_longbench import LongTasks

SEARCHED = "longrope"  # the run with searched factors


@dataclasses.dataclass(unsafe_hash=True, kw_only=True)
class Extension(LongTasks):
  """The settings, as `--config.NAME=VALUE`."""

  title: ClassVar[str] = "Needles at 2, 4 and 8 times the context (paper: table 10)"

  methods: tuple[str, ...] = ("rope", "ntk", "yarn")
  generations: int = 20  # of the factor search; 0: no such row
  extensions: tuple[float, ...] = (2, 4, 8)

  def branches(self) -> Sequence[Branch]:
    branches = list(super().branches())
    if self.generations:
      yarn = Replace(rope_of(self.model).rescaled(YaRN(self._longest, self.context)))  # until the factors are found
      branches.append(tail(SEARCHED, "RoPE + searched factors", yarn, ("rope",), start="control", steps=0))
    return branches

  def _run(self, branch: Branch, data: DataConfig, workdir: Path) -> TrainConfig | Pretrained:
    run = super()._run(branch, data, workdir)
    if branch.run != SEARCHED:
      return run
    assert isinstance(run, Pretrained)
    how, corpus = Search(generations=self.generations, seed=self.seed), self.corpus(workdir)
    return Searched(run.checkpoint, run.transition, run.model, factor=self._longest, dataset=corpus, how=how)

  @property
  def _longest(self) -> float:
    return float(max(self.extensions))


SIZES = {
  "mini": sizes.of(Extension, sizes.mini, needles_per_depth=100),
  "small": sizes.of(Extension, sizes.small),
  "paper": sizes.of_recipe(Extension, "smollm_360m_120b", tasks=("niah_single_2",)),
}
get_config = getter(SIZES)
