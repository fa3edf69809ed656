"""A pretrained model, dropped and recalibrated, against rescaled RoPE on long tasks (paper: tables 2 and 3).

The paper's averages over MultiFieldQA, MuSiQue, GovReport, LCC and needles: SmolLM-360M as it is 2.98, PI 6.66, NTK
17.11, YaRN 19.94, DroPE 30.52; without LCC and needles, SmolLM-1.7B 3.11, NTK 18.53, YaRN 16.23, DroPE 21.49, and
Llama2-7B 20.03, 21.88, 19.14, 26.08. There only DroPE was trained further. Added here is the control that they lack:
RoPE trained on for the same tokens, as it is and rescaled (`control`).

`python -m experiments.study --config=experiments/studies/table2_table3_longbench.py:SIZE --workdir=DIR --seeds=0,1,2`.
`base` is the pretrained model; `control` and `drop` start from it. The sizes `paper...` read an imported model
(`python -m drope_jax.interop import SRC runs/smollm_360m/checkpoint`), FineWeb-Edu, and LongBench's released files
(`--config.longbench=DIR`), untruncated as in the paper. SmolLM-360M has the recipe of 120B tokens and QK-norm; the
paper does not say which of its budgets table 2 has.

`mini` and `small` train a trunk of their own instead of the pretrained model. Models of these sizes cannot answer any
task of LongBench, so they are measured on needles, induction, and made-up tasks in LongBench's format, with two of its
prompts and scores (experiments/made_up_longbench.py). Those figures are named `longbench_...` and are not LongBench's.

| size       |    parameters |     T | runs | rows |     tokens | FLOPs (PaLM) |    minutes (on) |
| :--------- | ------------: | ----: | ---: | ---: | ---------: | -----------: | --------------: |
| mini       |       935,040 |   128 |    3 |   10 |       1.3M |      8.18e12 | 5 (2 CPU cores) |
| small      |    15,735,168 |   256 |    3 |   10 |     125.0M |      1.30e16 |    4 (one H200) |
| paper      |   361,862,080 | 2,048 |    2 |    8 | 251,658.2M |      7.36e20 |                 |
| paper_1_7b | 1,711,376,384 | 2,048 |    2 |    8 |  39,999.0M |      4.59e20 |                 |
| paper_7b   | 6,738,415,616 | 4,096 |    2 |    8 |  40,001.1M |      1.84e21 |                 |

Tokens and FLOPs (PaLM) are totals over the runs of a seed. Numbers to expect: docs/results/table2_table3_longbench.md.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from drope_jax.errors import check
from drope_jax.transitions import Drop, Keep
from experiments import made_up_longbench
from experiments.plan import EvalPlan, Study
from experiments.studies import sizes
from experiments.studies.branching import DROPPED, Branch, BranchingStudy, getter, tail

TASKS = tuple(f"longbench_{name}_whole" for name in ("multifieldqa_en", "musique", "gov_report", "lcc"))
AS_IT_IS = ("rope", "pi", "ntk", "yarn")
BY_LENGTH = ("rope", "dynamic_ntk", "dynamic_yarn")  # scaled for each text, as in appendix C.2 for LongBench


@dataclasses.dataclass(unsafe_hash=True, kw_only=True)
class LongTasks(BranchingStudy):
  """The settings, as `--config.NAME=VALUE`."""

  title: ClassVar[str] = "A pretrained model on long tasks (paper: tables 2 and 3)"

  methods: tuple[str, ...] = AS_IT_IS  # of the models with RoPE
  extensions: tuple[float, ...] = (2, 8)
  made_up: bool = False  # makes the files of `longbench`, each with `samples` records of 1 to 8 times the context

  def __post_init__(self) -> None:
    super().__post_init__()
    check(
      not (self.made_up and self.longbench),
      f"LongTasks.made_up is True and longbench {self.longbench!r}; set one or the other",
    )

  def study(self, workdir: Path) -> Study:
    study = super().study(workdir)
    if not self.made_up:
      return study
    plan = study.eval_data
    assert isinstance(plan, EvalPlan)  # see BranchingStudy.study
    folder = workdir / "data" / "made_up_longbench"
    lengths = [self.context * times for times in (1, 2, 4, 8)]

    def prepare() -> None:
      study.prepare()
      made_up_longbench.write(folder, plan().lines, lengths, self.samples, self.seed)

    return dataclasses.replace(study, prepare=prepare, eval_data=dataclasses.replace(plan, longbench=folder))

  def branches(self) -> Sequence[Branch]:
    return [
      tail("base", "as it is", Keep(), self.methods, steps=0),
      tail("control", "RoPE, continued", Keep(), self.methods),
      tail("drop", "DroPE", Drop(), DROPPED),
    ]


_PAPER = {"methods": BY_LENGTH, "extensions": (2,)}
_MADE_UP = {
  "made_up": True,
  "samples": 200,
  "tasks": ("perplexity", "needles", "induction", *(f"longbench_{name}_whole" for name in made_up_longbench.DATASETS)),
}
SIZES = {
  "mini": sizes.of(LongTasks, sizes.mini, **_MADE_UP),
  "small": sizes.of(LongTasks, sizes.small, **_MADE_UP),
  "paper": sizes.of_recipe(
    LongTasks, "smollm_360m_120b", **_PAPER, tasks=(*TASKS, "niah_single_2"), longbench="data/longbench"
  ),
  "paper_1_7b": sizes.of_recipe(LongTasks, "smollm_1_7b", **_PAPER, tasks=TASKS[:3], longbench="data/longbench"),
  "paper_7b": sizes.of_recipe(LongTasks, "llama2_7b", **_PAPER, tasks=TASKS[:3], longbench="data/longbench"),
}
get_config = getter(SIZES)
