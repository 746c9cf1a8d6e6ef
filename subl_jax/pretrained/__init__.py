"""Checkpoints from outside: families of weights, files, tokenizers, chat templates."""
