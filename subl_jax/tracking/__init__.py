"""Who watches a sweep: W&B, the terminal, or nobody."""
