"""All of LongBench, and two of its tasks by the length of the prompt (paper: tables 7, 8 and 9).

Table 7, the average over LongBench, SmolLM-360M: as it is 2.59, PI 2.48, NTK 12.21, YaRN 13.07, DroPE 13.81, a far
smaller lead than on the four tasks of table 2. Tables 8 and 9: MultiFieldQA and MuSiQue in buckets of 0-4K, 4-8K,
8-16K and 16-32K tokens. The runs are those of table2_table3_longbench.py, with the same control: RoPE trained on for
the same tokens.

`python -m experiments.study --config=experiments/studies/tables7_8_9_by_length.py:SIZE --workdir=DIR --seeds=0,1,2`,
with the `--runs=DIR` of that study nothing is trained again. The buckets are in the report's tables by tokens. Instead,
`mini` and `small` measure loss and needles from 1 to 12 times the context.

| size  |  parameters |     T | runs | rows |     tokens | FLOPs (PaLM) |    minutes (on) |
| :---- | ----------: | ----: | ---: | ---: | ---------: | -----------: | --------------: |
| mini  |     935,040 |   128 |    3 |   10 |       1.3M |      8.18e12 | 3 (2 CPU cores) |
| small |  15,735,168 |   256 |    3 |   10 |     125.0M |      1.30e16 |    4 (one H200) |
| paper | 361,862,080 | 2,048 |    2 |    8 | 251,658.2M |      7.36e20 |                 |

Tokens and FLOPs (PaLM) are totals over the runs of a seed. Numbers to expect: docs/results/tables7_8_9_by_length.md.
"""

import dataclasses
from typing import ClassVar

from experiments.studies import sizes
from experiments.studies.branching import getter
from experiments.studies.table2_table3_longbench import BY_LENGTH, LongTasks


@dataclasses.dataclass(unsafe_hash=True, kw_only=True)
class ByLength(LongTasks):
  """The settings, as `--config.NAME=VALUE`."""

  title: ClassVar[str] = "Long tasks by length (paper: tables 7, 8 and 9)"

  extensions: tuple[float, ...] = (1, 2, 4, 8, 12)


SIZES = {
  "mini": sizes.of(ByLength, sizes.mini, needles_per_depth=20),
  "small": sizes.of(ByLength, sizes.small, needles_per_depth=40),
  "paper": sizes.of_recipe(
    ByLength,
    "smollm_360m_120b",
    methods=BY_LENGTH,
    extensions=(16,),
    tasks=("longbench_whole",),
    longbench="data/longbench",
  ),
}
get_config = getter(SIZES)
