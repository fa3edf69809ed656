"""20,000 steps: memory, open files and threads stay as they were after the first ones."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.tiny_run import tiny_corpus

from drope_jax.data.corpus import build_corpus
from drope_jax.data.splits import documents

TESTS = Path(__file__).parents[1]
STEPS, WARM = 20_000, 5_000
# MiB that may be added between: each of the 60 saves leaves 16 KB behind, in `to_json` of tensorstore 0.1.86, and the
# allocator has holes.
MEBIBYTES = 6.0


@pytest.mark.slow
def test_memory_files_and_threads_are_flat_over_20000_steps(tmp_path):
  texts = list(documents(tiny_corpus(tmp_path / "texts"), "train"))
  corpus = build_corpus(tmp_path / "corpus", {"train": texts, "heldout": [" ".join(texts[:10])]})
  ended = subprocess.run(
    [sys.executable, TESTS / "support" / "soak_script.py", corpus, tmp_path / "run", str(STEPS)],
    env={
      **os.environ,
      "JAX_PLATFORMS": "cpu",
      "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}",
      "MALLOC_ARENA_MAX": "1",  # the threads' arenas have more holes, up to 11 MiB of them
    },
    capture_output=True,
    text=True,
  )
  assert ended.returncode == 0, ended.stderr
  seen = json.loads(ended.stdout.splitlines()[-1])
  first = [one for one in seen if one[0] <= WARM]
  last = [one for one in seen if one[0] > STEPS - WARM]
  assert len(first) == len(last) == 5
  print(*seen, sep="\n")
  for column, slack in ((1, MEBIBYTES), (2, 8), (3, 8)):  # a save in the background opens files and starts threads
    before, after = (min(one[column] for one in part) for part in (first, last))
    assert after - before <= slack, seen
