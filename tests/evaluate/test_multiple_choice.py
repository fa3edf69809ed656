"""Multiple choice from files as they are released, with models whose accuracy is known."""

import json
import random

import pytest
from support.stub_model import LIKELIHOOD, guessing, put, saying
from support.tiny_run import tiny_model

from drope_jax.data.tokenizers import ByteTokenizer
from drope_jax.errors import ConfigError
from drope_jax.evaluate.methods import Inference
from drope_jax.evaluate.subject import Subject
from drope_jax.evaluate.tasks.multiple_choice import READERS, MultipleChoice, encode_pair

TOKENIZER = ByteTokenizer()
SUBJECT = Subject(
  params={}, how=Inference(tiny_model()), tokenizer=TOKENIZER, train_context=16
)  # it encodes, and is not run
ARC = {
  "id": "1",
  "question": {"stem": "What falls?", "choices": [{"text": "rain", "label": "A"}, {"text": "a hat", "label": "B"}]},
  "answerKey": "B",
}
HUB_ARC = {
  "question": "What falls?",
  "choices": {"text": ["rain", "a hat"], "label": ["1", "2"]},
  "answerKey": "2",
}
OPENBOOK = {"question_stem": "Rain is", "choices": HUB_ARC["choices"], "answerKey": "1 "}
HELLASWAG = {
  "activity_label": "Baking",
  "ctx_a": "[header] How to bake [title] Mix it.",
  "ctx_b": "then she",
  "endings": ["eats [substeps] it", "runs."],
  "label": 1,
}
PIQA = {"goal": "Open a jar", "sol1": "twist", "sol2": "sing"}
WINOGRANDE = {"sentence": "Ann beat Bob, so _ was glad .", "option1": "Bob", "option2": "Ann", "answer": "2"}
EXPECTED = {  # task, record: what is compared, the right one, characters
  "arc_easy": (ARC, [("Question: What falls?\nAnswer:", " rain"), ("Question: What falls?\nAnswer:", " a hat")], 1),
  "arc_challenge": (HUB_ARC, [("Question: What falls?\nAnswer:", f" {one}") for one in ("rain", "a hat")], 1),
  "openbookqa": (OPENBOOK, [("Rain is", " rain"), ("Rain is", " a hat")], 0),
  "hellaswag": (
    HELLASWAG,
    [("Baking:  How to bake. Mix it. Then she", " eats it"), ("Baking:  How to bake. Mix it. Then she", " runs.")],
    1,
  ),
  "piqa": (PIQA, [("Question: Open a jar\nAnswer:", " twist"), ("Question: Open a jar\nAnswer:", " sing")], 0),
  "winogrande": (
    WINOGRANDE,
    [("Ann beat Bob, so Bob", " was glad ."), ("Ann beat Bob, so Ann", " was glad .")],
    1,
  ),
}


def write(folder, name, records, labels="0\n"):
  (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n")
  if name == "piqa":
    (folder / "piqa-labels.lst").write_text(labels)
  return MultipleChoice(name=name, folder=folder)


@pytest.mark.parametrize("name", READERS)
def test_a_record_as_released_becomes_its_question(tmp_path, name):
  record, pairs, right = EXPECTED[name]
  (question,) = write(tmp_path, name, [record]).questions
  # A blank is not doubled, however the markup was cut out.
  assert [(context.replace("  ", " "), end) for context, end in question.pairs] == [
    (context.replace("  ", " "), end) for context, end in pairs
  ]
  assert question.right == right
  assert question.characters == (
    tuple(len(end) - 1 for _, end in pairs) if name != "winogrande" else (len(" was glad ."),) * 2
  )


def many(count):
  """Questions whose stem spells the right choice out, after a colon."""
  rng = random.Random(0)
  records = []
  for i in range(count):
    texts = ["x" * rng.randint(1, 9) + letter for letter in "ABCD"]
    right = rng.randrange(4)
    choices = [{"text": text, "label": letter} for text, letter in zip(texts, "ABCD", strict=True)]
    records.append({"question": {"stem": f"{i}: {texts[right]}?", "choices": choices}, "answerKey": "ABCD"[right]})
  return records


def knowing(text: str) -> str:
  asked, _, said = text.rpartition("?\nAnswer:")
  wanted = asked.rpartition(":")[2]
  return wanted[len(said) :] if wanted.startswith(said) else ""


def test_one_that_knows_is_always_right_and_one_that_guesses_a_quarter_of_the_time(monkeypatch, tmp_path):
  task = write(tmp_path, "arc_easy", many(400))
  subject = put(monkeypatch, saying(knowing, TOKENIZER), TOKENIZER, module=LIKELIHOOD)
  assert [figure.value for figure in task.measure(subject, 128)] == [1.0, 1.0]
  subject = put(monkeypatch, guessing(TOKENIZER), TOKENIZER, module=LIKELIHOOD)
  raw, normalised = task.measure(subject, 128)
  assert abs(raw.value - 0.25) < 0.07 and raw.n == 400 and raw.low < 0.25 < raw.high
  assert abs(normalised.value - 0.25) < 0.07
  assert (raw.metric, normalised.metric) == ("accuracy", "accuracy_norm")


def test_normalisation_is_by_characters_of_the_choice(monkeypatch, tmp_path):
  choices = {"text": ["ab", "abcdefgh"], "label": ["A", "B"]}
  task = write(tmp_path, "arc_easy", [{"question": "?: abcdefgh?", "choices": choices, "answerKey": "B"}])
  # Each token of both costs the same: 3 and 9 of them with the blank, by character 3 / 2 and 9 / 8.
  subject = put(monkeypatch, saying(knowing, TOKENIZER, sure=2.0), TOKENIZER, module=LIKELIHOOD)
  assert [figure.value for figure in task.measure(subject, 128)] == [0.0, 1.0]


def test_labels_of_piqa_are_a_file_of_their_own(tmp_path):
  with pytest.raises(ConfigError, match=r"piqa-labels\.lst: 1 labels for 2 questions"):
    write(tmp_path, "piqa", [PIQA, PIQA]).check(128, None)
  assert [question.right for question in write(tmp_path, "piqa", [PIQA, PIQA], "1\n0\n").questions] == [1, 0]
  limited = MultipleChoice(name="piqa", folder=tmp_path, limit=1)
  assert [question.right for question in limited.questions] == [1]
  (tmp_path / "piqa-labels.lst").unlink()
  with pytest.raises(ConfigError, match=r"piqa-labels\.lst: cannot be read"):
    MultipleChoice(name="piqa", folder=tmp_path).check(128, None)


def test_a_record_of_something_else_is_named(tmp_path):
  with pytest.raises(ConfigError, match=r"winogrande\.jsonl: record 2 is not one of winogrande"):
    write(tmp_path, "winogrande", [WINOGRANDE, PIQA]).check(128, None)


def test_blanks_before_a_continuation_belong_to_it():
  context, continuation = encode_pair(SUBJECT, "Rain is  ", "wet")
  assert (TOKENIZER.decode(context), TOKENIZER.decode(continuation)) == ("Rain is", "  wet")
