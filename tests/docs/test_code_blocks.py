"""The code on the pages that a reader types is run: every block, top to bottom, each page in a folder of its own."""

import random
import shutil

import pytest
from support.pages import FIXTURES, PAGES, ROOT, RUN, Block, blocks_of, name_of
from support.shell import make_clone, shell, words_of
from support.tiny_quickstart import SETTINGS as QUICKSTART
from support.tiny_run import WORDS

SHOWN = ("text", "bibtex", "json", "toml", "mermaid", "")  # languages that nobody runs
FEW_STEPS = ("--config.steps=2", "--config.optim.warmup_steps=0")
SMALL = ("--config.model.d_model=32", "--config.model.head_dim=8", "--config.model.d_ff=64")
NOT_RUN = {
  "README.md": ("the tests themselves",),
  "docs/howto/curves.md": ("a server that runs until it is stopped",),
  "docs/howto/evaluate.md": ("needs the extra eval, and a network for the task",),
  "docs/howto/export.md": ("needs llama.cpp",),
  "docs/howto/gpu.md": (
    "compiles for minutes, with JAX's CUDA plugin",
    "needs a GPU",
    "downloads gigabytes",
    "needs these wheels",
    "needs a GPU",
  ),
  "docs/howto/model.md": ("needs an accelerator",),
  "docs/howto/pod.md": ("compiles for minutes", "needs a TPU pod"),
}


def shorter(words: list[str]) -> list[str]:
  """Flags with which a command of the pages takes seconds."""
  module, *flags = words
  if module == "experiments.quickstart":
    return list(QUICKSTART)
  if module == "experiments.train" and "--config=experiments/configs/small.py" in flags:
    return [*FEW_STEPS, *SMALL]
  if module == "experiments.train" and "--config=experiments/configs/small.py:drope" in flags:
    return list(FEW_STEPS)
  return []


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_comments_are_understood_and_blocks_have_a_language(path):
  for block in blocks_of(path):
    allowed = ("bash", "python", *SHOWN[:-1]) if path in RUN else ("bash", "python", *SHOWN)
    assert block.language in allowed, f"{name_of(path)}:{block.line}: a block of {block.language!r}"


def test_every_block_that_is_not_run_is_listed_with_its_reason():
  skipped = {path: [block.says["skip"] for block in blocks_of(path) if "skip" in block.says] for path in RUN}
  assert {name_of(path): tuple(reasons) for path, reasons in skipped.items() if reasons} == NOT_RUN


@pytest.fixture(scope="session")
def clone(command, tmp_path_factory):
  """A clone in which the quickstart has run."""
  folder = make_clone(tmp_path_factory.mktemp("clone") / "drope_jax")
  ended = command("experiments.quickstart", *QUICKSTART, cwd=folder)
  assert ended.status == 0, ended.stderr
  return folder


@pytest.fixture
def bring(request):
  """A function that puts what a reader has at a path."""

  def put(fixture: str, path):
    if fixture == "text":
      path.mkdir(parents=True)
      rng = random.Random(0)
      for number in range(400):
        (path / f"{number}.txt").write_text(" ".join(rng.choices(WORDS, k=rng.randint(100, 400))))
    else:
      source = {"llama": "folder", "run": "rope"}.get(fixture)
      shutil.copytree(
        request.getfixturevalue("clone") / "runs/quickstart" if source is None else request.getfixturevalue(source),
        path,
      )

  return put


@pytest.mark.slow
@pytest.mark.parametrize("path", RUN, ids=name_of)
def test_every_block_runs(path, bring, command, tmp_path):
  files = {file: file.stat().st_mtime_ns for part in ("drope_jax", "experiments", "docs") for file in code_below(part)}
  folder, before, more = make_clone(tmp_path / "clone"), "", []
  with shell(folder, command, lambda words: [*shorter(words), *more]) as run:
    for block in blocks_of(path):
      for fixture in FIXTURES:
        if fixture in block.says:
          bring(fixture, folder / block.says[fixture])
      if "skip" in block.says or block.language in SHOWN:
        continue
      more[:] = words_of(block.says.get("add", ""))
      if "file" in block.says:
        (folder / block.says["file"]).write_text(block.code)
        continue
      if block.language == "python":
        before = f"{before}\n{block.code}" if "continues" in block.says else block.code
        ended = command("-c", before, cwd=folder)
      else:
        ended = run(block.code)
      assert ended.status == 0, failure(path, block, ended)
  assert files == {file: file.stat().st_mtime_ns for file in files}, "a block has changed the repository"


def code_below(part):
  return [file for file in (ROOT / part).rglob("*") if file.suffix in (".py", ".md") and "_build" not in file.parts]


def failure(path, block: Block, ended) -> str:
  said = f"{ended.stdout[-2000:]}\n{ended.stderr[-4000:]}"
  return f"{name_of(path)}:{block.line} ends with {ended.status}:\n{block.code}\n{said}"
