"""RULER: the published definitions, and properties of every sample."""

import hashlib
import random
import re
from collections import Counter
from pathlib import Path

import pytest
from support.ruler import ESSAY, PUBLISHED

from drope_jax.data.corpus import build_corpus
from drope_jax.data.tokenizers import ByteTokenizer
from drope_jax.errors import ConfigError
from drope_jax.evaluate import haystack, ruler_prompts
from drope_jax.evaluate.eval_data import EvalData
from drope_jax.evaluate.haystack import read_essays, split_sentences
from drope_jax.evaluate.ruler_prompts import DEPTHS, NOISE, PUZZLES, Material, fitted
from drope_jax.evaluate.tasks import make_tasks
from drope_jax.evaluate.tasks.ruler import Ruler, found_references
from drope_jax.evaluate.words import ADJECTIVES, NOUNS, key_words

UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
KIND = {"words": r"[a-z]+-[a-z]+", "numbers": r"[1-9]\d{6}", "uuids": UUID}


def parts(prompt: str) -> tuple[str, str, str]:
  """What comes before a needle task's context, the context, and what comes after it."""
  head, rest = prompt.split(" afterwards.\n", 1)
  context, tail = rest.rsplit("\nWhat ", 1)
  return head, context, tail


@pytest.mark.parametrize("name", PUBLISHED)
def test_needles_are_of_the_published_kind_number_and_place(material, name):
  haystack, keys, values, num_keys, num_values, num_queries = PUBLISHED[name]
  needle = re.compile(rf"One of the special magic {values} for ({KIND[keys]}) is: ({KIND[values]})\.")
  for sample in Ruler(name=name, material=material, num_samples=6).samples(2000):
    _, context, tail = parts(sample.prompt)
    found = needle.findall(context)
    if haystack == "needle":
      assert context.split("\n") == [match[0] for match in needle.finditer(context)]
      asked = [pair for pair in found if pair[0] in tail]
    else:
      assert len(found) == num_keys * num_values
      assert len({key for key, _ in found}) == num_keys
      asked = [pair for pair in found if pair[0] in tail]
      rest = needle.sub("", context)
      if haystack == "noise":
        assert set(rest.split("\n")) == {NOISE, ""}
      else:
        assert ESSAY.split()[: len(rest.split())] == rest.split()
    assert len(asked) == num_queries * num_values == len(sample.references)
    assert sorted(value for _, value in asked) == sorted(sample.references)
    assert len(set(sample.references)) == len(sample.references)
    queried = re.search(r" for (.+?) mentioned", tail)[1]
    assert len(re.split(r", and |, ", queried)) == num_queries
    assert all(sample.prompt.count(value) == 1 for value in sample.references)  # in the context, and nowhere else


def test_the_wording_of_one_answer_and_of_several(material):
  one = Ruler(name="niah_single_3", material=material).samples(1500)[0].prompt
  key = re.search(r"uuids for (\S+) is:", one)[1]
  assert one.startswith(
    "A special magic uuid is hidden within the following text. Make sure to memorize it. I will quiz you about the uuid"
    " afterwards.\n"
  )
  assert one.endswith(
    f"\nWhat is the special magic uuid for {key} mentioned in the provided text? The special magic uuid for {key} "
    "mentioned in the provided text is"
  )
  several = Ruler(name="niah_multiquery", material=material).samples(1500)[0].prompt
  assert several.startswith(
    "Some special magic numbers are hidden within the following text. Make sure to memorize it."
  )
  keys = re.search(r"What are all the special magic numbers for (.*?) mentioned", several)[1]
  assert re.fullmatch(r"\S+, \S+, \S+, and \S+", keys)
  assert several.endswith(f"? The special magic numbers for {keys} mentioned in the provided text are")
  multivalue = Ruler(name="niah_multivalue", material=material).samples(1500)[0].prompt
  assert " What are all the special magic numbers for " in multivalue.replace("\n", " ")


@pytest.mark.parametrize("name", PUZZLES)
def test_prompts_leave_room_and_fill_the_rest_and_seeds_reproduce(material, name):
  room = {"vt": 30, "cwe": 120, "fwe": 50}.get(name, 128)
  task = Ruler(name=name, material=material, num_samples=4)
  for length in (1700, 6000):
    samples = task.samples(length)
    used = [len(material.tokenizer.encode(sample.prompt)) + room for sample in samples]
    assert max(used) < length
    assert min(used) > 0.95 * length
    again = Ruler(name=name, material=material, num_samples=2).samples(length)
    assert again == samples[:2]  # more samples leave the first as they are
    others = Ruler(name=name, material=material, num_samples=4, seed=1).samples(length)
    assert not {sample.prompt for sample in others} & {sample.prompt for sample in samples}
    assert len({sample.prompt for sample in samples}) == 4


@pytest.mark.parametrize("length", [300, 700, 2000, 5000])
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recorded_depth_is_where_the_needle_lies(material, name, length):
  haystack, *_ = PUBLISHED[name]
  length += 0 if name == "niah_single_2" else 500  # what more needles, or longer ones, take
  pattern = re.compile(r"One of the special magic \w+ for \S+ is: (\S+)\.")
  for sample in Ruler(name=name, material=material, num_samples=8).samples(length):
    _, context, _ = parts(sample.prompt)
    for match in pattern.finditer(context):
      if match[1] in sample.references:
        # Of the noise and the essays no needle is a part; lines of needles are their own haystack, but for this one.
        before, after = context[: match.start()], context[match.end() :]
        if haystack != "needle":
          before, after = pattern.sub("", before), pattern.sub("", after)
        assert sample.depths[sample.references.index(match[1])] == len(before) / (len(before) + len(after))


@pytest.mark.parametrize("text", ["no sentence ends here " * 40, "One long one " * 60 + "ends. A second one does not"])
def test_a_depth_is_right_where_sentences_are_long(text):
  task = Ruler(name="niah_single_2", material=Material(ByteTokenizer(), text), num_samples=20)
  for sample in task.samples(1400):
    _, context, _ = parts(sample.prompt)
    before = context.index("One of the special")
    needle = len(re.search(r"One of the special .*?: \d+\.", context)[0])
    assert sample.depths == (before / (len(context) - needle),)


def test_needles_are_put_after_the_forty_published_shares_of_sentences(material):
  for sample in Ruler(name="niah_single_2", material=material, num_samples=200).samples(4000):
    _, context, _ = parts(sample.prompt)
    before, after = re.split(r" ?One of the special .*?: \d+\. ?", context)
    count, total = len(split_sentences(before)), len(split_sentences(f"{before} {after}".strip()))
    assert count in {int(total * depth / 100) for depth in DEPTHS}
  assert (DEPTHS[0], DEPTHS[1], DEPTHS[-1], len(DEPTHS)) == (0, 3, 100, 40)


def test_all_forty_depths_are_drawn(material):
  samples = Ruler(name="niah_single_2", material=material, num_samples=300).samples(3000)
  assert len({round(sample.depths[0], 2) for sample in samples}) > 30
  assert min(sample.depths for sample in samples)[0] < 0.01 and max(sample.depths for sample in samples)[0] > 0.99


def test_variables_follow_from_the_value(material):
  for sample in Ruler(name="vt", material=material, num_samples=5).samples(2000):
    *_, asked = sample.prompt.split("Memorize and track the chain(s)")
    value = re.search(r"assigned the value (\d{5}) in the text above", asked)[1]
    held = {}
    for name, source in re.findall(r"VAR ([A-Z]{5}) = (?:VAR )?(\w+)", asked):
      held[name] = held.get(source, source)
    assert [name for name, content in held.items() if content == value] == list(sample.references)
    assert len(sample.references) == 5
    assert asked.endswith(f"in the text above, 5 variables are assigned the value {value}, they are: ")
    example = re.search(r"they are:  ((?:[A-Z]{3} ?){5})\n\nMemorize", sample.prompt)
    assert example and set(example[1].split()) <= set(re.findall(r"VAR ([A-Z]{3}) ", sample.prompt))


@pytest.mark.parametrize(("length", "counts", "shown"), [(2500, (6, 1), (3, 1)), (8000, (30, 3), (10, 3))])
def test_common_words_are_common(material, length, counts, shown):
  for sample in Ruler(name="cwe", material=material, num_samples=3).samples(length):
    example, asked = re.findall(r"most often\.\n(.*?)\nQuestion: What are the 10 most common words", sample.prompt)
    for text, (often, seldom) in ((example, shown), (asked, counts)):
      entries = re.findall(r"(\d+)\. (\S+)", text)
      assert [int(number) for number, _ in entries] == list(range(1, len(entries) + 1))
      repeats = Counter(word for _, word in entries)
      assert set(repeats.values()) <= {often, seldom}
      assert sum(count == often for count in repeats.values()) == 10
    assert {word for word, count in Counter(re.findall(r"\. (\S+)", asked)).items() if count == often} == set(
      sample.references
    )
    answer = re.search(r"in the list are: (1\. .*10\. \S+)\nBelow is", sample.prompt)
    assert answer


def test_long_lists_of_common_words_have_keys_too():
  material = Material(ByteTokenizer(), ESSAY)
  task = Ruler(name="cwe", material=material, num_samples=1)
  task.check(131_072, None)
  (sample,) = task.samples(131_072)
  assert 0.95 * 131_072 < len(material.tokenizer.encode(sample.prompt)) + 120 < 131_072
  asked = sample.prompt.rsplit("Below is", 1)[1]
  counts = Counter(re.findall(r"\d\. (\S+)", asked))
  assert set(material.words) < set(counts) <= {*material.words, *material.keys}
  assert {word for word, count in counts.items() if count == 30} == set(sample.references)
  with pytest.raises(ConfigError, match=r"different words are needed; there are \d"):
    task.puzzle.sample(random.Random(0), 10**6, 10**7, material)


def test_frequent_words_are_the_most_frequent_but_for_the_dots(material):
  for sample in Ruler(name="fwe", material=material, num_samples=3).samples(3000):
    text = re.search(r"coded words\. (.*)\nQuestion", sample.prompt)[1].split()
    counts = Counter(text).most_common()
    assert counts[0][0] == "..." and [word for word, _ in counts[1:4]] == list(sample.references)
    assert counts[3][1] > counts[4][1]  # no tie for the third place
    share = counts[1][1] / counts[0][1]
    assert share == pytest.approx(1 / 4, abs=0.02)  # zeta with alpha 2


def test_every_word_of_the_templates_is_rulers():
  """Digests of what was compared, byte by byte, with NVIDIA/RULER at c3f5e3b."""
  texts = (
    NOISE,
    ruler_prompts.NEEDLE,
    ruler_prompts.NIAH,
    ruler_prompts.VARIABLES,
    ruler_prompts.COMMON,
    ruler_prompts.FREQUENT,
  )
  digests = [hashlib.sha256(text.encode()).hexdigest()[:16] for text in texts]
  assert digests == [
    "c2fcf70de6081e6f",
    "528afb85ddbed087",
    "45ee6a9f7b460f55",
    "a5b7f4873a860852",
    "c2426f94a28fc3a2",
    "0bfad42dcc7b1cff",
  ]


def test_the_score_is_rulers_formula():
  rng = random.Random(0)
  for _ in range(300):
    references = [str(rng.randrange(20)) + rng.choice("aB") for _ in range(rng.randint(1, 4))]
    answer = " ".join(rng.choice([*references, "x", "3A", "7b\x07"]).upper() for _ in range(rng.randint(0, 5)))
    expected = sum(1.0 if r.lower() in answer.lower() else 0.0 for r in references) / len(references)
    found = found_references(answer, references)
    assert sum(found) / len(found) == expected


def test_words_and_sentences():
  assert len(set(ADJECTIVES)) == len(ADJECTIVES) and len(set(NOUNS)) == len(NOUNS)
  assert len(set(key_words())) == len(ADJECTIVES) * len(NOUNS) > 100_000
  assert split_sentences('He came. "Who?" she said. 3 of them left!  End') == [
    "He came.",
    '"Who?" she said.',
    "3 of them left!",
    "End",
  ]
  assert split_sentences('He said "Go." Then (as told.) [He went!] "So?" He') == [
    'He said "Go."',
    "Then (as told.)",
    "[He went!]",
    '"So?"',
    "He",
  ]
  assert split_sentences("") == [] and split_sentences("no end") == ["no end"]
  assert " ".join(split_sentences(" ".join(ESSAY.split()))) == " ".join(ESSAY.split())  # nothing is lost
  assert len(ESSAY) > 100_000 and "::=" not in ESSAY


def test_a_haystack_of_ones_own(tmp_path, material):
  (tmp_path / "b.txt").write_text("Second essay. It is short.")
  (tmp_path / "a.txt").write_text("First essay.")
  assert read_essays(tmp_path) == "First essay.\n\nSecond essay. It is short."
  (tmp_path / "nothing").mkdir()
  with pytest.raises(ConfigError, match="nothing: no dataset here"):
    read_essays(tmp_path / "nothing")
  with pytest.raises(ConfigError, match=r"missing\.txt: no dataset here"):
    read_essays(tmp_path / "missing.txt")


def test_a_haystack_from_a_dataset(tmp_path, monkeypatch):
  build_corpus(tmp_path / "set", {"heldout": ["First. One.", "Second. Two."], "train": ["Third. Three."]})
  assert read_essays(tmp_path / "set") == "First. One.\n\nSecond. Two."
  assert read_essays(Path(f"{tmp_path / 'set'}:train")) == "Third. Three."
  assert read_essays(Path(f"{tmp_path / 'set'}:heldout[:1]")) == "First. One."
  with pytest.raises(ConfigError, match=r"set: the split 'test' is missing or empty; splits: heldout, train"):
    read_essays(Path(f"{tmp_path / 'set'}:test"))
  monkeypatch.setattr(haystack, "MOST_CHARACTERS", 15)
  assert read_essays(tmp_path / "set") == "First. One.\n\nSe"
  data = EvalData(tokenizer=ByteTokenizer(), longest=600, haystack=tmp_path / "set", num_samples=1)
  (task,) = make_tasks(["niah_single_2"], data)
  assert "First. One. Se First. One." in task.samples(900)[0].prompt.replace("\n", " ")


def test_too_short_a_length_is_refused(material):
  with pytest.raises(ConfigError, match=r"niah_single_1 at 128 tokens: 128 of them are seen; it needs more than 128"):
    Ruler(name="niah_single_1", material=material).check(128, None)
  with pytest.raises(ConfigError, match="64 of them are seen"):
    Ruler(name="niah_single_1", material=material).check(1024, 64)
  with pytest.raises(ConfigError, match="vt at 200 tokens: the smallest prompt has"):
    Ruler(name="vt", material=material).check(200, None)


def test_fitting_finds_the_largest():
  def build(size):
    return type("S", (), {"prompt": "p" * (70 + 7 * size)})()

  for limit in range(80, 4000, 37):
    sample, size = fitted(build, len, limit, smallest=1, guess=limit % 50)
    assert len(sample.prompt) <= limit
    assert limit - len(sample.prompt) <= max(limit // 100, 6) and len(sample.prompt) == 70 + 7 * size
