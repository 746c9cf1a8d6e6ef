"""What is measured of a model, one file a probe."""
