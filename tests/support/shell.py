"""A shell in a folder like a fresh clone, for the commands of the documentation.

The project's commands are run by the command server, which has imported the library: bash finds a `python` that passes
them on. `pip install` installs nothing, and fails for an extra that setup.cfg lacks.
"""

import configparser
import contextlib
import json
import os
import shlex
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from support.commands import ROOT, Ended

PYTHON = """#!{python} -ES
import json, os, socket, sys

words = sys.argv[1:]
if words[:1] != ["-m"] or not words[1].startswith(("experiments", "drope_jax")):
  os.execv({python!r}, [{python!r}, *words])
with socket.socket(socket.AF_UNIX) as server, server.makefile("rw") as lines:
  server.connect({address!r})
  lines.write(json.dumps([os.getcwd(), *words[1:]]) + "\\n")
  lines.flush()
  status, out, err = json.loads(lines.readline())
sys.stdout.write(out)
sys.stderr.write(err)
sys.exit(status)
"""
PIP = """#!{python} -ES
import sys

for word in sys.argv[2:]:
  extras = word.partition("[")[2].rstrip("]").split(",") if word.startswith(".[") else []
  missing = [extra for extra in extras if extra not in {extras!r}]
  if missing:
    sys.exit("setup.cfg has no extra " + ", ".join(missing))
"""


def make_clone(folder: Path) -> Path:
  """A folder with links to the files of the repository: tests must not write to them."""
  folder.mkdir(parents=True, exist_ok=True)
  for name in ("drope_jax", "experiments", "docs", "README.md", "setup.cfg"):
    (folder / name).symlink_to(ROOT / name)
  return folder


@contextlib.contextmanager
def shell(folder: Path, command: Callable[..., Ended], added: Callable[[list[str]], list[str]]) -> Iterator[Callable]:
  """A function that runs code with bash in `folder`, and returns how it ended.

  Args:
    command: the fixture of this name.
    added: more flags for a command of the project.
  """
  tools = folder.parent / f"{folder.name}-bin"
  tools.mkdir()
  address, extras = str(tools / "server"), _extras()
  for name, text in (("python", PYTHON), ("pip", PIP)):
    (tools / name).write_text(text.format(python=sys.executable, address=address, extras=extras))
    (tools / name).chmod(0o755)
  with socket.socket(socket.AF_UNIX) as server:
    server.bind(address)
    server.listen()

    def serve() -> None:
      with contextlib.suppress(OSError):  # it is closed
        while True:
          with server.accept()[0] as connection, connection.makefile("rw") as lines:
            cwd, *words = json.loads(lines.readline())
            lines.write(json.dumps(command(*words, *added(words), cwd=cwd)) + "\n")

    threading.Thread(target=serve, daemon=True).start()
    yield lambda code: _run(code, folder, {"PATH": f"{tools}:{os.environ['PATH']}"})
    server.shutdown(socket.SHUT_RDWR)


def _run(code: str, folder: Path, environment: Mapping[str, str]) -> Ended:
  ended = subprocess.run(
    ["bash", "-euo", "pipefail", "-c", code],
    cwd=folder,
    env={**os.environ, **environment},
    capture_output=True,
    text=True,
  )
  return Ended(ended.returncode, ended.stdout, ended.stderr)


def _extras() -> list[str]:
  parser = configparser.ConfigParser()
  parser.read(ROOT / "setup.cfg")
  return list(parser["options.extras_require"])


def words_of(flags: str) -> list[str]:
  """Splits flags as a shell does."""
  return shlex.split(flags)
