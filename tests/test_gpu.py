"""The CUDA paths against the CPU's answers; skipped, and said so, where there is no GPU."""

import numpy as np
import pytest
import torch

import reference
from andscale.distributed import World
from andscale.indexing.exact import Request, discover
from andscale.indexing.gpu_partials import GpuRequest
from andscale.indexing.gpu_plan import candidates_for
from andscale.indexing.gpu_sweep import sweep_on_gpu, sweep_streamed
from andscale.training.memory_bank import MemoryBank
from andscale.training.objective import batch_objective
from ranks import run_ranks
from tiny_runs import start_run, trained_state

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here: the GPU paths were not tested"),
]


def test_the_objective_on_the_gpu_equals_the_equations(rng):
    memory, raw = reference.unit_rows(rng, 200, 16), reference.unit_rows(rng, 8, 16)
    ids = rng.permutation(200)[:8]
    features = torch.from_numpy(raw).cuda().requires_grad_()
    bank = MemoryBank(World(), 200, torch.from_numpy(memory).cuda())
    members = torch.from_numpy(ids)[:, None].cuda()
    result = batch_objective(features, torch.from_numpy(ids).cuda(), members, bank, 0.1, [8])
    result.loss.backward()
    expected = np.mean([reference.loss(x, [i], memory, 0.1) for x, i in zip(raw, ids, strict=True)])
    assert float(result.mean_loss) == pytest.approx(expected, rel=1e-5)
    gradients = [reference.loss_gradient(x, [i], memory, 0.1) / 8 for x, i in zip(raw, ids, strict=True)]
    np.testing.assert_allclose(features.grad.cpu(), gradients, rtol=1e-3, atol=1e-5)


def test_discovery_on_the_gpu_equals_the_equations(rng):
    features = reference.unit_rows(rng, 300, 16, clusters=5)
    found = discover(features, Request(3, 0.1, "float32"))
    for i in range(0, 300, 7):
        _, similarities = reference.neighbours(features, i, 3)
        np.testing.assert_allclose(found.similarities[i], similarities, atol=1e-6)
        assert found.entropies[i] == pytest.approx(reference.entropy(features[i], features, 0.1), abs=1e-4)


def _train(world, root):
    from andscale.training.loop import train_round

    train_round(root, 0, world)


@pytest.mark.parametrize("in_memory_bytes", [0, 1 << 30])
def test_a_round_trains_on_the_gpu(tmp_path, digits, in_memory_bytes):
    layout = start_run(tmp_path / "run", digits, data={"in_memory_bytes": in_memory_bytes, "num_workers": 1})
    run_ranks(_train, 1, layout.root, grouped=False)
    _, memory = trained_state(layout, 0)
    np.testing.assert_allclose(np.linalg.norm(memory, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("num_neighbours", [1, 50])
def test_the_device_sweep_decides_nearly_all_rows_and_is_right_about_them(rng, precision, num_neighbours, capsys):
    features = torch.from_numpy(reference.unit_rows(rng, 20_000, 128, clusters=200, spread=0.4)).cuda()
    request = GpuRequest(0, 0, candidates_for(num_neighbours, precision), 0.1, precision)
    found = sweep_on_gpu(features, features, request)
    assert "Triton kernel on" in capsys.readouterr().err
    exact = features.double() @ features.double().T
    logits = exact / 0.1
    entropies = torch.logsumexp(logits, 1) - (logits.softmax(1) * logits).sum(1)
    np.testing.assert_allclose(found.entropies(), entropies.cpu(), atol={"float32": 1e-4, "float16": 1e-2}[precision])
    exact.fill_diagonal_(-2)
    best = exact.topk(num_neighbours, dim=1).values.cpu().numpy()
    decided = best[:, -1] > found.cuts
    assert decided.mean() > 0.99
    claimed = -np.sort(-found.scores, axis=1)[:, :num_neighbours]
    np.testing.assert_allclose(claimed[decided], best[decided], atol=1e-6)
    exact.scatter_(1, torch.from_numpy(found.ids).cuda(), -2.0)
    assert (exact.amax(dim=1).cpu().numpy() <= found.cuts + 128 * 2.0**-24).all()


def test_columns_that_stream_through_the_device_give_what_resident_ones_give(rng):
    features = torch.from_numpy(reference.unit_rows(rng, 20_000, 128, clusters=200))
    request = GpuRequest(0, 0, 10, 0.1)
    streamed = sweep_streamed(features.cuda(), features, request, 3000).to_partials()
    whole = sweep_on_gpu(features.cuda(), features.cuda(), request)
    np.testing.assert_allclose(streamed.entropies(), whole.entropies(), atol=1e-5)
    # what is above both cuts is in both lists, largest first
    both = np.minimum(streamed.scores, whole.scores) > np.maximum(streamed.cuts, whole.cuts)[:, None]
    assert both.mean() > 0.5
    np.testing.assert_allclose(streamed.scores[both], whole.scores[both], atol=1e-6)
