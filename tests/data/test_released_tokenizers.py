"""Tokenizers as they are released: what their files carry beside the tokenization, their roles, and their bytes."""

import json
import pickle

import pytest
from support.tokenizer_files import byte_fallback, byte_level, write
from tokenizers import normalizers

from drope_jax.data.tokenizers import JsonTokenizer, load_tokenizer
from drope_jax.errors import ConfigError, FileError

EOS = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
TEXTS = ("river wind " * 30, "stone", "  spaces, and\nlines ", "ein Fluß: 江河 🜁", "")


def theirs(directory):
  transformers = pytest.importorskip("transformers")
  return transformers.AutoTokenizer.from_pretrained(directory)


# --- what a file carries -----------------------------------------------------------------------


def test_truncation_and_padding_are_switched_off(tmp_path):
  tokenizer = byte_fallback()
  tokenizer.enable_truncation(8, stride=2, direction="left")
  tokenizer.enable_padding(length=12, pad_id=0, pad_token="<unk>")
  write(tokenizer, tmp_path / "source", tokenizer_config=EOS)
  ours = load_tokenizer(tmp_path / "source")
  ours.save(tmp_path / "saved")
  reference = theirs(tmp_path / "source")
  for text in TEXTS:
    expected = reference(text, add_special_tokens=False)["input_ids"]
    for one in (ours, pickle.loads(pickle.dumps(ours)), load_tokenizer(tmp_path / "saved")):
      assert one.encode(text) == expected
  saved = json.loads((tmp_path / "saved/tokenizer.json").read_text())
  assert saved["truncation"] is None and saved["padding"] is None


def test_the_normaliser_stays_and_the_template_adds_nothing(tmp_path):
  tokenizer = byte_fallback()
  tokenizer.normalizer = normalizers.Sequence([normalizers.Strip(), normalizers.NFKC(), tokenizer.normalizer])
  write(tokenizer, tmp_path, tokenizer_config=EOS)
  ours, reference = load_tokenizer(tmp_path), theirs(tmp_path)
  for text in (*TEXTS, "  ﬁne  "):
    assert ours.encode(text) == reference(text, add_special_tokens=False)["input_ids"]
  assert reference("stone")["input_ids"][0] == ours.encode("<s>stone", special_tokens=True)[0] == 1


# --- roles -------------------------------------------------------------------------------------

ROLES = {
  # name: the files beside the tokenizer.json, then the expected EOS and BOS
  "the config": ({"tokenizer_config": {"eos_token": "<|stop|>", "bos_token": "<s>"}}, "<|stop|>", "<s>"),
  "objects": ({"tokenizer_config": {"eos_token": {"content": "<|stop|>"}, "bos_token": None}}, "<|stop|>", None),
  "the map alone": (
    {"tokenizer_config": {}, "special_tokens_map": {"eos_token": "<|stop|>", "bos_token": {"content": "<s>"}}},
    "<|stop|>",
    "<s>",
  ),
  "the config before the map": (
    {
      "tokenizer_config": {"eos_token": "</s>", "bos_token": None},
      "special_tokens_map": {"eos_token": "<|stop|>", "bos_token": "<s>"},
    },
    "</s>",
    None,
  ),
  "the model": ({"config": {"model_type": "llama", "eos_token_id": [3, 2], "bos_token_id": None}}, "<|stop|>", None),
  "the map before the model": (
    {"special_tokens_map": {"eos_token": "<|stop|>"}, "config": {"eos_token_id": 2, "bos_token_id": 1}},
    "<|stop|>",
    "<s>",
  ),
  "a run's own config": ({"config": {"steps": 3}, "tokenizer_config": {"eos_token": "</s>"}}, "</s>", "<s>"),
}


@pytest.mark.parametrize("name", ROLES)
def test_roles_are_read_in_the_order_of_their_authority(name, tmp_path):
  files, eos, bos = ROLES[name]
  tokenizer = byte_fallback(("<unk>", "<s>", "</s>", "<|stop|>"))
  write(tokenizer, tmp_path / "source", **files)
  ours = load_tokenizer(tmp_path / "source")
  assert ours.eos_id == tokenizer.token_to_id(eos)
  assert ours.bos_id == (None if bos is None else tokenizer.token_to_id(bos))
  ours.save(tmp_path / "saved")
  said = json.loads((tmp_path / "saved/tokenizer_config.json").read_text())
  assert {role: (said[role] or {}).get("content") if isinstance(said[role], dict) else said[role] for role in said} == (
    {**said, "eos_token": eos, "bos_token": bos}
  )
  again = load_tokenizer(tmp_path / "saved")
  assert (again.eos_id, again.bos_id) == (ours.eos_id, ours.bos_id)


def test_a_null_is_an_answer_and_ordinary_words_are_no_roles(tmp_path, caplog):
  """`<s>` and `</s>` are words of this vocabulary, as in Qwen3's."""
  write(byte_level(), tmp_path / "said", tokenizer_config={"eos_token": "<|im_end|>", "bos_token": None})
  said = load_tokenizer(tmp_path / "said")
  assert said.bos_id is None and theirs(tmp_path / "said").bos_token_id is None
  assert not caplog.text
  guessed = load_tokenizer(write(byte_level(), tmp_path / "guessed"))
  assert guessed.decode([guessed.eos_id]) == "" and guessed.bos_id is None
  assert guessed.eos_id == byte_level().token_to_id("<|endoftext|>")
  assert "eos_token" in caplog.text and "<|endoftext|>" in caplog.text and "bos_token" not in caplog.text


def test_without_a_special_token_to_guess_there_is_no_end(tmp_path):
  write(byte_level(("<|stop|>",)), tmp_path)
  with pytest.raises(ConfigError, match="no end-of-document token"):
    load_tokenizer(tmp_path)


def test_several_ends_stay_several(tmp_path):
  source = write(
    byte_level(),
    tmp_path / "source",
    tokenizer_config={"eos_token": "<|im_end|>"},
    generation_config={"eos_token_id": [256 + 2, 256 + 4, 9999]},
  )
  ours = load_tokenizer(source)
  assert ours.eos_ids == (260, 258)  # the tokenizer's own first; an id that is no token is none
  ours.save(tmp_path / "saved")
  assert load_tokenizer(tmp_path / "saved").eos_ids == ours.eos_ids
  in_model = write(byte_level(), tmp_path / "model", config={"eos_token_id": [258, 260]})
  assert load_tokenizer(in_model).eos_ids == (258, 260)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize(
  "content", [b"\xff\xfe\x00", b"[1]", b"version https://git-lfs.github.com/spec/v1\noid sha256:0"]
)
def test_a_file_that_is_none_is_named(name, content, tmp_path):
  write(byte_level(), tmp_path)
  (tmp_path / name).write_bytes(content)
  with pytest.raises(FileError, match=name) as error:
    load_tokenizer(tmp_path)
  assert "\n" not in str(error.value) and ("git lfs pull" in str(error.value)) == content.startswith(b"version")


# --- bytes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [byte_fallback, byte_level])
@pytest.mark.parametrize("text", ["the river", "Ж и я", "日本", "🜁🜂 wind", "<s> is text"])
def test_the_pieces_are_the_bytes_of_the_text(kind, text, tmp_path):
  """However it is cut, within characters too."""
  tokenizer = load_tokenizer(write(kind(), tmp_path))
  ids = tokenizer.encode(text)
  spelled = b"".join(map(tokenizer.piece, ids))
  assert spelled == ((" " if kind is byte_fallback else "") + text).encode()
  assert len({len(tokenizer.piece(token)) for token in ids}) >= 1 and all(tokenizer.piece(token) for token in ids)
  assert tokenizer.piece(tokenizer.eos_id) == b"" and tokenizer.piece(10**6) == b""
  assert pickle.loads(pickle.dumps(tokenizer)).piece(ids[0]) == tokenizer.piece(ids[0])


def test_a_token_that_was_added_and_is_not_special_is_its_text(tmp_path):
  tokenizer = byte_level()
  tokenizer.add_tokens(["日本"])
  ours = JsonTokenizer(write(tokenizer, tmp_path) / "tokenizer.json")
  (token,) = ours.encode("日本")
  assert ours.piece(token) == "日本".encode()
