"""The language model: loading, LoRA, and the encoding of item texts. transformers and peft load on first use."""
