"""Tokens drawn from a model one at a time: one sampler, one loop of continuous batching."""
