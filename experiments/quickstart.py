"""The main job: `python -m experiments.quickstart [--workdir=DIR] [--steps=N] [--seed=N] [--config.NAME=VALUE ...]`.

Pretrains with RoPE, drops, recalibrates, trains the controls, evaluates, and writes DIR/report.md. The settings are
those of experiments/studies/quickstart.py; `--steps` is the length of the pretraining and scales the recalibration.
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from drope_jax import cli
from experiments.study import run_study

SETTINGS = str(Path(__file__).parent / "studies" / "quickstart.py")
CONFIG = config_flags.DEFINE_config_file("config", None, "Settings of the study.")
WORKDIR = flags.DEFINE_string("workdir", "runs/quickstart", "Where everything goes.")
STEPS = flags.DEFINE_integer(
  "steps", None, "Steps of the pretraining; the recalibration keeps its share.", lower_bound=1
)
DATA = flags.DEFINE_string("data", None, "Prose to train on, instead of docstrings: see drope_jax/data/sources/at.py.")
SEED = flags.DEFINE_integer("seed", None, "Of weights, data and needles.")


def main() -> None:
  # By name: config_flags imports the file anew, so its class is another one than ours.
  settings = cli.settings(CONFIG, "a Quickstart", lambda found: type(found).__name__ == "Quickstart")
  if STEPS.value is not None:
    share = settings.recalibrate_steps / settings.pretrain_steps
    settings.pretrain_steps, settings.recalibrate_steps = STEPS.value, max(round(STEPS.value * share), 1)
  if DATA.value is not None:
    settings.data = DATA.value
  if SEED.value is not None:
    settings.seed = SEED.value
  run_study(settings, Path(WORKDIR.value).resolve())


if __name__ == "__main__":
  cli.run(main, default_config=SETTINGS)
