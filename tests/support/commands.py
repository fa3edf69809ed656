"""What the tests of commands share: a config file, runs to measure, and a server that runs commands quickly."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from support.tiny_run import evaluated_corpus, tiny_corpus, tiny_model, tiny_run

from drope_jax.train import train

ROOT = Path(__file__).parents[2]
CONFIG_FILE = """
from drope_jax.config import DataConfig, InitConfig, ModelConfig, OptimConfig, TrainConfig
from drope_jax.transitions import Keep


def get_config(init=None):
  sizes = {{"d_model": 16, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "head_dim": 4, "d_ff": 24}}
  return TrainConfig(
    model=ModelConfig(vocab_size=264, **sizes),
    init=InitConfig(checkpoint=init, transition=Keep()) if init else None,
    data=DataConfig(directory={corpus!r}, context=16, batch_size=8),
    optim=OptimConfig(peak_lr=1e-2, warmup_steps=2),
    steps=10,
    log_every=1,
    checkpoint_every=5,
    trackers=(),
  )
"""


class Ended(NamedTuple):
  """How a command ended."""

  status: int
  stdout: str
  stderr: str

  def error(self) -> str:
    """The error message, which must be a single line."""
    lines = self.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), self.stderr
    return lines[0]


def make_files(directory: Path) -> Path:
  """A corpus, a config file (tiny.py), a finished run (finished), and a run of a wider model (wider)."""
  corpus = evaluated_corpus(tiny_corpus(directory / "unevaluated"), directory / "corpus")
  (directory / "tiny.py").write_text(CONFIG_FILE.format(corpus=corpus))
  train(tiny_run(corpus), directory / "finished")
  wider = {"model": tiny_model(d_ff=32), "optim": {"warmup_steps": 0}, "steps": 1}
  train(tiny_run(str(directory / "unevaluated"), **wider), directory / "wider")
  return directory


@contextlib.contextmanager
def serving(compiled: Path, **environment: str) -> Iterator[Callable[..., Ended]]:
  """A function that runs `python -m MODULE ARGUMENTS`, or `python -c PROGRAM ARGUMENTS` where the module is "-c".

  That function sends SIGTERM as soon as the path `terminate_at` exists, and runs the command in `cwd`, by default the
  repository. Compiled programs are kept in `compiled`. `environment`: more variables for the commands.
  """
  server = subprocess.Popen(
    [sys.executable, str(ROOT / "tests" / "support" / "command_server.py")],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
    cwd=ROOT,
    env={
      **os.environ,
      "JAX_PLATFORMS": "cpu",
      "PYTHONPATH": str(ROOT),
      "JAX_COMPILATION_CACHE_DIR": str(compiled),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
      "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
      **environment,
    },
  )

  def run(module, *arguments, terminate_at=None, cwd=None):
    call = {
      "command": [module, *map(str, arguments)],
      "terminate_at": terminate_at and str(terminate_at),
      "cwd": cwd and str(cwd),
    }
    server.stdin.write(json.dumps(call) + "\n")
    server.stdin.flush()
    return Ended(**json.loads(server.stdout.readline()))

  yield run
  server.stdin.close()
  server.wait()
