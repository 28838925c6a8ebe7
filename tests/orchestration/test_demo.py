import pytest

from andscale.config_file import load_config
from andscale.errors import RunError, SourceUnavailableError
from andscale.orchestration import demo


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """What the demo asks for, in place of doing it."""
    monkeypatch.chdir(tmp_path)
    made = {"prepared": [], "launched": [], "error": None}

    def prepare(source, folder, out, options):
        made["prepared"].append((source, folder, str(out)))
        if source == "fashion-mnist" and made["error"]:
            raise made["error"]

    monkeypatch.setattr(demo, "prepare", prepare)
    monkeypatch.setattr(demo, "launch", made["launched"].append)
    return made


def test_the_demo_runs_three_rounds_on_fashion_mnist(calls):
    demo.run_demo(None)
    assert calls["prepared"] == [("fashion-mnist", None, "data/fashion-mnist")]
    (request,) = calls["launched"]
    assert (request.rounds, request.cluster, request.config.stem) == (range(3), "local", "fashion_mnist_demo")
    assert load_config(request.config).data.dataset == "data/fashion-mnist"


def test_without_fashion_mnist_it_goes_on_with_digits_loudly(calls, capsys):
    calls["error"] = SourceUnavailableError("nothing worked")
    demo.run_demo(None)
    assert calls["prepared"][-1] == ("digits", None, "data/digits")
    assert load_config(calls["launched"][0].config).data.dataset == "data/digits"
    said = capsys.readouterr().err
    assert "FASHION-MNIST CANNOT BE HAD HERE: nothing worked" in said
    assert "the figures at the end are of another data set" in said


def test_any_other_failure_stops_the_demo(calls):
    calls["error"] = RunError("no space left")
    with pytest.raises(RunError, match="no space left"):
        demo.run_demo(None)
    assert calls["launched"] == []


def test_what_is_prepared_already_is_not_looked_for_again(calls, tmp_path):
    (tmp_path / "data" / "fashion-mnist").mkdir(parents=True)
    (tmp_path / "data" / "fashion-mnist" / "dataset.json").write_text("{}")
    calls["error"] = SourceUnavailableError("offline")
    demo.run_demo(None)
    assert calls["prepared"] == []
    assert calls["launched"][0].config.stem == "fashion_mnist_demo"
