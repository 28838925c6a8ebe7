"""Attention over rows of the memory against float64: torch's tiles, and the kernel under Triton's interpreter."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import reference
from andscale.training import attention
from andscale.training.attention import attend_in_tiles, attend_rows, attend_with_flash
from andscale.training.gpu_attention import Tiling, attend_with_kernel

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if DEVICE.type == "cpu":
    # Triton reads it at its first import, which no test file and nothing of the package does while tests are collected
    os.environ["TRITON_INTERPRET"] = "1"

SMALL = Tiling(block_features=16, block_rows=16, group=2, num_warps=4, num_stages=1)
TEMPERATURES = [0.005, 0.02, 0.1, 1.0]


def _problem(rng, batch, num_rows, dim):
    rows = reference.unit_rows(rng, max(num_rows, 1), dim, clusters=4)
    features = rows[rng.integers(0, len(rows), batch)] + 0.2 * rng.standard_normal((batch, dim))
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    return torch.from_numpy(features), torch.from_numpy(rows[:num_rows])


def _finished(part):
    """The log-sum-exp (B,) and the mean row (B, D), float64."""
    sums = part.sums.double().cpu()
    shift = 0 if part.shift is None else part.shift.double().cpu()
    return sums[:, 0].log() + shift, sums[:, 1:] / sums[:, :1]


def _assert_right(part, features, rows, tau, tolerance=3e-7):
    logits = features.double() @ rows.double().T / tau
    lse, mean = _finished(part)
    assert (part.shift is None) == (tau >= 0.02)
    # a similarity is a float32, and so is the log-sum-exp
    torch.testing.assert_close(lse, torch.logsumexp(logits, 1), rtol=1e-7, atol=tolerance / tau)
    torch.testing.assert_close(mean, logits.softmax(1) @ rows.double(), rtol=0, atol=tolerance * max(1, 1 / tau))


@pytest.mark.parametrize("attend", [attend_with_flash, attend_in_tiles])
@pytest.mark.parametrize("tau", TEMPERATURES)
@pytest.mark.parametrize(
    ("batch", "num_rows", "dim", "num_threads"), [(1, 1, 2, 1), (3, 5, 16, 4), (128, 143, 16, 1), (300, 2001, 128, 3)]
)
def test_attention_in_torch_equals_float64(rng, batch, num_rows, dim, num_threads, tau, attend, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: num_threads)
    features, rows = _problem(rng, batch, num_rows, dim)
    _assert_right(attend(features, rows, tau), features, rows, tau)


@pytest.mark.parametrize("attend", [attend_with_flash, attend_in_tiles])
@pytest.mark.parametrize("tau", [0.01, 0.1])
def test_attention_in_torch_does_not_depend_on_tiles_and_chunks(rng, tau, attend, monkeypatch):
    features, rows = _problem(rng, 20, 1000, 8)
    whole = _finished(attend(features, rows, tau))
    monkeypatch.setattr(attention, "_TILE_SCORES", 20 * 7)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)  # chunks of 333 rows, and one row left
    for found, expected in zip(_finished(attend(features, rows, tau)), whole, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("tau", [0.01, 0.1])
def test_attention_gives_the_same_bits_again(rng, tau):
    features, rows = _problem(rng, 128, 5000, 32)
    first = attend_rows(features, rows, tau)
    for _ in range(3):
        again = attend_rows(features, rows.clone(), tau)
        assert torch.equal(first.sums, again.sums)
        assert first.shift is None or torch.equal(first.shift, again.shift)


@pytest.mark.parametrize("tau", [0.01, 0.1])
def test_no_rows_at_all_are_a_part_that_adds_nothing(rng, tau):
    features, rows = _problem(rng, 4, 50, 8)
    nothing, some = attend_rows(features, rows[:0], tau), attend_rows(features, rows, tau)
    assert (nothing.sums == 0).all()
    shifts = None if nothing.shift is None else torch.stack([nothing.shift, some.shift])
    merged = attention.merge_parts(torch.stack([nothing.sums, some.sums]), shifts)
    torch.testing.assert_close(merged.sums, some.sums)


@pytest.mark.parametrize("attend", [attend_with_flash, attend_in_tiles])
def test_the_largest_and_smallest_exponents_without_shift_are_float32(attend):
    features = torch.tensor([[1.0, 0.0]])
    rows = torch.tensor([[1.0, 0.0]]).repeat(3000, 1)  # equal terms round alike: no sum is less exact
    for sign in (1, -1):
        lse, mean = _finished(attend(features, sign * rows, 0.02))
        assert float(lse) == pytest.approx(sign * 50 + np.log(3000), abs=2e-5)
        assert float(mean[0, 0]) == pytest.approx(sign, abs=2e-5)


@pytest.mark.parametrize("tau", TEMPERATURES)
@pytest.mark.parametrize(("batch", "num_rows", "dim"), [(1, 1, 2), (37, 150, 17), (20, 333, 64)])
def test_the_kernel_equals_float64(rng, batch, num_rows, dim, tau):
    features, rows = _problem(rng, batch, num_rows, dim)
    part = attend_with_kernel(features.to(DEVICE), rows.to(DEVICE), tau, tiling=SMALL)
    _assert_right(part, features, rows, tau)


def _multiply_bfloat16(builder, a, b, total, *_):
    """The interpreter holds bfloat16 numbers as their bits, and multiplies those."""
    wide = [(x.data.astype(np.uint32) << 16).view(np.float32) for x in (a, b)]
    return type(total)(wide[0] @ wide[1] + total.data, total.dtype.scalar)


@pytest.mark.parametrize("tau", [0.05, 0.1, 1.0])
def test_bfloat16_keeps_its_bound_in_torch_and_in_the_kernel(rng, tau, monkeypatch):
    features, rows = _problem(rng, 20, 300, 32)
    plain = attend_rows(features, rows, tau, torch.bfloat16)
    # the unit roundoff is 2^-8: a similarity is off by 2^-7
    _assert_right(plain, features, rows, tau, tolerance=2**-7)
    with pytest.raises(AssertionError):
        _assert_right(plain, features, rows, tau, tolerance=1e-5)
    bound = 2**-7
    if DEVICE.type == "cpu":
        from triton.runtime.interpreter import InterpreterBuilder

        monkeypatch.setattr(InterpreterBuilder, "create_dot", _multiply_bfloat16)
        bound *= 2  # it cuts numbers off where a GPU rounds them
    kernel = attend_with_kernel(features.to(DEVICE), rows.to(DEVICE), tau, torch.bfloat16, SMALL)
    _assert_right(kernel, features, rows, tau, tolerance=bound)
    with pytest.raises(AssertionError):
        _assert_right(kernel, features, rows, tau, tolerance=1e-5)


def test_numbers_that_are_not_finite_pass_through_the_kernel(rng):
    for bad in (np.nan, np.inf):
        features, rows = _problem(rng, 5, 60, 16)
        rows[50, 3] = bad
        part = attend_with_kernel(features.to(DEVICE), rows.to(DEVICE), 0.1, tiling=SMALL)
        assert not part.sums.isfinite().all(dim=1).any()


def test_which_engine_a_device_has_is_said_once(monkeypatch, capsys):
    attention._has_kernel.cache_clear()
    device = torch.device("cuda")
    assert attention._has_kernel(device, 128)
    assert "Triton kernel on cuda" in capsys.readouterr().err
    assert attention._has_kernel(device, 128)
    assert capsys.readouterr().err == ""
    assert not attention._has_kernel(device, 129)
    assert "up to 128 numbers, these have 129" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    attention._has_kernel.cache_clear()
    assert not attention._has_kernel(device, 128)
    assert "torch on cuda, slower: Triton is not installed" in capsys.readouterr().err
    attention._has_kernel.cache_clear()


PEAK = """
import sys, torch
from pathlib import Path
from andscale.distributed import World
from andscale.training.memory_bank import MemoryBank
from andscale.training.objective import batch_objective

torch.set_num_threads(1)
batch, num_rows, dim = 128, 100_000, 16
rows = torch.nn.functional.normalize(torch.randn(num_rows, dim), dim=1)
bank = MemoryBank(World(), num_rows, rows)
ids = torch.arange(batch)

def step(bank, tau):
    features = bank.values[:batch].clone().requires_grad_()
    result = batch_objective(features, ids, ids[:, None], bank, tau, [batch])
    result.loss.backward()
    bank.update(ids, result.features, 0.5)

small = MemoryBank(World(), 9000, rows[:9000].clone())
for tau in (0.1, 0.01):
    step(small, tau)  # threads, libraries
def status(name):
    return int(next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(name)).split()[1])
for tau in (0.1, 0.01):
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    step(bank, tau)
    print((status("VmHWM") - before) * 1024)
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the kernel does not measure peaks")
def test_a_step_holds_nothing_of_the_size_of_batch_times_memory(repository):
    answer = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True, cwd=repository)
    dense_bytes = 4 * 128 * 100_000
    peaks = [int(line) for line in answer.stdout.split()]
    assert len(peaks) == 2
    assert max(peaks) < dense_bytes / 10


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from andscale.training.attention_kernel import attention_kernel
from andscale.training.gpu_attention import TILINGS

for (family, score_dtype), tiling in TILINGS.items():
    for dim in (128,):
        constants = dict(D=dim, DIM=128, BM=tiling.block_features, BN=tiling.block_rows, GROUP=tiling.group,
                         BF16=score_dtype == "bfloat16")
        names = attention_kernel.arg_names
        types = ["*fp32"] * 4 + ["i32"] * 3 + ["fp32"]
        signature = dict(zip(names, types)) | {name: "constexpr" for name in constants}
        assert list(signature) == names
        aligned = {(i,): [["tt.divisibility", 16]] for i in range(4)}
        for capability, room in {"hopper": [(90, 227)], "other": [(80, 163), (86, 99)]}[family]:
            target = GPUTarget("cuda", capability, 32)
            options = dict(num_warps=tiling.num_warps, num_stages=tiling.num_stages)
            source = ASTSource(attention_kernel, signature, constants, aligned)
            kernel = triton.compile(source, target=target, options=options)
            assert kernel.metadata.shared <= room * 1024, (capability, score_dtype, kernel.metadata.shared)
            print(capability, score_dtype, "wgmma" if "wgmma.mma" in kernel.asm["ptx"] else "mma")
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
    assert len(lines) == 6
    assert all(("wgmma" in line) == line.startswith("90") for line in lines)
