"""LongBench: scores against the package they were defined by and by hand, prompts, truncation, the whole path."""

import dataclasses
import difflib
import hashlib
import json
import random
import re
import string

import numpy as np
import pytest
from support.stub_model import put, reader

from drope_jax.data.tokenizers import ByteTokenizer
from drope_jax.errors import ConfigError, FileError
from drope_jax.evaluate.eval_data import EvalData
from drope_jax.evaluate.methods import inference
from drope_jax.evaluate.tasks import make_tasks
from drope_jax.evaluate.tasks.longbench import DATASETS, LongBench, cut_middle, score, token_buckets
from drope_jax.evaluate.text_scores import classification, counting, edit_similarity, f1, retrieval, rouge_l

EDGES = [
  "",
  " ",
  ".",
  "..",
  "a",
  "The",
  "a. b. a",
  ". a b .",
  "the the cat. ",
  "\n",
  "x\ty  z",
  "Ünïcode, naïve!",
  "A.B.C",
]


def random_texts(count: int, seed: int) -> list[str]:
  rng = random.Random(seed)
  words = ["the", "a", "cat", "Cat", "sat", "on", "mat", "mat.", "dog,", ".", "an", "it's", "\n", "42", "é"]
  return [rng.choice([" ", "  "]).join(rng.choices(words, k=rng.randint(0, 14))) for _ in range(count)]


def cases() -> list[tuple[str, str]]:
  pairs = [(one, other) for one in EDGES for other in EDGES]
  return pairs + list(zip(random_texts(400, 0), random_texts(400, 1), strict=True))


def test_rouge_l_is_the_packages():
  package = pytest.importorskip("rouge").Rouge()
  for answer, reference in cases():
    try:
      expected = package.get_scores([answer], [reference], avg=True)["rouge-l"]["f"]
    except (ValueError, AssertionError):  # what LongBench counts as 0
      expected = 0.0
    assert rouge_l(answer, reference) == pytest.approx(expected, abs=1e-12), (answer, reference)


def test_f1_by_counting():
  for answer, reference in cases():
    said, true = (
      [
        word
        for word in "".join(c for c in text.lower() if c not in string.punctuation).split()
        if word not in ("a", "an", "the")
      ]
      for text in (answer, reference)
    )
    left, common = list(true), 0
    for word in said:
      if word in left:
        left.remove(word)
        common += 1
    expected = 2 * common / (len(said) + len(true)) if common else 0.0
    assert f1(answer, reference) == pytest.approx(expected), (answer, reference)


# --- the originals: metrics.py of THUDM/LongBench at 2e00731, and ratio of fuzzywuzzy 0.18.0 over difflib ---


def original_count(prediction, ground_truth):
  numbers = re.findall(r"\d+", prediction)
  right_num = 0
  for number in numbers:
    if str(number) == str(ground_truth):
      right_num += 1
  return float(0.0 if len(numbers) == 0 else right_num / len(numbers))


def original_retrieval(prediction, ground_truth):
  return original_count(prediction, re.findall(r"Paragraph (\d+)", ground_truth)[0])


def original_classification(prediction, ground_truth, all_classes):
  em_match_list = []
  for class_name in all_classes:
    if class_name in prediction:
      em_match_list.append(class_name)
  for match_term in em_match_list:
    if match_term in ground_truth and match_term != ground_truth:
      em_match_list.remove(match_term)
  return 1.0 / len(em_match_list) if ground_truth in em_match_list else 0.0


def original_code_similarity(prediction, ground_truth):
  all_lines = prediction.lstrip("\n").split("\n")
  prediction = ""
  for line in all_lines:
    if ("`" not in line) and ("#" not in line) and ("//" not in line):
      prediction = line
      break
  return ratio(prediction, ground_truth) / 100


def ratio(s1, s2):
  if s1 == s2:
    return 100
  if len(s1) == 0 or len(s2) == 0:
    return 0
  return round(100 * difflib.SequenceMatcher(None, s1, s2).ratio())


def test_counting_and_retrieval_are_the_originals():
  rng = random.Random(4)
  answers = EDGES + random_texts(50, 5)
  answers += [
    " ".join(rng.choice(["3", "33", "Paragraph 3", "03", "3.", "x", "-3"]) for _ in range(k % 7)) for k in range(300)
  ]
  for answer in answers:
    for number in ("3", "33", "1", ""):
      assert counting(answer, number) == original_count(answer, number), (answer, number)
    for reference in ("Paragraph 3", "Paragraph 33 or Paragraph 3", "see Paragraph 1."):
      assert retrieval(answer, reference) == original_retrieval(answer, reference), (answer, reference)


def test_classification_is_the_originals():
  rng = random.Random(6)
  parts = ["a", "b", "ab", "ba", "abc", "c", "a b", "b c", "a b c", ""]
  for _ in range(2000):
    classes = rng.choices(parts, k=rng.randint(1, 7))  # some are part of others, some come twice
    answer, reference = " ".join(rng.choices(parts, k=rng.randint(0, 5))), rng.choice([*classes, "abc"])
    expected = original_classification(answer, reference, list(classes))
    assert classification(answer, reference, classes) == expected, (answer, reference, classes)


def test_edit_similarity_is_the_originals():
  rng = random.Random(7)
  lines = ["return x", "# note", "// note", "```", "", "  x = f(a, b)", "x = f(b)", "return y  # why", "for i in n:"]
  pairs = cases()
  for _ in range(500):
    answer = "\n" * rng.randint(0, 2) + "\n".join(rng.choices(lines, k=rng.randint(0, 5)))
    pairs.append((answer, rng.choice([*lines, "".join(rng.choices("xy (=", k=rng.randint(0, 300)))])))
  for answer, reference in pairs:
    assert edit_similarity(answer, reference) == original_code_similarity(answer, reference), (answer, reference)


@pytest.mark.parametrize(
  ("answer", "reference", "expected"),
  [  # values of fuzzywuzzy 0.18.0 over difflib
    ("return x", "return x", 1.0),
    ("\n\n# a comment\n// another\n```\nreturn y", "return x", 0.88),
    ("return y\nreturn x", "return x", 0.88),
    ("", "return x", 0.0),
    ("# only a comment", "return x", 0.0),
    ("", "", 1.0),
    ("abcd", "bcda", 0.75),
    ("    for i in range(10):", "for j in range(n):", 0.78),
  ],
)
def test_edit_similarity(answer, reference, expected):
  assert edit_similarity(answer, reference) == expected


def test_edit_similarity_is_at_most_that_of_the_best_alignment():
  fuzz = pytest.importorskip("rapidfuzz").fuzz
  rng = random.Random(3)
  for _ in range(300):
    one, other = ("".join(rng.choices("abc (=", k=rng.randint(1, 30))) for _ in range(2))
    best = fuzz.ratio(one, other) / 100
    assert edit_similarity(one, other) <= best + 0.005 + 1e-9  # it is rounded
    same = one + other
    assert edit_similarity(same, one) == pytest.approx(fuzz.ratio(same, one) / 100, abs=0.005 + 1e-9)


@pytest.mark.parametrize(
  ("answer", "expected"),
  [
    ("Description of a person", 1.0),
    ("It is a Description of a person or a City", 0.5),
    ("City", 0.0),
    ("nothing", 0.0),
    ("person", 0.0),
  ],
)
def test_classification(answer, expected):
  classes = ["Description of a person", "person", "City", "Country"]
  assert classification(answer, "Description of a person", classes) == expected


def test_classification_steps_over_a_name_as_the_original_does():
  # "b" and "c" are parts of the right name and follow one another: the second one stays, and counts.
  assert classification("a b c", "a b c", ["b", "c", "a b c"]) == 0.5
  assert classification("a b c", "a b c", ["b", "x", "a b c"]) == 1.0


def test_counting_and_retrieval():
  assert counting("There are 3, or 3, or 14.", "3") == pytest.approx(2 / 3)
  assert counting("none", "3") == counting("33", "3") == 0.0
  assert retrieval("Paragraph 12", "Paragraph 12") == 1.0
  assert retrieval("Paragraph 12 or 1", "Paragraph 1") == 0.5
  with pytest.raises(ValueError, match="names no paragraph"):
    retrieval("1", "the first")


def record(**fields):
  return {"input": "Who?", "context": "It was Ann.", "answers": ["Ann"], "length": 3, "all_classes": None, **fields}


def test_the_best_reference_counts_and_for_some_only_the_first_line():
  assert score("musique", "bob", record(answers=["Ann", "Bob"])) == 1.0
  assert score("musique", "\nann\nand others", record()) < 1.0
  assert score("triviaqa", "\nann\nand others", record()) == 1.0
  assert score("samsum", "ann went\nthen", record(answers=["ann went"])) == pytest.approx(1.0)
  assert score("trec", "City\nperson", record(answers=["City"], all_classes=["City", "person"])) == 1.0


def test_prompts_and_generated_tokens():
  tokens = {name: definition.max_new_tokens for name, definition in DATASETS.items()}
  assert [name for name, size in tokens.items() if size == 512] == ["gov_report", "qmsum", "multi_news"]
  assert (tokens["musique"], tokens["multifieldqa_en"], tokens["samsum"], tokens["lcc"]) == (32, 64, 128, 64)
  assert len(DATASETS) == 16
  for name, definition in DATASETS.items():
    prompt = definition.prompt.format(context="{CONTEXT}", input="INPUT")
    assert "{CONTEXT}" in prompt
    assert ("INPUT" in prompt) == (name not in ("gov_report", "multi_news", "passage_count", "lcc"))


def test_every_word_of_the_prompts_is_longbenchs():
  """Digests of what was compared, byte by byte, with config/dataset2prompt.json at 2e00731."""
  digests = {name: hashlib.sha256(definition.prompt.encode()).hexdigest()[:16] for name, definition in DATASETS.items()}
  assert digests == {
    "narrativeqa": "aada7ed24b06abac",
    "qasper": "0fbdd123fe7f83d6",
    "multifieldqa_en": "20b4666a2de8a1f7",
    "hotpotqa": "9ec4ae308865bd0c",
    "2wikimqa": "9ec4ae308865bd0c",
    "musique": "9ec4ae308865bd0c",
    "gov_report": "91c25d585b189ced",
    "qmsum": "dca23b678fe0183b",
    "multi_news": "2af3f28c40b902e6",
    "trec": "0eff8bebdba99d91",
    "triviaqa": "00a802e6377e72fc",
    "samsum": "a68d884234907eef",
    "passage_count": "986550b6c61009c6",
    "passage_retrieval_en": "39b96b7fa52bdd2a",
    "lcc": "6a1f24cf0bb83cd9",
    "repobench-p": "ee9ec182ea5ffeb7",
  }


def test_the_middle_is_cut_out():
  tokens = np.arange(10)
  assert cut_middle(tokens, 10).tolist() == list(range(10))
  assert cut_middle(tokens, 6).tolist() == [0, 1, 2, 7, 8, 9]
  assert cut_middle(tokens, 5).tolist() == [0, 1, 8, 9]
  assert token_buckets(2048, 20_000) == [(0, 4096), (4096, 8192), (8192, 16384), (16384, 32768)]


def write(folder, dataset, records):
  (folder / f"{dataset}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))


def test_the_whole_path(monkeypatch, tmp_path):
  tokenizer, filler = ByteTokenizer(), "Nothing here. " * 20
  contexts = [("It was Ann. " + filler, 100), (filler + "It was Ann. " + filler, 5000), ("It was Ann.", 9000)]
  write(tmp_path, "musique", [record(context=context, length=words) for context, words in contexts])

  def read(text):
    if not text.endswith("Answer:"):
      return ""
    return "Ann" if "It was Ann" in text else "Bob"

  def answer(text):
    asked, _, said = text.rpartition("Answer:")
    wanted = read(asked + "Answer:")
    return wanted[len(said) :] if wanted.startswith(said) else ""

  subject = put(monkeypatch, reader(answer, tokenizer), tokenizer)
  task, whole = (LongBench(dataset="musique", folder=tmp_path, whole=whole) for whole in (False, True))
  figures = {(figure.by, figure.at): (figure.value, figure.n) for figure in task.measure(subject, 700)}
  assert figures[None, None] == (pytest.approx(2 / 3), 3)  # what stood in the middle of the second one is cut out
  words = {at: figure for (by, at), figure in figures.items() if by == "words"}
  assert words == {(0, 4000): (1.0, 1), (4000, 8000): (0.0, 1), (8000, None): (1.0, 1)}
  assert figures["tokens", (512, 1024)] == (0.5, 2) and figures["tokens", (256, 512)] == (1.0, 1)
  assert whole.measure(subject, 700)[0].value == 1.0
  assert (task.name, whole.name) == ("longbench_musique", "longbench_musique_whole")
  assert task.bounded and not whole.bounded
  how = inference("crop", subject.how.config, 128, 128)  # it goes by the prompt's length, not by the nominal one
  assert whole.measure(dataclasses.replace(subject, how=how), 128)[0].value == 0.0  # no context is left


@pytest.mark.parametrize(
  ("dataset", "fields", "message"),
  [
    ("passage_retrieval_en", {"answers": ["the third"]}, "the reference 'the third' names no paragraph"),
    ("trec", {"all_classes": None}, "not iterable"),
    ("musique", {"answers": [3]}, "no attribute 'lower'"),
    ("lcc", {"answers": None}, "not iterable"),
  ],
)
def test_a_reference_that_cannot_be_scored_is_found_before_anything_is_generated(tmp_path, dataset, fields, message):
  good = {"answers": ["Paragraph 3"], "all_classes": ["Paragraph 3"]}
  write(tmp_path, dataset, [record(**good), record(**{**good, **fields})])
  with pytest.raises(ConfigError, match=rf"{dataset}\.jsonl: record 2 is not one of {dataset} .*{message}"):
    LongBench(dataset=dataset, folder=tmp_path).check(256, None)


def test_files_are_named_when_they_are_not_as_released(tmp_path):
  data = EvalData(tokenizer=ByteTokenizer(), longest=64, longbench=tmp_path, limit=1)
  (task,) = make_tasks(["longbench_lcc"], data)
  with pytest.raises(FileError, match=r"lcc\.jsonl: cannot be read"):
    task.check(256, None)
  (tmp_path / "qasper.jsonl").write_text('{"input": "x"}\n')
  with pytest.raises(FileError, match=r"qasper\.jsonl: record 1 has no field 'context'"):
    make_tasks(["longbench_qasper"], data)[0].check(256, None)
  write(tmp_path, "trec_e", [record(all_classes=["Ann"])] * 2)
  (task,) = make_tasks(["longbench_trec"], data)
  assert len(task.records) == 1
  with pytest.raises(ConfigError, match="longbench_trec at 64 tokens"):
    task.check(64, None)
  with pytest.raises(ConfigError, match="needs the folder of LongBench's released files"):
    make_tasks(["longbench"], EvalData(tokenizer=ByteTokenizer(), longest=64))
