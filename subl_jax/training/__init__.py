"""How parameters are optimised: rules, losses, and which rows a step trains on."""
