"""One run: `python -m experiments.train --config=FILE[:ARG] --workdir=DIR [--config.optim.peak_lr=1e-3 ...]`.

FILE's `get_config(ARG)` returns a TrainConfig; `--mesh=fsdp` or `--mesh=fsdp=4,tensor=2` replaces its mesh, and then
overrides count. The same command goes on where an interrupted run stopped. Example:

  python -m experiments.train --config=experiments/configs/pretrain.py:rope --workdir=runs/rope \\
    --config.data.directory=DATASET --config.data.tokenizer=TOKENIZER_JSON --config.steps=100

A run that is finished goes on with `--extend`, under which these settings may differ from those it began with:
config.steps, and of config.optim peak_lr, schedule, warmup_steps, decay_steps and floor. The learning rate of a step is
then that of the new schedule at that step, counted from the first step of the run.

A run goes on from its last checkpoint. Where that one is damaged, `--step=N` goes on from another; the checkpoints
after it are set aside, in `superseded/`. Every start with `--step` goes back: leave it out of a script that restarts.

`--data=PATH` names the documents: parquet, JSON lines, text, a dataset of TFDS, token shards (data/sources/at.py);
`--train_tokenizer=4096` trains a tokenizer on them.

On several hosts the same command runs on each (see launch/): srun, mpirun and TPU pods are recognised, and elsewhere
`--coordinator=HOST:PORT --num_processes=N --process_id=I` says who is who. Hosts with other settings, versions, code or
data are refused; when one is lost, the others end with status 1 within `--host_timeout` seconds, and the same commands
go on from the last checkpoint.
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
DATA = cli.define_path("data", None, "What to train on, instead of the config's: see drope_jax/data/sources/at.py.")
TRAIN_TOKENIZER = flags.DEFINE_integer(
  "train_tokenizer", None, "Train a tokenizer of so many ids on the data, instead of the config's.", lower_bound=257
)
MESH = cli.define_mesh("Arrangement of the devices, instead of the config's")
DISTRIBUTED = flags.DEFINE_bool("distributed", None, "Is this one of several processes? Default: as the launcher says.")
COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, where no launcher says it.")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes there are, likewise.", lower_bound=1)
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.", lower_bound=0)
START_TIMEOUT = flags.DEFINE_integer("start_timeout", 300, "Seconds that processes wait for each other.", lower_bound=1)
HOST_TIMEOUT = flags.DEFINE_integer(
  "host_timeout", hosts.TIMEOUT, "Seconds without a sign of life after which the other hosts end.", lower_bound=1
)
SHARED_WORKDIR = flags.DEFINE_bool("shared_workdir", False, "All hosts see the same directory at --workdir (NFS, ...).")
EXTEND = flags.DEFINE_bool("extend", False, "Go on with the run of --workdir for other steps or at another rate.")
STEP = flags.DEFINE_integer(
  "step",
  None,
  "Go back to the checkpoint of this step, at every start with it; set later ones aside.",
  lower_bound=1,
)
STOPPED_STATUS = flags.DEFINE_integer(
  "stopped_status", 0, "Exit status of a run that SIGTERM or Ctrl-C stopped.", lower_bound=0, upper_bound=255
)

logger = logging.getLogger("experiments.train")


def configured() -> TrainConfig:
  """The config with the mesh of `--mesh`, and the overrides on top of it."""
  return cli.settings(CONFIG, "a TrainConfig", lambda found: isinstance(found, TrainConfig), mesh=cli.mesh_config(MESH))


def check_vocabulary(config: TrainConfig, vocab_size: int | None) -> None:
  """Raises ConfigError, before a tokenizer of so many ids is trained, if the model of the config has fewer."""
  if config.model is not None and (vocab_size or 0) > config.model.vocab_size:
    raise ConfigError(
      f"--train_tokenizer is {vocab_size}, and config.model.vocab_size {config.model.vocab_size}; it must be at least "
      f"as large: lower the one, or give --config.model.vocab_size={vocab_size}"
    )


def connect() -> None:
  """Joins the other processes, if there are any; the first line of the log then says which this is."""
  named = (COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
  given = any(value is not None for value in named)
  if DISTRIBUTED.value or given or (DISTRIBUTED.value is None and distributed.asked_for()):
    distributed.initialise(*named, timeout=START_TIMEOUT.value, host_timeout=HOST_TIMEOUT.value)
  if jax.process_count() > 1:  # one process has nothing to say before its errors, which are a line by themselves
    logger.info(distributed.describe())
  if jax.process_index() > 0:  # what follows is alike on all of them
    logging.getLogger("drope_jax").setLevel(logging.WARNING)
    logging.getLogger("drope_jax.cli").setLevel(logging.INFO)  # but each says how it ended
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
