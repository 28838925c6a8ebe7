"""The rebuild job: neighbours, entropies, curriculum. Never imports ``training``."""
