"""What is read off finished runs and stored models: statistics, divergence tokens, theory checks, audits."""
