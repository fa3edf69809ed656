"""Trains one run: `python -m experiments.train --config=FILE[:ARG] --workdir=DIR [--config.optim.peak_lr=1e-3 ...]`.

FILE's `get_config(ARG)` returns a TrainConfig; `--mesh=fsdp` or `--mesh=fsdp=4,tensor=2` replaces its mesh, then
overrides are applied. The same command resumes an interrupted run. Example:

  python -m experiments.train --config=experiments/configs/pretrain.py:rope --workdir=runs/rope \\
    --config.data.directory=DATASET --config.data.tokenizer=TOKENIZER_JSON --config.steps=100

`--extend` continues a finished run with other values of config.steps and of config.optim's peak_lr, schedule,
warmup_steps, decay_steps and floor. The learning rate of a step is then that of the new schedule at that step, counted
from the first step of the run.

A run resumes from its last checkpoint. If that is damaged, `--step=N` resumes from an earlier one and moves the later
ones to `superseded/`. Every start with `--step` goes back: leave it out of a script that restarts.

`--data=PATH` names the documents: parquet, JSON lines, text, a TFDS dataset, token shards (data/sources/at.py);
`--train_tokenizer=4096` trains a tokenizer on them.

On several hosts, run the same command on each (see launch/): srun, mpirun and TPU pods are recognised; elsewhere give
`--coordinator=HOST:PORT --num_processes=N --process_id=I`. Hosts that differ in settings, versions, code or data are
refused. When a host is lost, the others end with status 1 within `--host_timeout` seconds, and the same commands resume
from the last checkpoint.
"""

import dataclasses
import logging

import jax
from absl import flags

from drope_jax import cli, distributed, hosts
from drope_jax.config import TrainConfig
from drope_jax.data.prepare import reading
from drope_jax.errors import ConfigError
from drope_jax.train import train

CONFIG = cli.define_config("Config file, and its argument: FILE[:ARG].")
WORKDIR = cli.define_path("workdir", None, "Directory of the run: config, metrics and checkpoints.", required=True)
DATA = cli.define_path("data", None, "Documents to train on instead of the config's; see drope_jax/data/sources/at.py.")
TRAIN_TOKENIZER = flags.DEFINE_integer(
  "train_tokenizer", None, "Train a tokenizer with this many ids on the data, instead of the config's.", lower_bound=257
)
MESH = cli.define_mesh("Arrangement of the devices, instead of the config's")
DISTRIBUTED = flags.DEFINE_bool(
  "distributed", None, "Whether this is one of several processes; default: as the launcher says."
)
COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, without a launcher that is recognised.")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes, likewise.", lower_bound=1)
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Number of this process, from 0, likewise.", lower_bound=0)
START_TIMEOUT = flags.DEFINE_integer("start_timeout", 300, "Seconds that processes wait for each other.", lower_bound=1)
HOST_TIMEOUT = flags.DEFINE_integer(
  "host_timeout", hosts.TIMEOUT, "Seconds without a sign of life after which the other hosts end.", lower_bound=1
)
SHARED_WORKDIR = flags.DEFINE_bool("shared_workdir", False, "All hosts see the same directory at --workdir (NFS, ...).")
EXTEND = flags.DEFINE_bool("extend", False, "Continue the run in --workdir for other steps or at another rate.")
STEP = flags.DEFINE_integer(
  "step",
  None,
  "Go back to the checkpoint of this step and set later ones aside; at every start with this flag.",
  lower_bound=1,
)
STOPPED_STATUS = flags.DEFINE_integer(
  "stopped_status", 0, "Exit status of a run that SIGTERM or Ctrl-C stopped.", lower_bound=0, upper_bound=255
)

logger = logging.getLogger("experiments.train")


def configured() -> TrainConfig:
  """The config, with the mesh of `--mesh` and then the overrides applied."""
  return cli.settings(CONFIG, "a TrainConfig", lambda found: isinstance(found, TrainConfig), mesh=cli.mesh_config(MESH))


def check_vocabulary(config: TrainConfig, vocab_size: int | None) -> None:
  """Raises ConfigError, before the tokenizer is trained, if the config's model has fewer ids than `vocab_size`."""
  if config.model is not None and (vocab_size or 0) > config.model.vocab_size:
    raise ConfigError(
      f"--train_tokenizer is {vocab_size}, and config.model.vocab_size {config.model.vocab_size}, which must be at "
      f"least as large: lower the former, or give --config.model.vocab_size={vocab_size}"
    )


def connect() -> None:
  """Joins the other processes, if there are any; the first line of the log then says which process this is."""
  named = (COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
  given = any(value is not None for value in named)
  if DISTRIBUTED.value or given or (DISTRIBUTED.value is None and distributed.asked_for()):
    distributed.initialise(*named, timeout=START_TIMEOUT.value, host_timeout=HOST_TIMEOUT.value)
  if jax.process_count() > 1:  # a single process logs nothing here, so that an error is its only line
    logger.info(distributed.describe())
  if jax.process_index() > 0:  # further lines are the same on all processes
    logging.getLogger("drope_jax").setLevel(logging.WARNING)
    logging.getLogger("drope_jax.cli").setLevel(logging.INFO)  # except how each of them ended
  distributed.refuse_local(WORKDIR.value, SHARED_WORKDIR.value)


def main() -> None:
  config = configured()
  check_vocabulary(config, TRAIN_TOKENIZER.value)
  connect()
  with hosts.watched(HOST_TIMEOUT.value):
    config = dataclasses.replace(config, data=reading(config.data, DATA.value, TRAIN_TOKENIZER.value))
    outcome = train(config, WORKDIR.value, extend=EXTEND.value, from_step=STEP.value)
  if not outcome.finished:
    raise cli.Terminated(f"at step {outcome.step}, which is saved" if outcome.step else "before the first step")
  logger.info("finished: step %d in %s", outcome.step, WORKDIR.value)


if __name__ == "__main__":
  cli.run(
    main,
    stopped_status=STOPPED_STATUS,
    computes=True,
    saves_memory="twice config.optim.accumulation",
    leave=hosts.leave,
  )
