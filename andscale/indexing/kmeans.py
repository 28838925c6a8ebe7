"""k-means by FAISS, as DeepCluster clusters its features."""

import numpy as np

from andscale.errors import RunError
from andscale.indexing.faiss_index import import_faiss, num_gpus
from andscale.store.files import num_usable_cores

_ITERATIONS = 20
_LARGEST_DIM = 256


def cluster_features(features: np.ndarray, num_clusters: int, seed: int) -> np.ndarray:
    """Whiten, scale to unit length, and run k-means on all samples, on all GPUs where there are any.

    Args:
        features: (N, D) float32.
        num_clusters: C, at most N.
        seed: of the first centres.

    Returns:
        (N,) int64, the cluster of each sample.

    Raises:
        RunError: features that are not finite.
    """
    faiss = import_faiss()
    if not np.isfinite(features).all():
        raise RunError("features to cluster are not finite: lower optim.learning_rate")
    faiss.omp_set_num_threads(num_usable_cores())  # the other ranks wait
    whitened = whiten(features)
    kmeans = faiss.Kmeans(
        whitened.shape[1],
        num_clusters,
        niter=_ITERATIONS,
        seed=seed,
        gpu=num_gpus() or False,
        min_points_per_centroid=1,
        max_points_per_centroid=len(features),  # all samples take part
    )
    kmeans.train(whitened)
    _, nearest = kmeans.index.search(whitened, 1)
    clusters: np.ndarray = nearest[:, 0].astype(np.int64)
    return clusters


def whiten(features: np.ndarray) -> np.ndarray:
    """PCA with whitening to at most 256 dimensions, then unit length.

    Directions in which the features hardly vary (less than a millionth of the largest variance) are left out: whitening
    would blow up nothing but rounding.

    Args:
        features: (N, D) float32.

    Returns:
        (N, d) float32, d <= min(D, 256).
    """
    centred = features - features.mean(axis=0, dtype=np.float64).astype(np.float32)
    covariance = (centred.T @ centred).astype(np.float64) / len(features)
    variances, axes = np.linalg.eigh(covariance)
    order = np.argsort(variances)[::-1][:_LARGEST_DIM]
    order = order[variances[order] > 1e-6 * max(variances.max(), 1e-30)]
    whitened = centred @ (axes[:, order] / np.sqrt(variances[order])).astype(np.float32)
    whitened /= np.maximum(np.linalg.norm(whitened, axis=1, keepdims=True), 1e-12)
    return np.ascontiguousarray(whitened, np.float32)
