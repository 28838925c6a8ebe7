"""Purity of neighbourhoods against audit labels, which nothing in training or selection may take."""
