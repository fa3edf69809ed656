"""The quickstart: `python -m experiments.quickstart [--workdir=DIR] [--steps=N] [--seed=N] [--config.NAME=VALUE ...]`.

Pretrains with RoPE, drops it, recalibrates, trains the controls, evaluates, and writes DIR/report.md. The settings are
in experiments/studies/quickstart.py; `--steps` sets the length of the pretraining and scales the recalibration with it.
"""

from pathlib import Path

from absl import flags

from drope_jax import cli
from drope_jax.data.prepare import check_outside
from experiments.studies.quickstart import Quickstart
from experiments.study import run_study

SETTINGS = str(Path(__file__).parent / "studies" / "quickstart.py")
CONFIG = cli.define_config("Settings of the study.", default=SETTINGS)
WORKDIR = cli.define_path("workdir", "runs/quickstart", "Directory for data, runs and report.", local=True)
STEPS = flags.DEFINE_integer(
  "steps", None, "Steps of the pretraining; the recalibration is scaled with it.", lower_bound=1
)
DATA = cli.define_path("data", None, "Prose to train on instead of docstrings; see drope_jax/data/sources/at.py.")
SEED = cli.define_seed("For weights, data and needles.", default=None)


def main() -> None:
  settings = cli.settings(
    CONFIG, "a Quickstart", lambda found: isinstance(found, Quickstart), seed=SEED.value, data=DATA.value
  )
  check_outside(settings.data or "", WORKDIR.value, "--workdir")
  if STEPS.value is not None:
    share = settings.recalibrate_steps / settings.pretrain_steps
    settings.pretrain_steps, settings.recalibrate_steps = STEPS.value, max(round(STEPS.value * share), 1)
  run_study(settings, Path(WORKDIR.value).resolve())


if __name__ == "__main__":
  cli.run(main, computes=True, saves_memory="half of config.batch_size")
