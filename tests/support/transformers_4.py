"""Loads models of ours in transformers 4 and writes what it computes; runs in an environment of its own.

Reads {models: {name: folder}, tokens, new, text} from the file named by the first argument, and writes for each name
the logits behind `tokens`, the tokens that follow greedily, and the ids of `text`, to the file named by the second.
"""

import json
import sys

import torch
import transformers


def answers(folder: str, asked: dict) -> dict:
  model, info = transformers.AutoModelForCausalLM.from_pretrained(
    folder, torch_dtype=torch.float32, attn_implementation="eager", output_loading_info=True
  )
  assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
  tokens = torch.tensor([asked["tokens"]])
  wanted = {"max_new_tokens": asked["new"], "min_new_tokens": asked["new"], "do_sample": False, "eos_token_id": None}
  with torch.no_grad():
    logits = model.eval()(tokens).logits[0].tolist()
    text = model.generate(tokens, attention_mask=torch.ones_like(tokens), pad_token_id=0, **wanted)
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  return {
    "class": type(model).__name__,
    "logits": logits,
    "greedy": text[0, tokens.shape[1] :].tolist(),
    "ids": tokenizer(asked["text"])["input_ids"],
  }


def main() -> None:
  with open(sys.argv[1], encoding="utf-8") as file:
    asked = json.load(file)
  answered = {name: answers(folder, asked) for name, folder in asked["models"].items()}
  with open(sys.argv[2], "w", encoding="utf-8") as file:
    json.dump({"version": transformers.__version__, "answers": answered}, file)


if __name__ == "__main__":
  main()
