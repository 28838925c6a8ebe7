import pytest
import torch

from andscale.config_file import build_config
from andscale.distributed import World
from benchmarks import gpu_step
from benchmarks.step import Throughput, main, make_images, measure, throughput_table


@pytest.fixture
def one_thread():
    """Cores that are shared make several threads wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_the_ratio_is_the_median_of_the_turns_own_and_is_held_against_its_target():
    shares = {f"{part}_fraction": 0.2 for part in ("data_wait", "forward", "objective", "backward", "optimizer")}
    found = Throughput([100, 200, 400], [80, 100, 300], shares)
    assert found.ratio == pytest.approx(0.75)
    table = throughput_table({"a": (found, 0.7), "b": (found, 0.9)})
    assert "reached" in table.splitlines()[2]
    assert "missed" in table.splitlines()[3]


def test_two_ranks_are_measured_from_images_to_the_table(capsys):
    assert main(["--images", "80", "--turns", "1"]) == 0
    row = capsys.readouterr().out.splitlines()[-1].split("|")
    bare, job, ratio = (float(cell.replace(",", "")) for cell in row[2:5])
    assert ratio == pytest.approx(job / bare, abs=0.02)


def test_what_a_gpu_would_be_asked_runs_here_on_a_small_scale(tmp_path, one_thread):
    make_images(tmp_path, 12, 40, "JPEG")
    values = gpu_step.step_config(tmp_path / "data", "resnet18", {"precision": "bfloat16"}).model_dump(mode="json")
    values["data"]["image_size"] = 32
    values["optim"]["global_batch_size"] = 6
    found = measure(build_config(values, "test"), World(), torch.device("cpu"), 1)
    assert min(*found.bare, *found.job) > 0
    assert sum(found.shares.values()) == pytest.approx(1, abs=1e-3)
