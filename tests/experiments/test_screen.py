"""How experiments.generate shows answers that grow together."""

import io
import json

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from drope_jax.data.tokenizers import ByteTokenizer, JsonTokenizer
from experiments.generate import Screen


def shown(tokenizer, answers, headings=None):
  """The text on the screen after each token of every answer."""
  out = io.StringIO()
  screen = Screen(tokenizer, headings or [""] * len(answers), out)
  states = []
  for step in range(max(map(len, answers))):
    pieces = [answer[step : step + 1] for answer in answers]
    screen.show(pieces, [len(answer) <= step + 1 for answer in answers])
    states.append(out.getvalue())
  return states


def test_an_answer_waits_until_those_before_it_are_whole():
  byte = ByteTokenizer()
  answers = [byte.encode("ab"), byte.encode("c"), byte.encode("def")]
  states = shown(byte, answers, ["1:", "2:", "3:"])
  assert states == ["1:a", "1:ab\n2:c\n3:de", "1:ab\n2:c\n3:def\n"]


def test_a_character_is_shown_when_it_is_whole():
  byte = ByteTokenizer()
  assert shown(byte, [byte.encode("é…")]) == ["", "é", "é", "é", "é…\n"]


def test_bytes_that_never_become_a_character_are_not_lost():
  byte = ByteTokenizer()
  assert shown(byte, [byte.encode("é")[:1]]) == ["\N{REPLACEMENT CHARACTER}\n"]


@pytest.fixture
def sentencepiece_like(tmp_path):
  """A tokenizer that, as Llama 2's, writes no space before its first word."""
  vocabulary = {token: i for i, token in enumerate(["</s>", "▁the", "▁end"])}
  tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="</s>"))
  tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
  tokenizer.save(str(tmp_path / "tokenizer.json"))
  (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
  return JsonTokenizer(tmp_path / "tokenizer.json")


def test_the_space_between_prompt_and_answer_is_kept(sentencepiece_like):
  assert sentencepiece_like.decode([2]) == "end"
  assert shown(sentencepiece_like, [[2]]) == [" end\n"]
