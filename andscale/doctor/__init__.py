"""One screen about this machine: what a run needs of it, tried and not assumed."""
