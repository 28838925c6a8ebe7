import subprocess
import sys

import pytest

from benchmarks.schedule import Gpu, Work, clock, cost, simulate, table


def test_without_transfers_the_slowest_rank_sets_the_time():
    outcome = simulate([[2.0, 2.0, 2.0], [1.0, 1.0, 1.0], [3.0, 3.0, 3.0]], [0.0, 0.0, 0.0], 10.0)
    assert outcome.seconds == 9.0
    assert outcome.sent_bytes == 20.0


@pytest.mark.parametrize(("compute", "transfer"), [(2.0, 1.0), (1.0, 2.0)])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_equal_ranks_take_what_the_formula_says(size, compute, transfer):
    steps, links = [[compute] * size for _ in range(size)], [transfer] * size
    beside = simulate(steps, links, 1.0)
    assert beside.seconds == pytest.approx(compute + (size - 1) * max(compute, transfer))
    after = simulate(steps, links, 1.0, overlap=False)
    assert after.seconds == pytest.approx(size * compute + (size - 1) * transfer)
    assert beside.waited_s == pytest.approx((size - 1) * max(0.0, transfer - compute))


def test_one_slow_step_delays_the_ring_by_no_more_than_itself():
    steps = [[1.0] * 4 for _ in range(4)]
    steps[2][1] = 6.0
    seconds = simulate(steps, [0.1] * 4, 1.0).seconds
    assert 9.0 <= seconds <= 9.0 + 4 * 0.1


def test_cost_of_one_gpu_is_bare_arithmetic():
    figures = cost(Work(10**7, 1, 1e7), Gpu())
    assert figures["flop"] == 2 * 128 * 1e14
    assert figures["seconds"] == pytest.approx(2 * 128 * 1e14 / (989e12 * 0.4))
    assert figures["sent_bytes"] == 0
    assert figures["held_bytes"] == 1e7 * (512 + 100 + 256)


def test_work_that_is_bound_by_products_scales_with_ranks():
    one, eight = (cost(Work(10**8, size, 1e8), Gpu(memory_bytes=1e15))["seconds"] for size in (1, 8))
    assert one / eight == pytest.approx(8, rel=0.01)
    assert cost(Work(10**8, 8, 1e8), Gpu(), straggler=1.2)["seconds"] == pytest.approx(1.2 * eight, rel=0.02)


def test_times_have_two_digits():
    assert [clock(s) for s in (0.0123, 1.0, 119, 130, 7300, 200_000)] == [
        "0.012 s", "1.0 s", "119 s", "2.2 min", "2.0 h", "2.3 d",
    ]  # fmt: skip


def test_the_documentation_shows_what_the_simulation_prints(repository):
    text = (repository / "docs" / "scale.md").read_text(encoding="utf-8")
    assert table() in text, "docs/scale.md is out of date: put in what `python -m benchmarks.schedule` prints"
    command = [sys.executable, "-m", "benchmarks.schedule"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=repository).stdout
    assert printed.strip() == table()
