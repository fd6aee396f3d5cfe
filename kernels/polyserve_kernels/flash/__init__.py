"""Attention by the flash-attn library, for the backend `triton+flash`. The only folder that imports it."""
