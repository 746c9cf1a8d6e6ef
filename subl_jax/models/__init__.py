"""Architectures, one file each; their adapters; and how tokens are drawn from them."""
