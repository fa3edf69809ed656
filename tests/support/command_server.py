"""Run by commands.py: imports the library once, then forks a process for each command line from stdin.

A command is a line of JSON: {"command": [module, arguments ...], "terminate_at": path or null, "cwd": path or null}.
With the module "-c" the first argument is the program, as for Python itself. SIGTERM is sent as soon as the path
`terminate_at` exists. The command runs in `cwd`, and can import the modules there. The answer is a line of JSON with
the exit status, stdout and stderr.
"""

import json
import os
import runpy
import select
import signal
import sys
import tempfile
import time
import traceback
import types
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

LONGEST_SECONDS = 600  # after which a command is killed


def start(module: str, *arguments: str) -> None:
  """Runs the command in this process, which has forked for it."""
  sys.argv = [module, *arguments]
  if module != "-c":
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    return
  del sys.argv[1]
  main = types.ModuleType("__main__")
  sys.modules["__main__"] = main
  exec(arguments[0], main.__dict__)


def wait(child: int, terminate_at: str | None) -> int:
  """The status of the child as waitpid gives it."""
  deadline = time.monotonic() + LONGEST_SECONDS
  while terminate_at is not None and time.monotonic() < deadline:
    ended, status = os.waitpid(child, os.WNOHANG)
    if ended:
      return status
    if os.path.exists(terminate_at):
      os.kill(child, signal.SIGTERM)
      break
    time.sleep(0.02)
  if not select.select([os.pidfd_open(child)], [], [], LONGEST_SECONDS)[0]:
    os.kill(child, signal.SIGKILL)
  return os.waitpid(child, 0)[1]


def run(command: list[str], terminate_at: str | None, cwd: str | None) -> dict:
  with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
    child = os.fork()
    if not child:
      os.dup2(out.fileno(), 1)
      os.dup2(err.fileno(), 2)
      status = 70
      try:
        if cwd is not None:
          os.chdir(cwd)
          sys.path.insert(0, cwd)
        start(*command)
        status = 0
      except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
      except BaseException:
        traceback.print_exc()
      finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    ended = wait(child, terminate_at)
    out.seek(0)
    err.seek(0)
    return {"status": os.waitstatus_to_exitcode(ended), "stdout": out.read(), "stderr": err.read()}


if __name__ == "__main__":
  warnings.simplefilter("ignore")
  # Forking is safe only as long as no device has been used.
  assert not jax._src.xla_bridge.backends_are_initialized()
  for line in sys.stdin:
    print(json.dumps(run(**json.loads(line))), flush=True)
