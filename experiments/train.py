"""One run: `python -m experiments.train --config=FILE[:ARG] --workdir=DIR [--config.optim.peak_lr=1e-3 ...]`.

FILE's `get_config(ARG)` returns a TrainConfig. The same command goes on where an interrupted run stopped.
"""

import logging

from absl import flags
from ml_collections import config_flags

from drope_jax.config import checked
from drope_jax.train import train
from experiments import cli

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, and its argument: FILE[:ARG].")
WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run: config, metrics and checkpoints.", required=True)
flags.mark_flag_as_required("config")

logger = logging.getLogger("experiments.train")


def main() -> None:
  outcome = train(checked(cli.settings(CONFIG)), WORKDIR.value)
  if outcome.finished:
    logger.info("finished: step %d in %s", outcome.step, WORKDIR.value)
  else:
    logger.info("stopped at step %d, which is saved; run the same command to go on from there", outcome.step)


if __name__ == "__main__":
  cli.run(main)
