"""Batches as tasks on the machines of a Ray cluster."""
