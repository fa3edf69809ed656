"""The harness's conversations and ends of answers, with a checkpoint that has a chat template and several EOS."""

import pytest
from support.checkpoints import random_params, write_checkpoint
from support.tiny_run import tiny_model
from support.tokenizer_files import byte_level, write

pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")

from lm_eval.api.instance import Instance

from drope_jax.errors import ConfigError
from drope_jax.evaluate.harness import DropeJax
from drope_jax.generation import generate

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
START, END, TEXT_END = 259, 260, 258
ASKED = [{"role": "user", "content": "a river"}]


@pytest.fixture
def directory(tmp_path):
  write_checkpoint(tiny_model(vocab_size=262, positions=None), tmp_path, tokenizer=False)
  config = {"eos_token": "<|im_end|>", "bos_token": None, "chat_template": TEMPLATE}
  return write(byte_level(), tmp_path, tokenizer_config=config, generation_config={"eos_token_id": [END, TEXT_END]})


def test_special_tokens_of_a_template_are_those_tokens(directory):
  model = DropeJax(str(directory), length=64)
  spelled = "<|im_start|>user: a river<|im_end|>"
  assert len(model.tok_encode(spelled)) == len(spelled)  # no template was applied: text like any other
  text = model.apply_chat_template(ASKED)
  assert text == spelled and model.chat_template(True) == TEMPLATE
  tokens = model.tok_encode(text)
  assert tokens[0] == START and tokens[-1] == END and len(tokens) == len("user: a river") + 2


def test_without_a_template_it_is_one_line(tmp_path):
  write_checkpoint(tiny_model(vocab_size=262, positions=None), tmp_path, tokenizer=False)
  write(byte_level(), tmp_path, tokenizer_config={"eos_token": "<|im_end|>"})
  with pytest.raises(ConfigError, match="no chat template"):
    DropeJax(str(tmp_path)).apply_chat_template(ASKED)


def test_an_answer_ends_with_any_of_the_ends(directory, monkeypatch):
  """The harness passes all of them on; each ends a row where it comes first."""
  asked = []

  def answer(params, config, prompts, *, eos_id, **how):
    asked.append(tuple(eos_id))
    return [[1, TEXT_END] for _ in prompts]

  monkeypatch.setattr("drope_jax.evaluate.answers.generate", answer)
  model = DropeJax(str(directory), length=64)
  instance = Instance("generate_until", {}, ("a", {"until": [], "max_gen_toks": 4}), 0)
  model.generate_until([instance])
  assert asked == [(END, TEXT_END)]


def test_each_of_several_ends_ends_its_row():
  model = tiny_model(positions=None)
  params = random_params(model)
  prompts = [[1, 2], [3, 4, 5]]
  free = generate(params, model, prompts, max_new_tokens=6)
  ends = [free[0][2], free[1][3]]
  rows = generate(params, model, prompts, max_new_tokens=6, eos_id=ends)
  for row, whole in zip(rows, free, strict=True):
    first = next(i for i, token in enumerate(whole) if token in ends)
    assert row == whole[: first + 1]
