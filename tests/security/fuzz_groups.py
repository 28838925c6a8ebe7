"""Formats that are fuzzed by one process, one after another."""

GROUPS = {
    "records and tables": (
        "manifest", "run record", "config", "metrics", "dataset", "npy",
        "features", "foreign", "neighbourhoods", "catalogue",
    ),
    "archives": ("shard", "tar", "tar.gz", "idx", "idx.gz", "cifar", "mat", "mat plain"),
    "networks and images": (
        "checkpoint", "model config", "model weights", "image jpeg", "image png", "image webp", "image bmp",
    ),
    "indexes": ("index flat", "index ivf_flat", "index ivf_pq", "index hnsw"),
}  # fmt: skip
