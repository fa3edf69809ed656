"""Tokenizers: round trips, roles, saving, and training."""

import json
import os
import pickle
import subprocess
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from drope_jax.data.panics import kept_from_stderr
from drope_jax.data.tokenizers import ByteTokenizer, JsonTokenizer, load_tokenizer, train_bpe
from drope_jax.errors import ConfigError, FileError

TEXTS = [f"The value of key{i} is {i * 37}; see 12345 other values, naïve or not.\n" for i in range(50)]


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
  return train_bpe(TEXTS, 280, tmp_path_factory.mktemp("bpe"))


@given(text=st.text())
@example(text="a text about <|endoftext|> and \x00")
def test_round_trip(bpe, text):
  for tokenizer in (ByteTokenizer(), bpe):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= i < tokenizer.vocab_size and i != tokenizer.eos_id for i in ids)


def test_special_tokens_leave_no_trace(bpe):
  for tokenizer in (ByteTokenizer(), bpe):
    assert tokenizer.decode([*tokenizer.encode("a b"), tokenizer.eos_id]) == "a b"


def test_training_merges_frequent_words_and_keeps_digits_apart(bpe):
  assert bpe.vocab_size == 280
  assert len(bpe.encode("The value of")) < 8
  assert len(bpe.encode("12345")) == 5


def test_whole_strings_are_one_token_and_part_of_the_size(tmp_path):
  whole = (" crimson", " color ->")
  tokenizer = train_bpe(TEXTS, 280, tmp_path, whole=whole)
  assert tokenizer.vocab_size == 280
  assert [len(tokenizer.encode(string)) for string in whole] == [1, 1]
  text = "\n color -> crimson; a value"
  assert tokenizer.decode(load_tokenizer(tmp_path).encode(text)) == text
  assert len(tokenizer.encode("\n color -> crimson")) == 3
  with pytest.raises(ConfigError, match="vocab_size is 258; it must be at least 259"):
    train_bpe(TEXTS, 258, tmp_path / "none", whole=whole)


def test_training_is_deterministic_across_processes(tmp_path):
  program = (
    "import sys; from drope_jax.data.tokenizers import train_bpe\n"
    "train_bpe([f'some {i % 7} words {i % 5} of {i % 3} text' for i in range(200)], 320, sys.argv[1])"
  )
  for name in ("one", "two"):
    subprocess.run([sys.executable, "-c", program, str(tmp_path / name)], check=True)
  assert (tmp_path / "one/tokenizer.json").read_bytes() == (tmp_path / "two/tokenizer.json").read_bytes()


def test_saved_tokenizers_read_back(bpe, tmp_path):
  for name, tokenizer in {"byte": ByteTokenizer(), "bpe": bpe}.items():
    tokenizer.save(tmp_path / name)
    again = load_tokenizer(tmp_path / name)
    assert type(again) is type(tokenizer)
    assert again.encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])
    assert (again.eos_id, again.bos_id, again.vocab_size) == (
      tokenizer.eos_id,
      tokenizer.bos_id,
      tokenizer.vocab_size,
    )


@pytest.mark.parametrize("text", [TEXTS[3], "not an end: <|endoftext|>"])
def test_pickles(bpe, text):
  assert pickle.loads(pickle.dumps(bpe)).encode(text) == bpe.encode(text)


def test_ids_that_are_no_token_have_no_text():
  assert ByteTokenizer().decode([300, *ByteTokenizer().encode("a"), 257, 0]) == "a"


def with_tokens(bpe, directory, *tokens):
  """A tokenizer.json whose special tokens are `tokens` and nothing else."""
  bpe.save(directory)
  (directory / "tokenizer_config.json").unlink()
  path = directory / "tokenizer.json"
  data = json.loads(path.read_text().replace("<|endoftext|>", "<|nothing|>"))
  data["added_tokens"] += [{**data["added_tokens"][0], "id": 280 + i, "content": t} for i, t in enumerate(tokens)]
  path.write_text(json.dumps(data))
  return path


def test_roles_come_from_the_config_beside_the_file(bpe, tmp_path):
  path = with_tokens(bpe, tmp_path, "</s>", "<s>", "<stop>")
  assert (JsonTokenizer(path).eos_id, JsonTokenizer(path).bos_id) == (280, 281)
  path.with_name("tokenizer_config.json").write_text(
    json.dumps({"eos_token": {"content": "<stop>"}, "bos_token": None})
  )
  assert JsonTokenizer(path).eos_id == 282
  assert JsonTokenizer(path, eos="<s>").eos_id == 281


@pytest.mark.parametrize(
  ("spec", "message"),
  [("missing.json", "missing.json"), (".", "no tokenizer here"), ("broken.json", "broken.json"), ("bytes", "bytes")],
)
def test_unreadable_is_one_line_naming_the_path(tmp_path, spec, message):
  (tmp_path / "broken.json").write_text("{}")
  with pytest.raises(FileError if spec == "broken.json" else ConfigError, match=message) as error:
    load_tokenizer(tmp_path / spec)
  assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_a_panic_of_the_library_is_one_line_and_nothing_is_printed(bpe, tmp_path, capfd):
  bpe.save(tmp_path)
  path = tmp_path / "tokenizer.json"
  data = json.loads(path.read_text())
  data["model"]["continuing_subword_prefix"] = "<0x41>"  # longer than the tokens that it should begin
  path.write_text(json.dumps(data))
  with pytest.raises(FileError, match=r"tokenizer\.json: not a readable tokenizer.json \(range end index"):
    load_tokenizer(path)
  assert capfd.readouterr().err == ""
  with kept_from_stderr():
    os.write(2, b"a line of another thread\n")
  assert capfd.readouterr().err == "a line of another thread\n"


def test_no_eos_is_an_error_naming_the_file(bpe, tmp_path):
  path = with_tokens(bpe, tmp_path)
  with pytest.raises(ConfigError, match="end-of-document") as error:
    JsonTokenizer(path)
  assert str(path) in str(error.value)
  with pytest.raises(ConfigError, match="<stop>"):
    JsonTokenizer(path, eos="<stop>")


def test_what_a_released_tokenizer_comes_with_is_kept_when_it_is_saved(bpe, tmp_path):
  source, copy, again = tmp_path / "source", tmp_path / "copy", tmp_path / "again"
  bpe.save(source)
  config = {"chat_template": "{{ 'é' }}", "eos_token": {"content": "<|endoftext|>", "lstrip": False}, "x": 1}
  (source / "tokenizer_config.json").write_text(json.dumps(config))
  (source / "chat_template.jinja").write_text("{{ messages }}\n")
  (source / "generation_config.json").write_text('{"eos_token_id": 0}')
  load_tokenizer(source).save(copy)
  load_tokenizer(copy).save(again)
  for directory in (copy, again):
    # That there is no token to begin with was found out when it was read; now the file says it.
    assert json.loads((directory / "tokenizer_config.json").read_text()) == {**config, "bos_token": None}
    assert (directory / "chat_template.jinja").read_text() == "{{ messages }}\n"
    assert json.loads((directory / "generation_config.json").read_text()) == {"eos_token_id": 0}
  assert load_tokenizer(again).eos_id == bpe.eos_id
  JsonTokenizer(source / "tokenizer.json", eos="The").save(tmp_path / "other")
  assert json.loads((tmp_path / "other" / "tokenizer_config.json").read_text()) == {
    **config,
    "eos_token": "The",
    "bos_token": None,
  }
