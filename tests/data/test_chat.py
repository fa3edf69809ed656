"""Conversations by a tokenizer's template, as transformers writes them."""

import pytest
from support.tokenizer_files import byte_fallback, byte_level, write

from drope_jax.data import chat
from drope_jax.data.tokenizers import ByteTokenizer, load_tokenizer
from drope_jax.errors import ConfigError

IM = """{%- for message in messages %}
    {%- if loop.first and message.role != 'system' %}
        {{- '<|im_start|>system\\nBe brief.<|im_end|>\\n' }}
    {%- endif %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message.content | trim + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
INST = """{{ bos_token }}{% for message in messages %}
{% if message.role == 'system' %}{{ raise_exception('no system messages here') }}{% endif %}
{% if message.role == 'user' %}[INST] {{ message.content | tojson }} [/INST]{% continue %}{% endif %}
{{ message.content }}{{ eos_token }}
{% endfor %}"""
ASKED = [{"role": "user", "content": "the <river> & é"}]
ANSWERED = [*ASKED, {"role": "assistant", "content": "wind"}, {"role": "user", "content": "stone"}]


def both(tmp_path, kind, template, **roles):
  transformers = pytest.importorskip("transformers")
  config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template, **roles}
  write(kind(), tmp_path, tokenizer_config=config)
  return load_tokenizer(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)


TEMPLATES = {
  "im": (byte_level, IM, {"eos_token": "<|im_end|>", "bos_token": None}),
  "inst": (byte_fallback, INST, {"eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"}),
}


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("messages", [ASKED, ANSWERED])
def test_a_conversation_is_written_and_encoded_as_transformers_does(name, messages, tmp_path):
  kind, template, roles = TEMPLATES[name]
  ours, reference = both(tmp_path, kind, template, **roles)
  text = chat.render(ours, messages)
  assert text == reference.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
  expected = reference(text, add_special_tokens=False)["input_ids"]
  assert ours.encode(text, special_tokens=True) == expected
  assert ours.encode(text) != expected  # by default a text spells nothing out
  unfinished = [*ASKED, {"role": "assistant", "content": "win"}]
  assert chat.render(ours, unfinished, whole=False) == reference.apply_chat_template(
    unfinished, tokenize=False, continue_final_message=True
  )


def test_a_template_of_its_own_file_comes_first(tmp_path):
  ours, _ = both(tmp_path, byte_level, "in the config", eos_token="<|im_end|>")
  assert chat.render(ours, ASKED) == "in the config"
  (tmp_path / "chat_template.jinja").write_text("in a file")
  load_tokenizer(tmp_path).save(tmp_path / "saved")
  assert chat.render(load_tokenizer(tmp_path / "saved"), ASKED) == "in a file"


def test_of_several_templates_the_default_is_taken(tmp_path):
  several = [{"name": "rag", "template": "R"}, {"name": "default", "template": "D"}]
  write(byte_level(), tmp_path, tokenizer_config={"eos_token": "<|im_end|>", "chat_template": several})
  assert chat.render(load_tokenizer(tmp_path), ASKED) == "D"


BROKEN = {"refuses": "{{ raise_exception('no') }}", "syntax": "{% for %}", "field": "{{ messages[9].content.x.y }}"}


@pytest.mark.parametrize("template", BROKEN.values(), ids=BROKEN)
def test_what_cannot_be_written_is_one_line(template, tmp_path):
  ours, _ = both(tmp_path, byte_level, template, eos_token="<|im_end|>")
  with pytest.raises(ConfigError, match="chat template") as error:
    chat.render(ours, ASKED)
  assert "\n" not in str(error.value)
  with pytest.raises(ConfigError, match="no chat template"):
    chat.render(ByteTokenizer(), ASKED)
