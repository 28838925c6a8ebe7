"""The package against ``arrays.npz``: answers of the paper's equations that no code of the package took part in.

Tolerances. The package gets the same inputs as the equations, so what differs is float32 arithmetic: a similarity is
off by about 1e-7, its exponent s / tau by 1e-7 / tau, and so are, relatively, the weights p_ij made of it. Hence

- ids, anchors and classes are equal;
- similarities are within 1e-7 of float64 (they are computed there and rounded once);
- entropies are within 1e-4 nats, as promised for every N, and within 1e-6 / tau here;
- losses and gradients are within a few 1e-7 / tau of float64, times 1 / tau for a gradient, which carries that factor;
- memory rows are within 2e-7: a sum, a length and a quotient of float32;
- votes are compared through the order of the classes; ``make_arrays.check_problem`` keeps their gaps above 1e-5.
"""

import os
import re
import tomllib

import make_arrays
import numpy as np
import pytest
import torch

from andscale.config import MethodConfig, RunConfig
from andscale.distributed import World
from andscale.evaluation.knn import weighted_knn
from andscale.evaluation.ranking import accuracies
from andscale.indexing import device_sweep, exact
from andscale.indexing.exact import Request, discover
from andscale.indexing.selection import select_anchors
from andscale.training import objective
from andscale.training.attention import attend_in_tiles, attend_rows, attend_with_flash
from andscale.training.gpu_attention import Tiling, attend_with_kernel
from andscale.training.loop import learning_rate
from andscale.training.memory_bank import MemoryBank
from andscale.training.objective import ObjectiveOptions, batch_objective

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it at its first import

N = make_arrays.NUM_SAMPLES
KINDS = {"instances alone (eq 2)": 0, "anchors and instances (eq 7)": 1}


@pytest.fixture(scope="module")
def arrays():
    with np.load(make_arrays.ARRAYS, allow_pickle=False) as file:
        return dict(file)


@pytest.fixture(scope="module")
def memory(arrays):
    return arrays["memory"].astype(np.float32)


def test_the_committed_arrays_are_what_their_script_gives(arrays):
    inputs = make_arrays.make_inputs()
    for name, values in inputs.items():
        np.testing.assert_array_equal(arrays[name], values, err_msg=name)
    answers = make_arrays.expected(inputs)
    make_arrays.check_problem(inputs, answers)
    assert set(arrays) == {*inputs, *answers}
    for name, values in answers.items():
        assert arrays[name].dtype == values.dtype
        # exp and log may differ in their last bit between machines
        np.testing.assert_allclose(arrays[name], values, rtol=1e-12, atol=1e-15, err_msg=name)


def test_the_inputs_are_exactly_what_the_package_gets(arrays):
    for name in ("memory", "queries", "batch_features"):
        np.testing.assert_array_equal(arrays[name].astype(np.float32).astype(np.float64), arrays[name])


def _assert_discovered(found, arrays, place):
    tau = make_arrays.TEMPERATURES[place]
    np.testing.assert_array_equal(found.neighbour_ids, arrays["neighbour_ids"])
    np.testing.assert_allclose(found.similarities, arrays["similarities"], rtol=0, atol=1e-7)
    np.testing.assert_allclose(found.entropies, arrays["entropies"][place], rtol=0, atol=min(1e-4, 1e-6 / tau))


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("place", range(len(make_arrays.TEMPERATURES)))
def test_neighbourhoods_and_entropies(arrays, memory, place, num_threads):
    request = Request(make_arrays.NUM_NEIGHBOURS, make_arrays.TEMPERATURES[place], num_threads=num_threads)
    _assert_discovered(discover(memory, request), arrays, place)


@pytest.mark.parametrize("place", range(len(make_arrays.TEMPERATURES)))
def test_neighbourhoods_and_entropies_by_the_code_for_gpus(arrays, memory, place, monkeypatch):
    sweep = device_sweep.sweep_on_device
    monkeypatch.setattr(exact, "has_gpu", lambda: True)
    monkeypatch.setattr(exact, "sweep_on_device", lambda *a: sweep(*a, device=torch.device("cpu")))
    request = Request(make_arrays.NUM_NEIGHBOURS, make_arrays.TEMPERATURES[place], precision="float32")
    _assert_discovered(discover(memory, request), arrays, place)


@pytest.mark.parametrize("num_rounds", make_arrays.CURRICULA)
def test_anchors_of_every_round(arrays, num_rounds):
    entropies = arrays["entropies"][0].astype(np.float32)
    expected = arrays[f"anchors_of_{num_rounds}"]
    for r in range(num_rounds + 1):
        np.testing.assert_array_equal(select_anchors(entropies, r, num_rounds), expected[r], err_msg=f"round {r}")


@pytest.mark.parametrize("num_rounds", make_arrays.CURRICULA)
def test_anchors_of_the_package_s_own_entropies(arrays, memory, num_rounds):
    found = discover(memory, Request(make_arrays.NUM_NEIGHBOURS, make_arrays.TEMPERATURES[0])).entropies
    # which of equal rows are taken may hang on the last bit of their entropies: count them as one
    same = np.arange(N)
    same[list(make_arrays.DUPLICATES)] = make_arrays.DUPLICATES[0]
    for r, expected in enumerate(arrays[f"anchors_of_{num_rounds}"]):
        assert sorted(same[select_anchors(found, r, num_rounds)]) == sorted(same[expected])


def _members(arrays, batch, kind):
    """(B, k + 1) int64 as ``batch_objective`` takes them."""
    ids = arrays["batch_ids"][batch]
    rows = np.full((len(ids), 1 + make_arrays.NUM_NEIGHBOURS), -1)
    rows[:, 0] = ids
    if kind:
        is_anchor = arrays[f"anchors_of_{make_arrays.NUM_ROUNDS}"][make_arrays.ROUND][ids]
        rows[is_anchor, 1:] = arrays["neighbour_ids"][ids[is_anchor]]
    return torch.from_numpy(rows)


def _train(arrays, memory, kind, tau, options=None):
    """Both batches, one after the other: their mean losses, gradients by the features, and memories behind them."""
    bank = MemoryBank(World(), N, torch.from_numpy(memory.copy()))
    answers = []
    for batch, ids in enumerate(arrays["batch_ids"]):
        features = torch.from_numpy(arrays["batch_features"][batch].astype(np.float32)).requires_grad_()
        members, counts = _members(arrays, batch, kind), [len(ids)]
        result = batch_objective(features, torch.from_numpy(ids), members, bank, tau, counts, options=options)
        result.loss.backward()
        assert float(result.loss.detach()) == pytest.approx(float(result.mean_loss), rel=1e-6)
        bank.update(result.sample_ids, result.features, make_arrays.ETA)
        answers.append((float(result.mean_loss), features.grad.numpy(), bank.values.numpy().copy()))
    return [np.array(part) for part in zip(*answers, strict=True)]


def _assert_trained(answers, arrays, place, kind):
    tau = make_arrays.LOSS_TEMPERATURES[place]
    losses, gradients, memories = answers
    np.testing.assert_allclose(losses, arrays["mean_losses"][:, place, kind], rtol=0, atol=3e-7 / tau)
    expected = arrays["gradients"][:, place, kind]
    # by 1 / B for the mean; p_ij is off by 3e-7 / tau and stands before m_j / tau
    np.testing.assert_allclose(gradients, expected, rtol=0, atol=3e-7 / tau**2 / make_arrays.BATCH)
    np.testing.assert_allclose(memories, arrays["memories_after"], rtol=0, atol=2e-7)


def _kernel(features, rows, temperature, score_dtype=torch.float32):
    small = Tiling(block_features=16, block_rows=16, group=2, num_warps=4, num_stages=1)
    return attend_with_kernel(features, rows, temperature, score_dtype, small)


ATTENTIONS = {"as chosen": attend_rows, "flash": attend_with_flash, "tiles": attend_in_tiles, "kernel": _kernel}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("place", range(len(make_arrays.LOSS_TEMPERATURES)))
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_losses_gradients_and_memory_of_two_batches(arrays, memory, kind, place, attention, monkeypatch):
    if attention == "kernel" and torch.cuda.is_available():
        pytest.skip("Triton's interpreter is for machines without a GPU; tests/test_gpu.py has the kernel itself")

    def attend(features, rows, temperature, score_dtype):
        extra = () if attention == "flash" else (score_dtype,)
        return ATTENTIONS[attention](features, rows, temperature, *extra)

    monkeypatch.setattr(objective, "attend_rows", attend)
    answers = _train(arrays, memory, kind, make_arrays.LOSS_TEMPERATURES[place])
    _assert_trained(answers, arrays, place, kind)


@pytest.mark.parametrize("num_negatives", [N, N + 1, 10 * N])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("place", range(len(make_arrays.LOSS_TEMPERATURES)))
def test_the_sampled_objective_with_all_samples(arrays, memory, kind, place, num_negatives):
    method = MethodConfig(objective="sampled", num_negatives=num_negatives)
    options = ObjectiveOptions.from_config(method, seed=5).at(1, 2, 3)
    answers = _train(arrays, memory, kind, make_arrays.LOSS_TEMPERATURES[place], options)
    _assert_trained(answers, arrays, place, kind)


def test_the_sampled_objective_with_fewer_samples_is_another_one(arrays, memory):
    options = ObjectiveOptions(num_negatives=N // 2)
    losses, _, _ = _train(arrays, memory, 1, make_arrays.TEMPERATURES[0], options)
    assert np.abs(losses - arrays["mean_losses"][:, 0, 1]).min() > 1e-3


@pytest.mark.parametrize("place", range(len(make_arrays.VOTE_TEMPERATURES)))
def test_weighted_knn(arrays, memory, place):
    queries, labels = arrays["queries"].astype(np.float32), arrays["labels"].astype(np.int32)
    temperature = make_arrays.VOTE_TEMPERATURES[place]
    tops = weighted_knn(memory, labels, queries, make_arrays.VOTERS, temperature)
    for k, expected in zip(make_arrays.VOTERS, arrays["classes"][place], strict=True):
        np.testing.assert_array_equal(tops[k][:, : make_arrays.NUM_CLASSES], expected, err_msg=f"K = {k}")
        assert (tops[k][:, make_arrays.NUM_CLASSES :] == -1).all()
    found = accuracies({str(k): top for k, top in tops.items()}, arrays["query_labels"], len(queries))
    assert [found[str(k)]["top1"] for k in make_arrays.VOTERS] == arrays["accuracies"][place].tolist()


def test_the_settings_of_the_published_code_are_what_its_document_says(repository):
    text = (repository / "docs" / "faithfulness.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    settings = {"data": {"dataset": "data"}} | tomllib.loads(block)
    published, ours = RunConfig(**settings), RunConfig(data=settings["data"])
    assert published.augment.flip_probability == 0
    assert published.evaluation.temperature == published.method.temperature
    rates = {0: 0.03, 80: 0.03, 119: 0.03, 120: 0.003, 159: 0.003, 160: 0.0003, 199: 0.0003}
    for epoch, rate in rates.items():
        assert learning_rate(published.optim, epoch, 0, 390) == pytest.approx(rate)
    # what the document says of the defaults
    assert [learning_rate(ours.optim, epoch, 0, 390) for epoch in (79, 80, 120, 160)] == pytest.approx(
        [0.03, 0.003, 0.0003, 0.00003]
    )
    assert (ours.augment.flip_probability, ours.evaluation.temperature, ours.evaluation.features) == (
        0.5,
        0.07,
        "recomputed",
    )
