"""Models: pure functions of a config, parameters and inputs."""
