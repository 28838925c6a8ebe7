"""The CUDA paths against the CPU's answers; skipped, and said so, where there is no GPU."""

import numpy as np
import pytest
import torch

import reference
from andscale.distributed import World
from andscale.indexing.exact import discover
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
    found = discover(features, 3, 0.1, 1 << 20)
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
