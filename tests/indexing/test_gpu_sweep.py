"""The device sweep against float64: on the CPU under Triton's interpreter, on the GPU itself where there is one."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

import reference
from andscale.errors import RunError
from andscale.indexing import gpu_sweep
from andscale.indexing.gpu_partials import GpuRequest, TensorPartials, in_row_batches, merge_candidates
from andscale.indexing.gpu_plan import Tiling, candidates_for, make_operands, make_plan, score_error
from andscale.indexing.gpu_sweep import find_sweep, sweep_on_gpu, sweep_streamed, sweep_with_kernel
from andscale.indexing.partials import NO_ID, NO_SCORE, SUM_SCALE
from andscale.indexing.torch_sweep import sweep_with_torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if DEVICE.type == "cpu":
    # Triton reads it at its first import, which no test file and nothing of the package does while tests are collected
    os.environ["TRITON_INTERPRET"] = "1"

SMALL = Tiling(block_rows=32, block_columns=32, max_chunk=64, num_warps=4, num_stages=1)


def _on_device(features):
    return torch.from_numpy(features).to(DEVICE)


def _kernel(rows, columns, request, tiling=SMALL):
    return sweep_with_kernel(_on_device(rows), _on_device(columns), request, tiling).to_partials()


def _assert_right(found, rows, columns, request):
    """Sums, scores, own ids and cuts against float64; ties may be kept in any order."""
    exact = rows.astype(np.float64) @ columns.astype(np.float64).T
    exponents = (exact - 1) * np.log2(np.e) / request.temperature
    weights = np.exp2(exponents)
    tolerance = {"float32": 2e-6, "float16": 4e-4}[request.precision] / request.temperature
    np.testing.assert_allclose(found.weight_sums / SUM_SCALE, weights.sum(1), rtol=tolerance, atol=1e-6)
    np.testing.assert_allclose(
        found.weighted_exponents / SUM_SCALE, (weights * exponents).sum(1), rtol=2 * tolerance, atol=2 * tolerance
    )
    ids = np.arange(len(columns)) + request.column_start
    for i, own in enumerate(np.arange(len(rows)) + request.row_start):
        kept = found.ids[i][found.ids[i] != NO_ID]
        assert len(kept) == min(request.num_candidates, np.count_nonzero(ids != own))
        assert len(set(kept)) == len(kept)
        assert own not in kept
        np.testing.assert_allclose(
            found.scores[i][found.ids[i] != NO_ID], exact[i][kept - request.column_start], atol=1e-6
        )
        assert (found.scores[i][found.ids[i] == NO_ID] == NO_SCORE).all()
        left_out = exact[i][~np.isin(ids, kept) & (ids != own)]
        if len(left_out):
            assert left_out.max() <= found.cuts[i] + rows.shape[1] * 2.0**-24
        else:
            assert found.cuts[i] == NO_SCORE or found.cuts[i] >= -1


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize(
    ("n", "m", "d", "num_candidates", "tau"),
    [
        (5, 7, 2, 3, 1.0),
        (37, 150, 3, 9, 0.1),
        (64, 64, 64, 10, 0.05),
        (33, 201, 128, 30, 0.1),
        (20, 333, 200, 140, 0.07),
        (1, 40, 17, 60, 0.02),
    ],
)
def test_sums_candidates_and_cuts_equal_float64(rng, n, m, d, num_candidates, tau, precision):
    columns = reference.unit_rows(rng, m, d, clusters=4)
    request = GpuRequest(1000 + m // 3, 1000, num_candidates, tau, precision)
    rows = np.concatenate([columns, columns])[m // 3 : m // 3 + n]  # some of the columns themselves
    request = replace(request, row_start=request.row_start if m // 3 + n <= m else 10_000)
    _assert_right(_kernel(rows, columns, request), rows, columns, request)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_entropies_are_as_good_as_the_precision_promises(rng, precision):
    features = reference.unit_rows(rng, 400, 64, clusters=6)
    for tau in (0.02, 0.1, 1.0):
        found = _kernel(features[:40], features, GpuRequest(0, 0, 20, tau, precision))
        expected = [reference.entropy(x, features, tau) for x in features[:4]]
        np.testing.assert_allclose(found.entropies()[:4], expected, atol={"float32": 1e-5, "float16": 2e-3}[precision])


def test_the_largest_terms_of_float16_are_exact(rng):
    features = reference.unit_rows(rng, 64, 16)
    features[32:] = features[:32]  # each row and its duplicate carry the sums
    request = GpuRequest(0, 0, 3, 0.02, "float16")
    found = _kernel(features, features, request)
    exact = np.exp2((features.astype(np.float64) @ features.T.astype(np.float64) - 1) * np.log2(np.e) / 0.02).sum(1)
    np.testing.assert_allclose(found.weight_sums / SUM_SCALE, exact, rtol=2e-5)


def test_a_row_is_no_candidate_of_its_own_even_when_all_are_equal():
    features = np.tile(np.float32([[0.6, 0.8]]), (12, 1))
    found = _kernel(features, features, GpuRequest(0, 0, 9, 0.1))
    assert not (found.ids == np.arange(12)[:, None]).any()
    assert (found.ids != NO_ID).all()  # nor does it take the place of one
    assert (found.cuts >= found.scores.max(axis=1)).all()  # the tie goes on outside: such rows must be searched again


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_what_a_full_bucket_loses_raises_the_cut(rng, precision):
    columns = reference.unit_rows(rng, 200, 32)
    row = columns[:1]
    near = [0, 32, 33, 64]  # pairs 0-1, 32-33 and 64-65 share a bucket where tiles have 32 columns
    for place, weight in zip(near, [0.02, 0.01, 0.03, 0.04], strict=True):
        columns[place] = row[0] + weight * columns[150 + place % 7]
        columns[place] /= np.linalg.norm(columns[place])
    request = GpuRequest(500, 0, 1, 0.1, precision)
    request = replace(request, num_candidates=3)
    plan = make_plan(200, 32, 3, SMALL)
    assert plan.tiles_per_split >= 3  # all four are in one split
    found = _kernel(row, columns, request)
    assert len(set(near) & set(found.ids[0])) == 2
    _assert_right(found, row, columns, request)


def test_small_weights_are_not_lost_beside_the_own_one():
    tau, num_columns = 0.1, 4801
    tile_weight = 2.0**-24.5  # of 16 columns: below half a unit of a float32 near one
    cosine = 1 + np.log2(tile_weight / 16) * tau / np.log2(np.e)
    columns = np.zeros((num_columns, 2), np.float32)
    columns[:] = [cosine, np.sqrt(1 - cosine**2)]
    columns[0] = [1, 0]
    request = GpuRequest(0, 0, 1, tau)
    found = _kernel(columns[:1], columns, request, replace(SMALL, block_columns=16))
    assert make_plan(num_columns, 2, 1, replace(SMALL, block_columns=16)).num_splits == 1
    expected = np.exp2((columns.astype(np.float64)[:, 0] - 1) * np.log2(np.e) / tau).sum()
    assert found.weight_sums[0] / SUM_SCALE - 1 == pytest.approx(expected - 1, rel=0.02)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_scores_are_off_by_no_more_than_is_said(rng, precision):
    rows, columns = reference.unit_rows(rng, 50, 128), reference.unit_rows(rng, 300, 128)
    ours = [make_operands(torch.from_numpy(x), 128, precision) for x in (rows, columns)]
    products = ours[0].values.double() @ ours[1].values.double().T / ours[0].factor ** 2
    if precision == "float32":
        (a, b), (c, d) = (x.values.double().split(128, dim=1) for x in ours)
        products = (a @ c.T + a @ d.T + b @ c.T) / ours[0].factor ** 2
    errors = np.abs(products.numpy() - rows.astype(np.float64) @ columns.T.astype(np.float64)).max(axis=1)
    bound = score_error(ours[0].residuals, float(ours[1].residuals.max()), 128).numpy()
    assert (errors <= bound).all()
    assert bound.max() < {"float32": 5e-5, "float16": 6e-4}[precision]


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_the_torch_sweep_finds_what_the_kernel_finds(rng, precision):
    features = reference.unit_rows(rng, 150, 48, clusters=5)
    request = GpuRequest(20, 0, 12, 0.1, precision)
    ours = _kernel(features[20:90], features, request)
    plain = sweep_with_torch(_on_device(features[20:90]), _on_device(features), request).to_partials()
    _assert_right(plain, features[20:90], features, request)
    np.testing.assert_allclose(ours.entropies(), plain.entropies(), atol=1e-3)
    decided = np.sort(plain.scores)[:, -8] > ours.cuts
    assert decided.mean() > 0.9
    np.testing.assert_allclose(np.sort(ours.scores)[decided, -8:], np.sort(plain.scores)[decided, -8:], atol=1e-6)


def test_the_torch_sweep_equals_float64_over_several_tiles(rng, monkeypatch):
    monkeypatch.setattr("andscale.indexing.torch_sweep._ROWS_PER_TILE", 16)
    monkeypatch.setattr("andscale.indexing.torch_sweep._TILE_BYTES", 8 * 16 * 10)
    features = reference.unit_rows(rng, 95, 12, clusters=5)
    for num_candidates in (4, 94, 120):
        request = GpuRequest(5, 0, num_candidates, 0.1)
        found = sweep_with_torch(_on_device(features[5:50]), _on_device(features), request).to_partials()
        _assert_right(found, features[5:50], features, request)


@pytest.mark.parametrize("sweep", [sweep_with_torch, lambda *a: sweep_with_kernel(*a, SMALL)], ids=["torch", "kernel"])
def test_columns_that_stream_through_give_what_resident_ones_give(rng, sweep):
    features = reference.unit_rows(rng, 230, 24, clusters=5)
    rows, request = features[40:80], GpuRequest(40, 0, 10, 0.1)
    found = sweep_streamed(_on_device(rows), torch.from_numpy(features), request, 70, sweep).to_partials()
    _assert_right(found, rows, features, request)
    whole = sweep(_on_device(rows), _on_device(features), request).to_partials()
    np.testing.assert_allclose(found.weight_sums, whole.weight_sums, rtol=1e-6)


def test_rows_that_are_not_consecutive_keep_their_ids(rng):
    features = reference.unit_rows(rng, 100, 8)
    chosen = np.array([70, 3, 41])
    request = GpuRequest(0, 0, 99, 0.1, row_ids=torch.from_numpy(chosen))
    for sweep in (sweep_with_torch, sweep_with_kernel):
        found = sweep(_on_device(features[chosen]), _on_device(features), request).to_partials()
        for own, ids in zip(chosen, found.ids, strict=True):
            assert sorted(ids) == [j for j in range(100) if j != own]


def _partials(scores, ids, cut):
    one = torch.ones(1, dtype=torch.int64)
    return TensorPartials(one, -one, torch.tensor([scores]), torch.tensor([ids]), torch.tensor([cut]))


def test_merging_keeps_the_best_and_raises_the_cut_to_the_best_that_is_dropped():
    merged = merge_candidates(_partials([0.9, 0.5], [1, 2], 0.4), _partials([0.8, 0.7], [3, 4], 0.1))
    assert merged.ids.tolist() == [[1, 3]]
    np.testing.assert_allclose(merged.scores, [[0.9, 0.8]])
    np.testing.assert_allclose(merged.cuts, [0.7])
    assert merged.weight_sums.tolist() == [2]
    assert merged.weighted_exponents.tolist() == [-2]


def test_merging_keeps_a_cut_that_is_above_what_is_dropped():
    merged = merge_candidates(_partials([0.9, 0.5], [1, 2], 0.85), _partials([-0.2, -2.0], [3, NO_ID], -2.0))
    assert merged.ids.tolist() == [[1, 2]]
    np.testing.assert_allclose(merged.cuts, [0.85])
    merged = merge_candidates(_partials([0.9, -2.0], [1, NO_ID], -2.0), _partials([0.3, -2.0], [3, NO_ID], -2.0))
    assert merged.ids.tolist() == [[1, 3]]
    assert float(merged.cuts) == NO_SCORE  # nothing was left out


def test_too_little_memory_halves_the_batch_and_changes_nothing(rng, monkeypatch, capsys):
    features = reference.unit_rows(rng, 70, 8)
    request = GpuRequest(0, 0, 6, 0.1)
    whole = _kernel(features, features, request)
    launch, sizes = gpu_sweep._launch, []

    def short_of_memory(values, *rest):
        sizes.append(len(values))
        if len(values) > 20:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return launch(values, *rest)

    monkeypatch.setattr(gpu_sweep, "_launch", short_of_memory)
    found = _kernel(features, features, request)
    assert sizes == [70, 35, 17, 17, 17, 17, 2]
    np.testing.assert_array_equal(found.ids, whole.ids)
    np.testing.assert_array_equal(found.scores, whole.scores)
    # the interpreter's matrix products round by a row's place in its block
    np.testing.assert_allclose(found.weight_sums, whole.weight_sums, rtol=5e-6)
    np.testing.assert_allclose(found.cuts, whole.cuts, atol=1e-6)
    assert "going on with 17 rows at a time" in capsys.readouterr().err


def test_no_memory_for_one_row_is_an_error():
    def never(start, stop):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(RunError, match="no memory left for one row"):
        in_row_batches(never, 10, 4)


def test_which_engine_runs_is_said(rng, capsys, monkeypatch):
    assert find_sweep(torch.device("cpu")) is sweep_with_torch
    assert capsys.readouterr().err == "discovery: torch on cpu\n"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert find_sweep(torch.device("cuda")) is sweep_with_torch
    assert "Triton is not installed" in capsys.readouterr().err
    features = _on_device(reference.unit_rows(rng, 30, 4))
    assert sweep_on_gpu(features, features, GpuRequest(0, 0, 4, 0.1)).ids.shape == (30, 4)


@pytest.mark.parametrize("num_columns", [1, 31, 32, 5000, 1_281_167, 100_000_000])
@pytest.mark.parametrize("num_candidates", [1, 9, 64, 176, 2000])
def test_plans_cover_the_columns_and_fit_the_slots(num_columns, num_candidates):
    for block_columns in (32, 64, 128):
        plan = make_plan(num_columns, 100, num_candidates, replace(SMALL, block_columns=block_columns))
        covered = plan.num_splits * plan.tiles_per_split * block_columns
        assert covered >= num_columns
        assert covered - plan.tiles_per_split * block_columns < num_columns  # no split is empty
        assert 2 * plan.tiles_per_split <= 2**plan.index_bits
        assert 18 <= plan.score_bits <= min(21, 30 - plan.index_bits)
        assert plan.padded_dim == 128
        tiles = -(-num_columns // block_columns)
        assert plan.slots_per_row >= min(num_candidates + 1, tiles * block_columns)
        assert -(2**31) <= plan.index_base < 2**31


def test_more_candidates_are_asked_for_where_scores_are_coarser():
    for k in (1, 10, 50, 128):
        assert k < candidates_for(k, "float32") < candidates_for(k, "float16")


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from andscale.indexing.gpu_kernel import sweep_kernel
from andscale.indexing.gpu_plan import _TILINGS, make_plan

for (family, precision), tiling in _TILINGS.items():
    for dim in (128, 300):
        plan = make_plan(1_281_167, dim, 9, tiling)
        constants = dict(DIM=plan.padded_dim, CHUNK=plan.chunk, BM=tiling.block_rows, BN=tiling.block_columns,
                         INDEX_BITS=plan.index_bits, SPLIT=precision == "float32")
        types = ["*fp16"] * 2 + ["*i32"] * 2 + ["*fp32"] * 2 + ["i32"] * 4 + ["fp32"] * 4
        names = sweep_kernel.arg_names
        signature = dict(zip(names, types)) | {name: "constexpr" for name in constants}
        assert list(signature) == names
        aligned = {(i,): [["tt.divisibility", 16]] for i in range(6)}
        target = GPUTarget("cuda", {"hopper": 90, "ampere": 80, "other": 86}[family], 32)
        options = dict(num_warps=tiling.num_warps, num_stages=tiling.num_stages)
        kernel = triton.compile(ASTSource(sweep_kernel, signature, constants, aligned), target=target, options=options)
        room = {"hopper": 227, "ampere": 163, "other": 99}[family] * 1024
        assert kernel.metadata.shared <= room, (family, precision, dim, kernel.metadata.shared)
        print(family, precision, dim, "wgmma" if "wgmma.mma" in kernel.asm["ptx"] else "mma")
"""


def test_the_kernel_compiles_for_every_device_of_the_table(tmp_path, repository):
    """The interpreter takes more than the compiler does; the compiler needs no GPU."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    answer = subprocess.run(
        [sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, check=False, cwd=repository
    )
    assert answer.returncode == 0, answer.stderr[-3000:]
    lines = answer.stdout.splitlines()
    assert len(lines) == 12
    assert all(("wgmma" in line) == ("hopper" in line) for line in lines)
