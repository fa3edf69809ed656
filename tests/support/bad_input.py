"""What the tests of bad input share: a folder with everything that commands read, and checks of a refusal."""

import re
from collections.abc import Callable
from pathlib import Path

from support.checkpoints import write_checkpoint
from support.commands import CONFIG_FILE, Ended
from support.study_records import figures, write_study
from support.tiny_run import evaluated_corpus, tiny_corpus, tiny_model, tiny_run

from drope_jax.evaluate import results
from drope_jax.interop.exporting import export_model
from drope_jax.positions import RoPE
from drope_jax.train import train

OWN = """
import dataclasses
from drope_jax.transitions import Transition

class Bare(Transition):
  pass

def made():
  @dataclasses.dataclass(unsafe_hash=True)
  class Inner(Transition):
    rate: int = 1
  return Inner

Inner = made()
"""


def make_place(place: Path) -> Path:
  """A corpus, a config file (tiny.py), a finished run, an imported model, its exports, a study and own classes."""
  corpus = evaluated_corpus(tiny_corpus(place / "unevaluated"), place / "corpus")
  (place / "tiny.py").write_text(CONFIG_FILE.format(corpus=corpus))
  (place / "own.py").write_text(OWN)
  train(tiny_run(corpus, steps=2, checkpoint_every=1), place / "finished")
  write_checkpoint(tiny_model(positions=RoPE()), place / "imported")
  export_model(place / "imported", place / "hf", format="llama")
  export_model(place / "imported", place / "gguf", format="gguf")
  (place / "study").mkdir()
  write_study(place / "study")
  results.append(place / "study" / "results.jsonl", figures({"DroPE": (3.3, None, None, None)}, {}))
  return place


def digest(folder: Path) -> dict[str, tuple[int, int] | None]:
  """The size and time of each file; None for a folder, in which a lock may come and go."""
  found = {str(path.relative_to(folder)): path for path in folder.rglob("*")}
  return {
    name: None if path.is_dir() else (path.stat().st_size, path.stat().st_mtime_ns) for name, path in found.items()
  }


def check_refused(ended: Ended, named: str) -> None:
  """Asserts status 1 or 2, and one line that names what is wrong; log lines may come before it."""
  assert ended.status in (1, 2), ended
  *before, last = ended.stderr.splitlines()
  assert last.startswith("error: ") and named in last, ended.stderr
  assert all(re.match(r"\d\d:\d\d:\d\d ", line) for line in before), ended.stderr


def check_input(command: Callable[..., Ended], place: Path, out: Path, line: str, named: str) -> None:
  """Asserts that the command of a line is refused, and writes neither `out` nor anything in `place`."""
  before = digest(place)
  check_refused(command(*line.format(place=place, out=out).split()), named)
  assert digest(place) == before and not out.exists()
