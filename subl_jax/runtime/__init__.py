"""The machine: devices, memory, processes that agree, what was measured here before."""
