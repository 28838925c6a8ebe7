"""Small runs on digits, and what they left."""

import numpy as np
from safetensors.numpy import load_file

from andscale.config_file import build_config
from andscale.store.features import read_features
from andscale.store.run_layout import RunLayout
from andscale.store.run_record import create_run, load_run


def digits_config(digits, **sections):
    """A config of two-epoch rounds over 143 digits; ``sections`` are merged into it."""
    values = {
        "data": {"dataset": str(digits.root), "image_size": 8, "max_train_samples": 143, "max_val_samples": 50},
        "model": {"backbone": "small_resnet", "feature_dim": 16},
        "optim": {"num_epochs": 2, "global_batch_size": 32},
        "index": {"check_rows": 50},
        "resources": {"timeout_min": 10},
    }
    for name, section in sections.items():
        values[name] = values.get(name, {}) | section
    return build_config(values, "test")


def start_run(root, digits, **sections):
    """A new run folder; returns its layout."""
    create_run(root, digits_config(digits, **sections), digits.root, digits.fingerprint)
    return RunLayout(root)


def launched(root, **sections):
    """The config of a launch of a run that brings settings of its own."""
    values = load_run(root).config.model_dump(mode="json")
    for name, section in sections.items():
        values[name] |= section
    return build_config(values, "test")


def trained_state(layout, number):
    """(weights by name, memory) that a round left."""
    folder = layout.round(number)
    return load_file(folder.model / "model.safetensors"), read_features(folder.memory)[0]


def assert_same_state(first, second):
    """Bit for bit."""
    assert first[0].keys() == second[0].keys()
    for name, values in first[0].items():
        np.testing.assert_array_equal(values, second[0][name], err_msg=name)
    np.testing.assert_array_equal(first[1], second[1])
