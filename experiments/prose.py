"""Makes a dataset of English from Debian packages: `python -m experiments.prose --out=DIR [--debs=FOLDER]`.

| package        | documents                                                                                     |
|----------------|-----------------------------------------------------------------------------------------------|
| anarchism      | An Anarchist FAQ: long chapters of plain prose (GPL-2); 11.7M characters, 28 chapters >= 140k |
| python3.11-doc | the documentation of Python, in reStructuredText (PSF); 11.0M characters                      |
| linux-doc-6.1  | that of the Linux kernel, without its translations, likewise (GPL-2); 21.3M characters        |

`apt-get download` fetches the packages (nothing is installed, and no privileges are needed), or they are read from a
folder of .deb files. OUT becomes a TFDS dataset with three splits: `train`, and two of long chapters of the FAQ that
are in no other split, `heldout` to measure on and `fit` to fit a temperature on. (18 of their 5,073 long paragraphs are
also quoted in chapters of `train`.) The same packages give the same dataset: 10.7M, 0.75M and 0.29M tokens of
SmolLM2's.

Models are measured on prose alone, but four fifths of the training text are technical documentation, since Debian has
little other running English text in bulk: dict-gcide and dict-foldoc are dictionaries, fortunes and jargon-text are
collections of snippets, bible-kjv has a format of its own and a text that every model knows by heart, and
debian-handbook and gnome-user-docs are small.
"""

import gzip
import hashlib
import logging
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from drope_jax import cli
from drope_jax.data.corpus import build_corpus
from drope_jax.errors import ConfigError, FileError, ToolError

OUT = cli.define_path(
  "out", None, "Directory of the dataset; a dataset that is there is kept.", required=True, local=True
)
DEBS = cli.define_path("debs", None, "Folder of .deb files; default: download them with apt-get.", local=True)


class Package(NamedTuple):
  """Where the documents are in a package."""

  folder: str
  pattern: str  # of files below `folder`
  without: str | None = None  # a subfolder to leave out


SOURCES = {
  "anarchism": Package("usr/share/doc/anarchism/markdown", "*.md.gz"),
  "python3.11-doc": Package("usr/share/doc/python3.11/html/_sources", "**/*.txt"),
  "linux-doc-6.1": Package("usr/share/doc/linux-doc-6.1/html/_sources", "**/*.txt", without="translations"),
}
PROSE = "anarchism"  # the package that is measured on
LONG = 140_000  # characters: in plain English more than 32,768 tokens, 4 times SmolLM2's context
HELD_OUT, FIT = 12, 6  # long documents in the splits `heldout` and `fit`

logger = logging.getLogger("experiments.prose")


class Document(NamedTuple):
  """A text and its origin."""

  package: str
  name: str  # its path in the package
  text: str


def run_program(command: Sequence[str], directory: Path) -> None:
  """Runs a program. Raises ToolError if it is missing or fails."""
  try:
    subprocess.run(command, cwd=directory, check=True, capture_output=True, text=True)
  except FileNotFoundError as error:
    raise ToolError(
      f"{command[0]} is not installed here; "
      f"give --debs=FOLDER with the .deb files of {', '.join(SOURCES)}, and dpkg to unpack them"
    ) from error
  except subprocess.CalledProcessError as error:
    said = [line for line in error.stderr.splitlines() if line.startswith(("E:", "dpkg"))] or [
      f"exit {error.returncode}"
    ]
    raise ToolError(f"{' '.join(command)}: {said[0]}") from error


def _package_file(package: str, folder: Path) -> Path:
  """The package's .deb in `folder`, the last by name if there are several."""
  found = sorted(folder.glob(f"{package}_*.deb"))
  if not found:
    raise ConfigError(f"--debs: {folder} has no {package}_*.deb")
  return found[-1]


def gather(debs: Path | None) -> list[Document]:
  """The documents of all packages, in the order of their names.

  Args:
    debs: a folder with a .deb file of each package; None: download them.

  Raises:
    ToolError: a program is missing or fails.
    ConfigError: `debs` has no file of a package.
    FileError: a package has no documents where they should be.
  """
  documents = []
  with tempfile.TemporaryDirectory() as draft:
    for package, (folder, pattern, without) in SOURCES.items():
      if debs is None:
        logger.info("downloading %s", package)
        run_program(["apt-get", "download", package], Path(draft))
      unpacked = Path(draft) / package
      run_program(["dpkg", "-x", str(_package_file(package, debs or Path(draft))), str(unpacked)], Path(draft))
      top = unpacked / folder
      paths = sorted(path for path in top.glob(pattern) if path.is_file() and path.relative_to(top).parts[0] != without)
      if not paths:
        raise FileError(f"the package {package} has no {folder}/{pattern}; is it another version?")
      documents += [Document(package, str(path.relative_to(unpacked)), _text(path)) for path in paths]
  return [document for document in documents if document.text]


def _text(path: Path) -> str:
  data = path.read_bytes()
  return (gzip.decompress(data) if path.suffix == ".gz" else data).decode(errors="replace").strip()


def split(documents: Sequence[Document]) -> dict[str, list[str]]:
  """The texts of each split. A hash of their names decides which long documents of prose are held out.

  Raises:
    FileError: there are not enough long documents.
  """
  long = [document for document in documents if document.package == PROSE and len(document.text) >= LONG]
  if len(long) < HELD_OUT + FIT:
    raise FileError(
      f"{len(long)} documents of {PROSE} have {LONG:,} characters or more; {HELD_OUT + FIT} are needed to hold out"
    )
  long.sort(key=lambda document: hashlib.sha256(document.name.encode()).digest())
  apart = {document.name for document in long[: HELD_OUT + FIT]}
  return {
    "train": [document.text for document in documents if document.name not in apart],
    "heldout": [document.text for document in long[:HELD_OUT]],
    "fit": [document.text for document in long[HELD_OUT : HELD_OUT + FIT]],
  }


def main() -> None:
  out = Path(OUT.value)
  if (out / "dataset_info.json").exists():
    logger.info("%s: there is a dataset already", out)
    return
  if out.exists() and (not out.is_dir() or any(out.iterdir())):
    raise ConfigError(f"--out: {out} holds something else; choose another directory")
  if DEBS.value is not None and not Path(DEBS.value).is_dir():
    raise ConfigError(f"--debs: {DEBS.value} is not a folder")
  splits = split(gather(None if DEBS.value is None else Path(DEBS.value).resolve()))
  build_corpus(out, splits)
  for name, texts in splits.items():
    logger.info("%-8s %5d documents, %10d characters", name, len(texts), sum(map(len, texts)))


if __name__ == "__main__":
  cli.run(main)
