"""How experiments.generate reads its prompts."""

import pytest
from support.tokenizer_files import byte_fallback, byte_level, write

from drope_jax.data.tokenizers import ByteTokenizer, load_tokenizer
from drope_jax.errors import ConfigError
from experiments.generate import encode_prompts

TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}{% endfor %}"


def test_a_chat_is_written_by_the_template_with_one_bos(tmp_path):
  config = {"eos_token": "</s>", "bos_token": "<s>", "chat_template": TEMPLATE}
  tokenizer = load_tokenizer(write(byte_fallback(), tmp_path, tokenizer_config=config))
  plain, chat, begun = (
    encode_prompts(tokenizer, ["wind"], bos=bos, as_chat=as_chat)[0]
    for bos, as_chat in ((False, False), (False, True), (True, True))
  )
  assert chat == begun and chat[0] == tokenizer.bos_id and chat[-1] == tokenizer.eos_id
  assert plain == tokenizer.encode("wind") and "[user]" in tokenizer.decode(chat)
  assert encode_prompts(tokenizer, ["wind"], bos=True, as_chat=False)[0] == [tokenizer.bos_id, *plain]


def test_what_the_tokenizer_lacks_is_refused(tmp_path):
  without = load_tokenizer(write(byte_level(), tmp_path, tokenizer_config={"eos_token": "<|im_end|>"}))
  with pytest.raises(ConfigError, match="no chat template"):
    encode_prompts(without, ["wind"], bos=False, as_chat=True)
  with pytest.raises(ConfigError, match="--bos"):
    encode_prompts(ByteTokenizer(), ["wind"], bos=True, as_chat=False)
