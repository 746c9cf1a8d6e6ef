"""Worlds: what an experiment is made of, one file each."""
