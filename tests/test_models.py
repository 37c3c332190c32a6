"""LeNet-5: shapes, parameter counts, norms and learning."""

from __future__ import annotations

import math

import pytest

import minigrad as mg
from layers import BatchNorm, BatchNorm1d, BatchNorm2d, Identity
from layers.models import LeNet5


def close(a, b, tolerance):
    return mg.max(mg.abs(a - b)).item() <= tolerance


def count(model):
    return sum(math.prod(p.shape) for p in model.parameters())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, 62006),
        ({"in_channels": 1}, 61706),
        ({"norm": BatchNorm2d}, 62232),  # 62458, less the four biases before a norm
        ({"norm": lambda c: BatchNorm2d(c, affine=False)}, 62232 - 452),
    ],
)
def test_parameter_counts(arguments, expected):
    assert count(LeNet5(**arguments)) == expected


def test_counts_by_layer():
    sizes = {name: math.prod(p.shape) for name, p in LeNet5(norm=BatchNorm).named_parameters()}
    assert sizes["conv1.weight"] == 450
    assert sizes["conv2.weight"] == 2400
    assert sizes["fc1.weight"] == 48000
    assert sizes["fc2.weight"] == 10080
    assert sizes["fc3.weight"] + sizes["fc3.bias"] == 850
    norms = [sizes[f"norm{i}.weight"] + sizes[f"norm{i}.bias"] for i in (1, 2, 3, 4)]
    assert norms == [12, 32, 240, 168]
    assert "conv1.bias" not in sizes


@pytest.mark.parametrize(
    "norm", [None, BatchNorm, BatchNorm2d, lambda c: BatchNorm2d(c, momentum=0.01)]
)
def test_scores(norm):
    model = LeNet5(classes=7, norm=norm)
    assert model(mg.zeros((2, 3, 32, 32))).shape == (2, 7)


def test_features_are_normalized_like_batch_norm_1d():
    mg.random.seed(0)
    model = LeNet5(norm=BatchNorm2d)
    seen = {}
    for name in ("fc1", "norm3"):
        getattr(model, name).register_forward_hook(
            lambda module, args, y, name=name: seen.update({name: y})
        )
    model(mg.random.normal((4, 3, 32, 32)))
    expected = BatchNorm1d(120)(seen["fc1"])
    assert close(mg.reshape(seen["norm3"], (4, 120)), expected, 1e-5)


def test_a_norm_for_another_rank_says_so():
    with pytest.raises(ValueError, match="BatchNorm1d: expected x of shape"):
        LeNet5(norm=BatchNorm1d)(mg.zeros((2, 3, 32, 32)))


def test_the_wrong_image_size_is_an_error():
    with pytest.raises(ValueError, match=r"LeNet5: expected x of shape \(N, 3, 32, 32\)"):
        LeNet5()(mg.zeros((2, 3, 28, 28)))


def test_names_without_norm_have_no_gaps_in_state():
    names = list(LeNet5().state_dict())
    assert names[:2] == ["conv1.weight", "conv1.bias"]
    assert all("norm" not in name for name in names)
    assert isinstance(LeNet5().norm1, Identity)


def test_training_and_eval_forwards_match_pytorch():
    torch = pytest.importorskip("torch")
    mg.random.seed(1)
    model = LeNet5(norm=BatchNorm2d)
    nn = torch.nn
    conv1, norm1, conv2, norm2 = nn.Conv2d(3, 6, 5, bias=False), nn.BatchNorm2d(6), nn.Conv2d(
        6, 16, 5, bias=False
    ), nn.BatchNorm2d(16)  # fmt: skip
    fc1, norm3, fc2, norm4, fc3 = (
        nn.Linear(400, 120, bias=False), nn.BatchNorm1d(120), nn.Linear(120, 84, bias=False),
        nn.BatchNorm1d(84), nn.Linear(84, 10),
    )  # fmt: skip
    theirs = nn.ModuleDict(
        {"conv1": conv1, "norm1": norm1, "conv2": conv2, "norm2": norm2, "fc1": fc1, "norm3": norm3,
         "fc2": fc2, "norm4": norm4, "fc3": fc3}
    )  # fmt: skip
    state = {k: torch.tensor(v.tolist()) for k, v in model.state_dict().items()}
    theirs.load_state_dict(state)
    x = mg.random.normal((3, 3, 32, 32))

    def forward(x):
        f = nn.functional
        x = f.max_pool2d(f.relu(norm1(conv1(x))), 2)
        x = f.max_pool2d(f.relu(norm2(conv2(x))), 2).flatten(1)
        return fc3(f.relu(norm4(fc2(f.relu(norm3(fc1(x)))))))

    expected = forward(torch.tensor(x.tolist())).detach()
    assert close(model(x), mg.tensor(expected.tolist()), 1e-4)
    theirs.eval()
    expected = forward(torch.tensor(x.tolist())).detach()
    assert close(model.eval()(x), mg.tensor(expected.tolist()), 1e-4)


def test_summary_names_every_layer():
    model = LeNet5(norm=BatchNorm2d)
    text = model.summary((1, 3, 32, 32))
    assert "conv1 (Conv2d)" in text
    assert "(1, 120, 1, 1)" in text
    assert "62,232" in text
    assert model.training
    assert model.norm1.num_batches_tracked.item() == 0
