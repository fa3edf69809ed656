"""Run by commands.py: imports the library once, then forks a process for each command line that stdin brings.

A command is a line of JSON, [module, arguments ...]; the answer is a line with its exit status, stdout and stderr.
"""

import json
import os
import runpy
import select
import sys
import tempfile
import traceback
import warnings

import grain  # noqa: F401
import jax
import orbax.checkpoint  # noqa: F401
import tensorflow_datasets  # noqa: F401

import drope_jax.cli
import drope_jax.evaluate.measure
import drope_jax.generation
import drope_jax.train  # noqa: F401
import experiments.study  # noqa: F401

LONGEST = 120  # seconds that a command may take; then it is killed, and its status is -9


def run(module: str, *arguments: str) -> dict:
  with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
    child = os.fork()
    if not child:
      os.dup2(out.fileno(), 1)
      os.dup2(err.fileno(), 2)
      status = 70
      sys.argv = [module, *arguments]
      try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        status = 0
      except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
      except BaseException:
        traceback.print_exc()
      finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    if not select.select([os.pidfd_open(child)], [], [], LONGEST)[0]:
      os.kill(child, 9)
    _, ended = os.waitpid(child, 0)
    out.seek(0)
    err.seek(0)
    return {"status": os.waitstatus_to_exitcode(ended), "stdout": out.read(), "stderr": err.read()}


if __name__ == "__main__":
  warnings.simplefilter("ignore")
  # No device has been touched yet: that is what makes forking safe.
  assert not jax._src.xla_bridge.backends_are_initialized()
  for line in sys.stdin:
    print(json.dumps(run(*json.loads(line))), flush=True)
