"""The command line, and one sweep from specs to results."""
