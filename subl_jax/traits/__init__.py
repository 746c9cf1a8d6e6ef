"""What models are asked, and how the answers are scored, one file a suite."""
