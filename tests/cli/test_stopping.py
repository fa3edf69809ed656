"""SIGTERM and Ctrl-C in every command and at every moment: one line, a sensible status, nothing half done."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from support.processes import children, command_line
from support.tiny_run import contents, tiny_corpus

from drope_jax.data.corpus import build_corpus
from drope_jax.interrupts import ends_at_second_ctrl_c

ROOT = Path(__file__).parents[2]
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}


def started(*command, **environment):
  """A process in a group of its own, as a terminal starts it."""
  return subprocess.Popen(
    [sys.executable, *map(str, command)],
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    | {name: str(value) for name, value in environment.items()},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    start_new_session=True,
  )


def ended(process, timeout=60):
  """Its exit status, and the lines that it wrote to stderr."""
  try:
    said = process.communicate(timeout=timeout)[1]
  finally:
    process.kill()
  return process.returncode, said.splitlines()


def wait_until(there, process):
  deadline = time.monotonic() + 200
  while not there():
    assert process.poll() is None and time.monotonic() < deadline, ended(process)
    time.sleep(0.02)


def has_loaded(process, library):
  """Whether a process has mapped a file of this name: how far its imports are."""
  return library in Path(f"/proc/{process.pid}/maps").read_text()


# --- while it imports -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("module", "number"), [("experiments.train", "SIGINT"), ("drope_jax.interop", "SIGTERM")])
def test_a_command_that_still_imports_ends_in_one_line(module, number):
  process = started("-m", module)
  wait_until(lambda: has_loaded(process, "_multiarray_umath"), process)  # of NumPy: some of JAX's imports are left
  process.send_signal(signal.Signals[number])
  status, lines = ended(process)
  assert status == STATUS[signal.Signals[number]]
  assert lines[-1] == f"stopped by {'Ctrl-C' if number == 'SIGINT' else number}" and len(lines) == 1


def test_a_program_that_imports_the_library_keeps_its_handlers():
  program = "import signal, drope_jax; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
  assert started("-c", program).communicate()[0] == "True\n"


# --- twice ------------------------------------------------------------------------------------------------------------

SAVES = """
import hashlib, os, signal
from drope_jax import cli, distributed

def main():
  with distributed.sigterm() as stop:
    os.kill(os.getpid(), signal.SIGINT)
    assert stop(1)
    print("saves", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # minutes of native code, in which no handler of Python's runs

cli.run(main)
"""


def test_it_is_listened_for_however_long_sockets_wait_by_default(monkeypatch):
  failed = []
  monkeypatch.setattr(threading, "excepthook", failed.append)
  socket.setdefaulttimeout(0.02)
  try:
    with ends_at_second_ctrl_c():
      time.sleep(0.1)
  finally:
    socket.setdefaulttimeout(None)
  assert not failed


def test_a_second_ctrl_c_ends_a_save_at_once():
  process = started("-c", SAVES)
  assert process.stdout.readline() == "saves\n"
  process.send_signal(signal.SIGINT)  # right behind the first: `timeout` sends one to the process and one to its group
  time.sleep(3)  # the second counts if a second lies between
  assert process.poll() is None
  process.send_signal(signal.SIGINT)
  began = time.monotonic()
  assert ended(process) == (130, ["stopped at once by a second Ctrl-C; what was saved before stays"])
  assert time.monotonic() - began < 30  # the save takes minutes


# --- in the midst of it -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
  """A corpus, prose in three splits, a run, and a folder of transformers'."""
  from support.commands import make_files
  from support.pretrained import hugging_face_model, write_folder

  directory = tmp_path_factory.mktemp("stored")
  make_files(directory)
  splits = {name: ["One sentence. Another one, longer."] * 9 for name in ("train", "heldout", "fit")}
  build_corpus(directory / "prose", splits)
  write_folder(hugging_face_model("Llama", tie_word_embeddings=True), directory / "llama")
  return directory


COMMANDS = {
  "import": ("drope_jax.interop", "import", "{stored}/llama", "{out}"),
  "export": ("drope_jax.interop", "export", "{stored}/finished", "{out}"),
  "prose": ("experiments.prose", "--out={out}"),
  "recall_corpus": ("experiments.recall_corpus", "--prose={stored}/prose", "--out={out}"),
  "evaluate": ("experiments.evaluate", "--checkpoint={stored}/finished", "--out={out}", "--tasks=perplexity"),
}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_is_stopped_leaves_nothing_half_done(stored, tmp_path, name, number):
  module, *arguments = (word.format(stored=stored, out=tmp_path / "out") for word in COMMANDS[name])
  before, reached = contents(stored), tmp_path / "reached"
  process = started("-m", module, "--import=tests/support/slow_commands.py", *arguments, REACHED=reached)
  wait_until(reached.exists, process)
  os.killpg(process.pid, number)
  status, lines = ended(process)
  assert status == 0 and "stopped by" in lines[-1] and "Traceback" not in "".join(lines), lines
  assert ("to go on from there" in lines[-1]) == (name == "evaluate")
  left = [path.name for path in tmp_path.iterdir()]
  assert {"reached"} <= set(left) <= {"reached", "out"}, left
  out = tmp_path / "out"
  whole = {"tokenizer", "corpus_made_of.json", "results.jsonl"}  # the second is of a corpus that is still to be made
  assert not out.exists() or {path.name for path in out.iterdir()} <= whole
  assert contents(stored) == before


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_tokenising_in_several_processes_is_stopped_quietly_and_goes_on(tmp_path, number):
  corpus, out = tiny_corpus(tmp_path / "corpus"), tmp_path / "out"
  command = ("-m", "drope_jax.data.tokenize", f"--data={corpus}", f"--out={out}", "--processes=2")
  process = started(*command)
  wait_until((out / "plan.json").exists, process)  # its processes import their libraries
  time.sleep(0.5)
  os.killpg(process.pid, number)
  status, lines = ended(process)
  assert status == 0 and lines[-1].endswith("run the same command to go on from there"), lines
  assert "Traceback" not in "".join(lines)
  assert ended(started(*command), 200)[0] == 0
  assert (out / "meta.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_whose_readers_still_start_is_stopped_quietly_and_goes_on(stored, tmp_path, number):
  command = ("-m", "experiments.train", f"--config={stored / 'tiny.py'}", f"--workdir={tmp_path / 'run'}")
  process = started(*command, "--config.data.num_workers=2")
  wait_until(lambda: b"spawn_main" in b"".join(map(command_line, children(process.pid))), process)
  time.sleep(0.3)
  os.killpg(process.pid, number)  # as a terminal does; a handler in the readers would come after their imports
  status, lines = ended(process, 200)
  assert status == 0 and "stopped" in lines[-1] and "Traceback" not in "".join(lines), lines
  status, lines = ended(started(*command), 200)
  assert status == 0 and "finished: step 10" in lines[-1], lines
