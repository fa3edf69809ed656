"""Pretrained models in, extended models out: Hugging Face safetensors and GGUF in, safetensors out.

`python -m drope_jax.interop import SRC DIR` and `python -m drope_jax.interop export DIR DST`; see __main__.py.
"""
