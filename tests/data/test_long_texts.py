"""A long text is encoded in parts: the ids are those of the whole, and other threads go on meanwhile."""

import itertools
import json
import random
import threading
import time

import pytest
import tokenizers
from support.tokenizer_files import WORDS, byte_fallback, byte_level
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from drope_jax.data import cuts
from drope_jax.data.tokenizers import train_bpe

# What a text is made of here: each may follow any other.
PIECES = [*"x7_\t.“\x85\u00a0\u3000äЖ。강\u0301\u200b🜁▁"]
PIECES += ["Wind", "river's", "1024", "...", "пять", "江河", "<|endoftext|>"]
PIECES += ["  ", "\n\n", "\r\n", *WORDS * 3, *" \n" * 9]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """Digits apart, then GPT-2's split; merges over spaces and newlines where a split would let them."""
  text = "wind river\nstone 1024 wind\n\nriver's  stone, the пять 江河 강 Ж river\n"
  return train_bpe([text * 20], 400, tmp_path_factory.mktemp("bpe"))


def split(pattern):
  return pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated"),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )


def merging_over_spaces(pre_tokenizer, normalizer=None, **options):
  """Byte-level BPE with merges that only a split keeps from joining two words."""
  alphabet = json.loads(byte_level().to_str())["model"]["vocab"]
  merges = [("d", "Ġ"), ("dĠ", "s"), ("Ċ", "s"), ("Ġ", "s"), ("w", "i"), ("1", "0"), ("Ġ", "Ġ"), ("Ċ", "Ċ"), ("r", "Ċ")]
  vocabulary = {name: i for i, name in enumerate(dict.fromkeys([*alphabet, *map("".join, merges)]))}
  tokenizer = Tokenizer(models.BPE(vocabulary, merges, **options))
  tokenizer.pre_tokenizer = pre_tokenizer
  if normalizer is not None:
    tokenizer.normalizer = normalizer
  tokenizer.add_special_tokens(["<|endoftext|>"])
  return tokenizer


def metaspace(scheme):
  tokenizer = byte_fallback()
  tokenizer.normalizer = None
  tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
  return tokenizer


def without_prefix():
  tokenizer = byte_fallback()
  tokenizer.normalizer = normalizers.Replace(" ", "▁")
  return tokenizer


CUT = {
  "GPT-2": lambda: merging_over_spaces(pre_tokenizers.ByteLevel(add_prefix_space=False)),
  "GPT-2, prefixed": lambda: merging_over_spaces(pre_tokenizers.ByteLevel(add_prefix_space=True)),
  "GPT-2's split": lambda: merging_over_spaces(split(cuts.GPT2_SPLIT)),
  "Qwen2": lambda: merging_over_spaces(split(cuts.QWEN2_SPLIT), normalizers.NFC()),
  "Llama 3": lambda: merging_over_spaces(split(cuts.LLAMA3_SPLIT), ignore_merges=True),
  "Llama 2": byte_fallback,
  "Llama 2 of today": lambda: metaspace("first"),
  "Metaspace": lambda: metaspace("always"),
  "Gemma": without_prefix,
}


def texts(count, pieces=40):
  rng = random.Random(0)
  return ["".join(rng.choices(PIECES, k=pieces)) for _ in range(count)]


@pytest.mark.parametrize("name", CUT)
def test_the_ids_of_the_parts_are_those_of_the_whole(name, monkeypatch):
  monkeypatch.setattr(cuts, "PART", 8)
  tokenizer = CUT[name]()
  tokenizer.encode_special_tokens = True
  found, parts_in_all = cuts.cuts_of(tokenizer), 0
  for text in texts(400):
    parts = list(found.parts(text))
    parts_in_all += len(parts)
    ids = [one for part in parts for one in tokenizer.encode(part, add_special_tokens=False).ids]
    assert ids == tokenizer.encode(text, add_special_tokens=False).ids, (text, parts)
  assert parts_in_all > 600


def changed(pre_tokenizer=None, normalizer=None, added=None):
  tokenizer = merging_over_spaces(pre_tokenizer or pre_tokenizers.ByteLevel(add_prefix_space=False), normalizer)
  if added is not None:
    tokenizer.add_tokens([added])
  return tokenizer


WHOLE = {
  "a split that is not known": lambda: changed(split(r"\w+ \w+|.")),
  "no split": lambda: changed(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)),
  "a normaliser that strips": lambda: changed(normalizer=normalizers.Strip()),
  "a token over a space": lambda: changed(added="wind river"),
  "a token that takes the space behind it": lambda: changed(added=AddedToken("wind", rstrip=True)),
  "chance": lambda: merging_over_spaces(pre_tokenizers.ByteLevel(add_prefix_space=False), dropout=0.5),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_text_stays_whole_where_a_cut_could_change_its_ids(name):
  assert cuts.cuts_of(WHOLE[name]()) is None


def test_merges_over_spaces_keep_a_text_whole():
  content = json.loads(byte_fallback().to_str())
  content["model"]["vocab"]["d▁"] = len(content["model"]["vocab"])
  content["model"]["merges"].insert(0, ["d", "▁"])
  assert cuts.cuts_of(Tokenizer.from_str(json.dumps(content))) is None


def test_a_long_document_is_encoded_in_parts_while_other_threads_go_on(trained, monkeypatch):
  rng = random.Random(0)
  document = " ".join(rng.choices(WORDS, k=160_000))  # 0.9 MB: four parts
  assert len(list(cuts.cuts_of(trained._tokenizer).parts(document))) == 4

  def longest_wait():
    """Of another thread, as a share of the time that the encoding takes."""
    ticks, done = [], threading.Event()

    def tick():
      while not done.wait(0.001):
        ticks.append(time.perf_counter())

    thread = threading.Thread(target=tick)
    thread.start()
    start = time.perf_counter()
    trained.encode(document)
    end = time.perf_counter()
    done.set()
    thread.join()
    between = [start, *(at for at in ticks if start < at < end), end]
    return max(later - earlier for earlier, later in itertools.pairwise(between)) / (end - start)

  assert any(longest_wait() < 1 / 2 for _ in range(3))  # a busy machine makes it wait, too
  ids = trained.encode(document)
  monkeypatch.setattr(cuts, "PART", len(document))
  assert trained.encode(document) == ids
