"""The paper's tables as runs, columns and published numbers, and what came out beside them."""
