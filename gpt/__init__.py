"""A DeepSpeed-based GPT trainer for comparing language models at equal compute."""

__version__ = "0.1.0"
