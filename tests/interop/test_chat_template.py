"""A chat template goes the whole way: in with an import, into prompts and the harness, and out with an export."""

import json

import pytest
from support.pretrained import hugging_face_model, transformers
from support.tokenizer_files import byte_level, write

from drope_jax.data import chat
from drope_jax.data.tokenizers import load_tokenizer
from drope_jax.interop.exporting import export_model
from drope_jax.interop.importing import import_model
from experiments.generate import encode_prompts

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
TEMPLATE += "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
ASKED = [{"role": "user", "content": "a river"}]
PLACES = {  # where released models keep it
  "config": {"chat_template": TEMPLATE},
  "file": {},
  "several": {"chat_template": [{"name": "tool_use", "template": "T"}, {"name": "default", "template": TEMPLATE}]},
}


@pytest.mark.parametrize("place", PLACES)
def test_it_is_the_same_after_import_and_export(place, tmp_path):
  hugging_face_model("Llama", tie_word_embeddings=True).save_pretrained(tmp_path / "source")
  config = {"eos_token": "<|im_end|>", "bos_token": None, **PLACES[place]}
  write(byte_level(), tmp_path / "source", tokenizer_config=config)
  if place == "file":
    (tmp_path / "source/chat_template.jinja").write_text(TEMPLATE)
  import_model(tmp_path / "source", tmp_path / "imported")
  expected = transformers.AutoTokenizer.from_pretrained(tmp_path / "source").apply_chat_template(
    ASKED, tokenize=False, add_generation_prompt=True
  )
  ours = load_tokenizer(tmp_path / "imported")
  assert chat.render(ours, ASKED) == expected
  (prompt,) = encode_prompts(ours, [ASKED[0]["content"]], bos=False, as_chat=True)
  assert prompt == ours.encode(expected, special_tokens=True) and prompt[0] == byte_level().token_to_id("<|im_start|>")
  export_model(tmp_path / "imported", tmp_path / "exported")
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "exported")
  assert theirs.apply_chat_template(ASKED, tokenize=False, add_generation_prompt=True) == expected
  ids = theirs.apply_chat_template(ASKED, add_generation_prompt=True, return_dict=True)["input_ids"]
  assert list(ids) == prompt
  roles = json.loads((tmp_path / "exported/tokenizer_config.json").read_text())
  assert roles["bos_token"] is None and roles["eos_token"] == "<|im_end|>"
