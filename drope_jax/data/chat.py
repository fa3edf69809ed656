"""Renders conversations as text for a chat model, with the Jinja template of its tokenizer."""

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.sandbox

from drope_jax.data.tokenizers import Tokenizer
from drope_jax.errors import ConfigError

Message = Mapping[str, str]  # with "role" ("system", "user", "assistant") and "content"


def render(tokenizer: Tokenizer, messages: Sequence[Message], whole: bool = True) -> str:
  """The text of a conversation; encode it with `special_tokens=True`.

  Args:
    messages: in order.
    whole: whether the last message is complete, so that the model's answer follows. If not, the text ends with that
      message, for the model to continue.

  Raises:
    ConfigError: if the tokenizer has no template, or the template refuses the conversation or is broken.
  """
  if tokenizer.chat_template is None:
    raise ConfigError(
      "the checkpoint's tokenizer has no chat template; write one to chat_template.jinja beside its tokenizer.json"
    )
  try:
    template = _environment().from_string(tokenizer.chat_template)
    text = template.render(messages=list(messages), add_generation_prompt=whole, **tokenizer.special_tokens)
  except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
    raise ConfigError(f"the chat template cannot write this conversation ({error})") from error
  if whole:
    return text
  last = messages[-1]["content"].strip()
  if last not in text:
    raise ConfigError(f"the chat template leaves out the last message, {last[:60]!r}, so nothing can go on with it")
  return text[: text.rindex(last) + len(last)]


def _environment() -> jinja2.Environment:
  """A Jinja environment like that of transformers, which released templates expect."""
  environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
  )
  environment.filters["tojson"] = _to_json
  environment.globals["raise_exception"] = _refuse
  environment.globals["strftime_now"] = lambda layout: datetime.datetime.now().strftime(layout)
  return environment


def _to_json(value: Any, **how: Any) -> str:
  return json.dumps(value, **{"ensure_ascii": False, **how})  # Jinja's own escapes for HTML


def _refuse(message: str) -> NoReturn:
  raise jinja2.TemplateError(message)
