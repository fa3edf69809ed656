"""experiments.prose, with .deb files that the tests make."""

import gzip
import os
import shutil
import subprocess

import pytest

from drope_jax.data.splits import documents
from drope_jax.errors import ConfigError, FileError, ToolError
from experiments import prose

LONG = "A long chapter. " * (prose.LONG // 16 + 1)
NUM_LONG = prose.HELD_OUT + prose.FIT + 2


def make_deb(folder, package, files):
  tree = folder / package
  for name, text in files.items():
    path = tree / name
    path.parent.mkdir(parents=True, exist_ok=True)
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
  (tree / "DEBIAN").mkdir(parents=True)
  control = f"Package: {package}\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: text\n"
  (tree / "DEBIAN" / "control").write_text(control)
  command = ["dpkg-deb", "--root-owner-group", "-Znone", "-b", str(tree), str(folder / f"{package}_1_all.deb")]
  subprocess.run(command, check=True, capture_output=True)
  shutil.rmtree(tree)


@pytest.fixture(scope="module")
def debs(tmp_path_factory):
  """A folder with the three packages: long chapters, short and long pages, an empty page, and files to be ignored."""
  if shutil.which("dpkg-deb") is None:
    pytest.skip("dpkg-deb is not installed")
  folder = tmp_path_factory.mktemp("debs")
  chapters = {f"usr/share/doc/anarchism/markdown/sec{i:02}.md.gz": f"# {i}\n{LONG}" for i in range(NUM_LONG)}
  make_deb(folder, "anarchism", chapters | {"usr/share/doc/anarchism/html/sec00.html": LONG})
  pages = {"a/deep.rst.txt": "Deep.", "flat.rst.txt": "Flat\x80.", "empty.rst.txt": " \n"}
  pages |= {f"api/{i}.rst.txt": f"Reference {i}. {LONG}" for i in range(prose.HELD_OUT)}
  pages["translations/zh_CN/index.rst.txt"] = "Translated."
  for package, place in (("python3.11-doc", "python3.11"), ("linux-doc-6.1", "linux-doc-6.1")):
    make_deb(folder, package, {f"usr/share/doc/{place}/html/_sources/{name}": text for name, text in pages.items()})
  return folder


def test_long_documents_are_held_out_whole(debs):
  gathered = prose.gather(debs)
  assert [document.name for document in gathered if "Translated" in document.text] == [
    "usr/share/doc/python3.11/html/_sources/translations/zh_CN/index.rst.txt"  # which there would be another thing
  ]
  splits = prose.split(gathered)
  assert {name: len(texts) for name, texts in splits.items()} == {
    "train": 2 + 2 * (2 + prose.HELD_OUT) + 1,
    "heldout": prose.HELD_OUT,
    "fit": prose.FIT,
  }
  apart = [*splits["heldout"], *splits["fit"]]
  assert all(len(text) >= prose.LONG and text.startswith("# ") for text in apart)  # of the prose, no reference
  everything = [text for texts in splits.values() for text in texts]
  assert sorted(everything) == sorted(document.text for document in gathered)  # each once
  assert prose.split(gathered[::-1])["heldout"] == splits["heldout"]  # whatever the order of the files


def test_the_command_makes_a_dataset_once(command, debs, tmp_path):
  first = command("experiments.prose", f"--out={tmp_path / 'prose'}", f"--debs={debs}")
  assert first.status == 0, first.stderr
  assert "heldout     12 documents" in first.stderr
  assert len(documents(tmp_path / "prose", "fit")) == prose.FIT
  assert "Deep." in list(documents(tmp_path / "prose", "train"))
  again = command("experiments.prose", f"--out={tmp_path / 'prose'}", "--debs=/nowhere")
  assert (again.status, again.stderr.split(" ", 1)[1]) == (0, f"{tmp_path / 'prose'}: there is a dataset already\n")


def test_a_missing_program_is_one_line(command, tmp_path):
  program = f"""
import os
from drope_jax import cli
from experiments import prose
os.environ["PATH"] = {str(tmp_path)!r}
cli.run(prose.main)
"""
  ended = command("-c", program, f"--out={tmp_path / 'prose'}")
  assert ended.status == 1
  *_, line = ended.stderr.splitlines()
  assert line.startswith("error: apt-get is not installed here; give --debs=FOLDER with the .deb files of anarchism,")
  assert not (tmp_path / "prose").exists()


def test_a_package_that_cannot_be_had_is_named(tmp_path, monkeypatch):
  fake = tmp_path / "bin" / "apt-get"
  fake.parent.mkdir()
  fake.write_text("#!/bin/sh\necho 'W: a warning' >&2\necho 'E: Unable to locate package' $2 >&2\nexit 100\n")
  fake.chmod(0o755)
  monkeypatch.setenv("PATH", str(fake.parent), prepend=os.pathsep)
  with pytest.raises(ToolError, match=r"^apt-get download anarchism: E: Unable to locate package anarchism$"):
    prose.gather(None)


def test_a_folder_without_a_package_names_it(debs, tmp_path):
  shutil.copy(debs / "anarchism_1_all.deb", tmp_path)
  with pytest.raises(ConfigError, match=r"has no python3\.11-doc_"):
    prose.gather(tmp_path)


def test_a_file_that_is_no_package_is_named(debs, tmp_path):
  (tmp_path / "anarchism_1_all.deb").write_text("not a package")
  with pytest.raises(ToolError, match=r"anarchism_1_all\.deb.*: dpkg"):
    prose.gather(tmp_path)


def test_too_few_long_documents_are_refused(debs):
  gathered = prose.gather(debs)
  few = [document for document in gathered if document.package != "anarchism"] + gathered[:17]
  with pytest.raises(FileError, match=r"^17 documents of anarchism have 140,000 characters or more; 18 are needed"):
    prose.split(few)


def test_what_is_there_already_is_not_touched(command, tmp_path):
  (tmp_path / "notes.txt").write_text("mine")
  ended = command("experiments.prose", f"--out={tmp_path}")
  assert ended.status == 2 and "holds something else" in ended.stderr
  assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
