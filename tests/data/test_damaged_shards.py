"""Token shards that are not as they were written: training and evaluation name the file, whatever they read first."""

import contextlib
import random
import shutil

import numpy as np
import pytest
from support.damages import field, scratched
from support.full_disk import files_of_at_most
from support.stored_documents import store, text_of, without_sums

from drope_jax.config import DataConfig
from drope_jax.data.pipeline import train_batches
from drope_jax.data.report import summarise
from drope_jax.data.sources import Cut, Tokens
from drope_jax.data.sources.sums import BLOCK, BlockSums, CheckedBytes
from drope_jax.data.token_shards import write_shards
from drope_jax.data.tokenizers import ByteTokenizer
from drope_jax.errors import DataError, FileError

# Of each kind of file there is more than a block.
TEXTS = ["".join(random.Random(i).choices("abcdefgh", k=4 + i % 7)) + str(i) for i in range(BLOCK // 8 + 40)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  folder = tmp_path_factory.mktemp("shards")
  source = store("user", folder / "texts", TEXTS)
  write_shards(source.documents(), ByteTokenizer(), folder / "shards", shards=1)
  return folder / "shards"


@pytest.fixture
def shards(whole, tmp_path):
  """A copy to do harm to."""
  return shutil.copytree(whole, tmp_path / "shards")


def flip(path, bit):
  data = bytearray(path.read_bytes())
  data[bit // 8] ^= 1 << bit % 8
  path.write_bytes(data)


def first_epoch(folder, packing="windows"):
  config = DataConfig(source=Cut(Tokens(str(folder))), context=1023, batch_size=16, packing=packing)
  with contextlib.closing(train_batches(config, 0)) as stream:
    for _ in range(sum(len(text) + 1 for text in TEXTS) // (1024 * 16) + 1):
      next(stream)


@pytest.mark.parametrize("flips", [1, pytest.param(10, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["tokens", "ends", "keys", "sums"])
def test_no_flipped_bit_is_read_by_a_run_or_an_evaluation(shards, kind, flips):
  (file,) = shards.glob(f"{kind}-*.bin")
  bits = 8 * file.stat().st_size
  for bit in (bits - 1, *random.Random(0).sample(range(bits), flips)):
    flip(file, bit)
    reads = [lambda: first_epoch(shards), lambda: list(Cut(Tokens(str(shards))).documents())]
    for read in (*reads, lambda: first_epoch(shards, "interleave"))[: 2 if flips == 1 else 3]:
      with pytest.raises(DataError, match=f"{file}: its content is not what was written"):
        read()
    flip(file, bit)
  first_epoch(shards)


@pytest.mark.parametrize("kind", ["tokens", "ends", "keys"])
def test_the_report_names_a_damaged_file_once(shards, kind):
  (file,) = shards.glob(f"{kind}-*.bin")
  scratched(file)
  damaged = Tokens(str(shards)).documents().damaged
  assert [line.split(": ")[0] for line in damaged] == [str(file)]
  if kind == "tokens":
    assert summarise(Tokens(str(shards)).documents(), ByteTokenizer(), 50).bad[0] == damaged[0]


def test_shards_without_sums_are_read_as_before_and_ends_that_cannot_be_are_named(whole, shards):
  without_sums(shards)
  first_epoch(shards)
  assert [text_of(one) for one in Tokens(str(shards)).documents()] == TEXTS
  (ends,) = shards.glob("ends-*.bin")
  for damage in (scratched, lambda path: path.write_bytes(bytes(path.stat().st_size))):
    shutil.copyfile(whole / ends.name, ends)
    damage(ends)
    for read in (lambda: first_epoch(shards), lambda: list(Tokens(str(shards)).documents())):
      with pytest.raises(DataError, match=f"{ends}: these are not the ends of documents"):
        read()


@pytest.mark.parametrize(
  ("place", "value"),
  [
    ("shards", None),
    ("shards", []),
    ("shards.0", 3),
    ("shards.0.tokens", "many"),
    ("shards.0.documents", ...),
    ("shards.0.keys_file", "../keys"),
    ("shards.0.sha256", "0"),
    ("shards.0.sums_sha256", ...),
    ("dtype", "float32"),
    ("tokenizer", 3),
  ],
)
def test_a_damaged_meta_json_is_one_line(shards, place, value):
  field(place, value)(shards / "meta.json")
  with pytest.raises(DataError, match=f"{shards}/meta.json: its field '{place.split('.')[0]}' is damaged"):
    Tokens(str(shards)).documents()


def test_each_block_is_read_once_as_a_whole_and_then_what_is_asked_for_alone(tmp_path, monkeypatch):
  data = random.Random(0).randbytes(3 * BLOCK + 5)
  (tmp_path / "file").write_bytes(data)
  sums = BlockSums()
  for begin in range(0, len(data), 1000):
    sums.add(data[begin : begin + 1000])
  file = CheckedBytes(tmp_path / "file", sums.array())
  read = []
  monkeypatch.setattr("os.pread", lambda _, count, at: read.append((at, count)) or data[at : at + count])
  for begin, end in ((10, 20), (30, 40), (BLOCK - 1, BLOCK + 1), (3 * BLOCK, len(data)), (0, len(data)), (0, 9)):
    assert file.read(begin, end) == data[begin:end]
  assert read == [(0, BLOCK), (30, 10), (0, 2 * BLOCK), (3 * BLOCK, 5), (0, len(data)), (0, 9)]


def test_a_full_disk_ends_tokenising_in_one_line_without_drafts_and_it_goes_on(whole, tmp_path):
  documents = store("user", tmp_path, TEXTS).documents()
  with files_of_at_most(BLOCK), pytest.raises(FileError, match=r"out/tokens-00000-of-00001\.bin: cannot be written"):
    write_shards(documents, ByteTokenizer(), tmp_path / "out", shards=1)
  assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["plan.json"]
  write_shards(documents, ByteTokenizer(), tmp_path / "out", shards=1)
  for file in whole.glob("*-*.bin"):
    np.testing.assert_array_equal(np.fromfile(file, "u1"), np.fromfile(tmp_path / "out" / file.name, "u1"))


@pytest.mark.parametrize(("name", "content"), [("plan.json", "{"), ("plan.json", "[]"), ("meta.json", "{}")])
def test_a_damaged_plan_is_one_line(tmp_path, name, content):
  (tmp_path / "out").mkdir()
  (tmp_path / "out" / name).write_text(content)
  with pytest.raises(FileError, match=f"{tmp_path}/out/{name}: is damaged.*; remove {tmp_path}/out"):
    write_shards(store("user", tmp_path, TEXTS[:9]).documents(), ByteTokenizer(), tmp_path / "out")
  assert (tmp_path / "out" / name).read_text() == content
