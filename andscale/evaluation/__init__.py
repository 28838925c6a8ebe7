"""Embedding of a split and weighted kNN over the embeddings."""
