"""The training job: backbone, memory bank, objective, loop. Never imports ``indexing``."""
