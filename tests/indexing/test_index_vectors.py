import numpy as np
import pytest

import reference
from andscale.indexing.faiss_index import INDEX_NAME, read_mapped, save
from andscale.indexing.index_building import build_index
from andscale.indexing.index_vectors import prepare_vectors, vector_of


@pytest.mark.parametrize(("kind", "error"), [("flat", 0), ("ivf_flat", 0), ("hnsw", 0), ("ivf_pq", 0.02)])
def test_a_vector_is_found_by_its_id_in_a_mapped_index_of_each_kind(tmp_path, kind, error):
    features = reference.unit_rows(np.random.default_rng(0), 2000, 32)
    save(build_index(features, kind, seed=1), tmp_path / INDEX_NAME)
    index = read_mapped(tmp_path / INDEX_NAME)
    prepare_vectors(index)
    for sample_id in (0, 17, 1999):
        np.testing.assert_allclose(vector_of(index, sample_id), features[sample_id], atol=error)
