"""What is trained on, what is held out and what temperatures are fitted on never overlap."""

import itertools

import pytest
from support.stored_documents import STORES, store, text_of

from drope_jax.config import DataConfig
from drope_jax.data import pipeline
from drope_jax.data.pipeline import evaluation_documents, train_batches
from drope_jax.data.sources import JSONL, TFDS, Cut, Mixture, Splits, Text, source_at
from drope_jax.data.splits import documents, left_out, naming_split
from drope_jax.data.tokenizers import ByteTokenizer
from drope_jax.errors import ConfigError

TEXTS = [f"document {i % 150}" for i in range(200)]  # 50 of them twice
PARTS = ("train", "heldout", "fit")


@pytest.mark.parametrize("kind", [kind for kind in STORES if kind != "mixture"])
def test_parts_by_hash_are_disjoint_complete_and_those_of_the_text(kind, tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  source = Cut(store(kind, tmp_path / "data", TEXTS), heldout=0.2, fit=0.1)
  parts = {name: [text_of(one) for one in source.part(name).documents()] for name in PARTS}
  assert sorted(itertools.chain(*parts.values())) == sorted(TEXTS)
  for one, other in itertools.combinations(PARTS, 2):
    assert parts[one] and not set(parts[one]) & set(parts[other])
  assert 20 < len(parts["heldout"]) < 60 and 8 < len(parts["fit"]) < 35


def test_a_document_stays_in_its_part_when_others_come(tmp_path):
  few, many = (
    Cut(store("text", tmp_path / name, texts), 0.2, 0.1) for name, texts in (("a", TEXTS[:100]), ("b", TEXTS))
  )
  for name in PARTS:
    assert (
      list(few.part(name).documents())
      == [text for text in many.part(name).documents() if text in set(TEXTS[:100])][
        : len(list(few.part(name).documents()))
      ]
    )


def read(config: DataConfig, rows: int) -> set[str]:
  """Whole documents in the first rows of a stream."""
  stream = train_batches(config, seed=0)
  ids = [id for _ in range(rows) for id in next(stream)["tokens"].ravel().tolist()]
  return set(ByteTokenizer().decode([i or ord("\n") + 1 for i in ids]).split("\n")[1:-1])


def test_a_run_reads_its_part_alone(tmp_path, monkeypatch):
  monkeypatch.setattr(pipeline, "SHUFFLED_BATCHES", 1)  # so that rows follow each other
  store("jsonl", tmp_path / "data", TEXTS)
  source = source_at(str(tmp_path / "data"))
  heldout, fit = (set(documents(str(tmp_path / "data"), name)) for name in PARTS[1:])
  assert source == Cut(JSONL(f"{tmp_path}/data/**/*.jsonl")) and heldout | fit
  seen = read(DataConfig(source=Cut(source.source, 0.2, 0.1), context=511, batch_size=1, interleave=1), 40)
  wanted = set(Cut(source.source, 0.2, 0.1).documents())
  assert wanted <= seen and not seen & set(Cut(source.source, 0.2, 0.1).part("heldout").documents())


def test_parts_that_the_user_names_lose_what_another_one_has(tmp_path):
  for name, texts in (("train", TEXTS), ("held", ["document 3", "new"]), ("fit", ["new", "document 4", "newer"])):
    store("text", tmp_path / name, texts)
  path = f"{tmp_path}/train,heldout={tmp_path}/held,fit={tmp_path}/fit"
  parts = {name: list(documents(path, name)) for name in PARTS}
  assert parts["heldout"] == ["document 3", "new"]
  assert parts["fit"] == ["document 4", "newer"]
  assert parts["train"] == [text for text in TEXTS if text not in ("document 3", "document 4")]
  assert source_at(path) == Splits(
    *(Text(f"{tmp_path}/{name}/**/*.txt") for name in ("train", "held", "fit")),
  )


def test_what_decides_which_documents_are_read_is_part_of_the_digest(tmp_path):
  for name, texts in (("a", TEXTS), ("b", ["one", "two"]), ("c", ["three", "four"])):
    store("text", tmp_path / name, texts)
  a, b, c = (Text(f"{tmp_path}/{name}/**/*.txt") for name in "abc")
  sources = [Mixture((a, b), (0.9, 0.1)), Mixture((a, b), (0.1, 0.9)), Splits(a, b), Splits(a, c), Cut(a), Cut(a, 0.5)]
  assert len({source.documents().digest for source in sources}) == len(sources)
  assert Splits(a, b).documents().digest == Splits(a, b).documents().digest


def test_a_change_of_any_document_of_a_small_source_changes_its_digest(tmp_path):
  (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "document {number:04}"}}\n' for number in range(1000)))
  before = JSONL(f"{tmp_path}/a.jsonl").documents().digest
  (tmp_path / "a.jsonl").write_text((tmp_path / "a.jsonl").read_text().replace("document 0501", "document 9999"))
  assert JSONL(f"{tmp_path}/a.jsonl").documents().digest != before


def test_a_part_that_nobody_named_is_one_line(tmp_path):
  for name in ("train", "held"):
    store("text", tmp_path / name, TEXTS[:3])
  with pytest.raises(ConfigError, match="no split 'fit'; name it in the path, as PATH,fit=OTHER"):
    documents(f"{tmp_path}/train,heldout={tmp_path}/held", "fit")
  with pytest.raises(ConfigError, match="no split 'heldout'"):
    documents(Text(f"{tmp_path}/train/**/*.txt"), "heldout")
  with pytest.raises(ConfigError, match=r"Cut.heldout and Cut.fit are \(0.5, 0.5\)"):
    Cut(Text("*.txt"), 0.5, 0.5)


def test_what_a_small_split_has_left_out_is_said(tmp_path):
  for name, texts in (("held", TEXTS[:6]), ("fit", [*TEXTS[:4], "a new one"])):
    store("text", tmp_path / name, texts)
  path = f"{tmp_path}/held,heldout={tmp_path}/held,fit={tmp_path}/fit"

  def said(name, length):
    with pytest.raises(ConfigError) as error, naming_split(path, name):
      evaluation_documents(documents(path, name), ByteTokenizer(), length, 4)
    return str(error.value)

  none = said("train", 1)
  assert none.startswith(f"{path}, split 'train': the split has no documents") and none.count(path) == 1
  assert "6 of 6 documents named for 'train' were left out" in none
  assert "4 of 5 documents named for 'fit' were left out" in said("fit", 50)
  assert "left out" not in said("heldout", 50)  # it has all of its documents
  assert "5 of 5 documents belong to the other parts: 1 % by hash" in left_out(f"{tmp_path}/fit", "heldout")
  with pytest.raises(ConfigError, match="no split 'fit'") as error:
    documents(path.partition(",fit")[0], "fit")
  assert str(error.value).startswith(path.partition(",fit")[0]) and "Splits(" not in str(error.value)
  config = DataConfig(directory=path, context=8, batch_size=2)
  with pytest.raises(ConfigError, match=r"has 0 tokens, .*; 6 of 6 documents named for 'train' were left out"):
    train_batches(config, seed=0)


def test_the_splits_of_tfds_are_its_own(tmp_path):
  source = store("tfds", tmp_path, TEXTS)
  assert source.part("train[:5]") == TFDS(source.dataset, "train[:5]")
  assert list(documents(source.dataset, "train[:5]")) == TEXTS[:5]


def test_a_mixture_takes_documents_by_their_weights(tmp_path):
  many, few = (store("text", tmp_path / name, [f"{name} {i}" for i in range(n)]) for name, n in (("m", 90), ("f", 10)))
  mixed = Mixture((many, few), (3.0, 1.0)).documents()
  order = mixed.order(seed=0)
  seen = [mixed.at(order[i]) for i in range(360)]
  assert sum(text.startswith("m") for text in seen) == 270
  for window in range(0, 360, 40):  # evenly all along
    assert sum(text.startswith("m") for text in seen[window : window + 40]) == 30
  for name, n in (("m", 90), ("f", 10)):  # epochs of its own: no document before all others have come
    own = [text for text in seen if text.startswith(name)]
    assert all(len(set(own[begin : begin + n])) == n for begin in range(0, len(own) - n + 1, n))
  again = Mixture((many, few), (3.0, 1.0)).documents()
  assert [again.at(again.order(seed=0)[i]) for i in range(20)] == seen[:20]


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 0.0), (1.0, -1.0)])
def test_weights_that_cannot_be(weights):
  with pytest.raises(ConfigError, match=r"Mixture.weights is"):
    Mixture((Text("a"), Text("b")), weights)
