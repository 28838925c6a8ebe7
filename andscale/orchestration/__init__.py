"""What is next, from disk alone, and submitit: one step, one job."""
