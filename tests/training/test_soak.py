"""20,000 steps: memory, open files and threads stay as they were after the first ones."""

import gc
import os
from pathlib import Path

import pytest
from support.tiny_run import tiny_corpus, tiny_model, tiny_run

from drope_jax import metrics
from drope_jax.data.corpus import build_corpus
from drope_jax.data.splits import documents
from drope_jax.train import train

STEPS, WARM = 20_000, 5_000
MEBIBYTES = (
  6.0  # that may be added between: 50 saves leave 16 KB each, in tensorstore 0.1.86, and the allocator's holes
)


def resident() -> float:
  """MiB of this process."""
  line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
  return int(line.split()[1]) / 1024


@pytest.mark.slow
def test_memory_files_and_threads_are_flat_over_20000_steps(tmp_path, monkeypatch):
  texts = list(documents(tiny_corpus(tmp_path / "texts"), "train"))
  corpus = str(build_corpus(tmp_path / "corpus", {"train": texts, "heldout": [" ".join(texts[:10])]}))
  config = tiny_run(
    corpus,
    model=tiny_model(d_model=8, num_layers=1, d_ff=8),
    steps=STEPS,
    log_every=20,
    checkpoint_every=300,
    eval_every=1_000,
    eval_documents=1,
  )
  seen, write = [], metrics.JsonLines.write

  def watched(self, record):
    write(self, record)
    if record["step"] % 1_000 == 900 and metrics.is_training(record):
      gc.collect()
      seen.append((record["step"], resident(), *(len(os.listdir(f"/proc/self/{what}")) for what in ("fd", "task"))))

  monkeypatch.setattr(metrics.JsonLines, "write", watched)
  assert train(config, tmp_path / "run") == (STEPS, True)
  first = [one for one in seen if one[0] <= WARM]
  last = [one for one in seen if one[0] > STEPS - WARM]
  print(*seen, sep="\n")
  for column, slack in ((1, MEBIBYTES), (2, 8), (3, 8)):  # a save in the background opens files and starts threads
    before, after = (min(one[column] for one in part) for part in (first, last))
    assert after - before <= slack, seen
