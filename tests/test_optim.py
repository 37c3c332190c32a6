"""Optimizers and schedules: closed forms, PyTorch where it is installed, capture, state, errors."""

from __future__ import annotations

import gc
import math
import weakref

import pytest

import minigrad as mg
from minigrad import optim
from minigrad.optim import lr_scheduler

GRADIENTS = [[0.5, -1.0, 2.0], [1.0, 0.25, -0.5], [-0.75, 0.0, 1.5], [0.1, 0.2, 0.3]]


def parameter(values=(1.0, -2.0, 3.0), dtype="float64"):
    return mg.tensor(list(values), dtype=dtype, requires_grad=True)


def descend(optimizer, p, gradients=GRADIENTS):
    """The parameter after each step."""
    seen = []
    for g in gradients:
        p.grad = mg.tensor(g, dtype=p.dtype)
        optimizer.step()
        seen.append(p.tolist())
    return seen


# Against PyTorch

CASES = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.4}),
    ("Adam", {}),
    ("Adam", {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}),
    ("Adam", {"lr": 0.1, "amsgrad": True}),
    ("AdamW", {"lr": 0.1}),
    ("AdamW", {"lr": 0.1, "weight_decay": 0.0}),
    ("RMSprop", {}),
    ("RMSprop", {"lr": 0.1, "alpha": 0.8, "momentum": 0.9, "centered": True, "weight_decay": 0.1}),
    ("Adagrad", {}),
    (
        "Adagrad",
        {"lr": 0.5, "lr_decay": 0.1, "initial_accumulator_value": 0.5, "weight_decay": 0.1},
    ),
]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_against_torch(name, options, dtype):
    torch = pytest.importorskip("torch")
    p = parameter(dtype=dtype)
    q = torch.tensor(p.tolist(), dtype=getattr(torch, dtype), requires_grad=True)
    ours = getattr(optim, name)([p], **options)
    theirs = getattr(torch.optim, name)([q], **options)
    for mine, g in zip(descend(ours, p), GRADIENTS, strict=True):
        q.grad = torch.tensor(g, dtype=q.dtype)
        theirs.step()
        assert mine == pytest.approx(q.tolist(), rel=1e-12 if dtype == "float64" else 1e-6)


def test_defaults_are_torchs():
    torch = pytest.importorskip("torch")
    q = torch.zeros(1, requires_grad=True)
    for name in ("SGD", "Adam", "AdamW", "RMSprop", "Adagrad"):
        theirs = getattr(torch.optim, name)([q]).defaults
        for option, value in getattr(optim, name)([parameter()]).defaults.items():
            assert theirs[option] == value, (name, option)


# By formula


def test_sgd_by_hand():
    p = parameter([1.0])
    seen = descend(optim.SGD([p], lr=0.1, momentum=0.5), p, [[1.0], [1.0], [1.0]])
    assert [v for (v,) in seen] == pytest.approx([0.9, 0.9 - 0.15, 0.75 - 0.175])
    p = parameter([1.0])
    seen = descend(optim.SGD([p], lr=0.1, weight_decay=0.5), p, [[0.0], [0.0]])
    assert [v for (v,) in seen] == pytest.approx([0.95, 0.95**2])


def test_the_first_step_of_adam_has_the_size_of_the_rate():
    for dtype in ("float32", "float64"):
        p = parameter([1.0, 1.0], dtype)
        seen = descend(optim.Adam([p], lr=0.01, eps=0), p, [[1e-3, -50.0]])
        assert seen[0] == pytest.approx([0.99, 1.01], rel=1e-6)


def test_multipliers_of_a_group():
    """Caffe: rate lr * lr_mult, decay weight_decay * decay_mult."""
    w, b = parameter([1.0]), parameter([1.0])
    optimizer = optim.SGD(
        [{"params": [w]}, {"params": b, "lr_mult": 2, "decay_mult": 0}], lr=0.1, weight_decay=0.5
    )
    w.grad = b.grad = mg.tensor([1.0], dtype="float64")
    optimizer.step()
    assert w.item() == pytest.approx(1 - 0.1 * (1 + 0.5))
    assert b.item() == pytest.approx(1 - 0.2 * 1)


def test_options_of_a_group_override_defaults():
    a, b = parameter([1.0]), parameter([1.0])
    optimizer = optim.SGD([{"params": [a]}, {"params": [b], "lr": 0.5}], lr=0.1)
    a.grad = b.grad = mg.tensor([1.0], dtype="float64")
    optimizer.step()
    assert (a.item(), b.item()) == (pytest.approx(0.9), 0.5)
    c = parameter([1.0])
    optimizer.add_param_group({"params": [c], "lr": 0.25})
    c.grad = mg.tensor([1.0], dtype="float64")
    optimizer.step()
    assert c.item() == 0.75


def test_rosenbrock_is_minimized():
    p = parameter([-1.2, 1.0])
    optimizer = optim.Adam([p], lr=0.05)

    @mg.compile
    def step():
        optimizer.zero_grad()
        x, y = p[0], p[1]
        loss = (1 - x) ** 2 + 100 * (y - x * x) ** 2
        loss.backward()
        optimizer.step()
        return loss

    for _ in range(1500):
        loss = step()
    assert loss.item() < 1e-4


# Which parameters step, and what is kept


def test_a_parameter_without_gradient_is_left_alone():
    torch = pytest.importorskip("torch")
    a, b = parameter([1.0]), parameter([1.0])
    optimizer = optim.Adam([a, b], lr=0.1)
    q, r = (torch.tensor([1.0], dtype=torch.float64, requires_grad=True) for _ in range(2))
    theirs = torch.optim.Adam([q, r], lr=0.1)
    for with_b in (True, False, True, False, True):
        optimizer.zero_grad()
        theirs.zero_grad()
        a.grad, q.grad = mg.tensor([0.5], dtype="float64"), torch.tensor([0.5]).double()
        if with_b:
            b.grad, r.grad = mg.tensor([2.0], dtype="float64"), torch.tensor([2.0]).double()
        optimizer.step()
        theirs.step()
        assert (a.item(), b.item()) == pytest.approx((q.item(), r.item()), rel=1e-12)
    assert [optimizer.state[p]["step"].item() for p in (a, b)] == [5, 3]


def test_parameters_that_step_together_share_a_count():
    ps = [parameter() for _ in range(3)]
    optimizer = optim.Adam(ps)
    for p in ps:
        p.grad = mg.zeros(3, dtype="float64")
    optimizer.step()
    assert len({id(optimizer.state[p]["step"]) for p in ps}) == 1


def test_a_step_leaves_leaves():
    p = parameter()
    optimizer = optim.Adam([p])
    descend(optimizer, p)
    tensors = [p, *optimizer.state[p].values()]
    assert all(t.node.storage is not None and not t.node.inputs for t in tensors)
    assert p.requires_grad
    assert p.is_leaf
    assert not any(t.requires_grad for t in optimizer.state[p].values())


def test_zero_grad():
    p = parameter()
    optimizer = optim.SGD([p])
    p.grad = mg.ones(3, dtype="float64")
    optimizer.zero_grad(set_to_none=False)
    assert p.grad.tolist() == [0, 0, 0]
    optimizer.zero_grad()
    assert p.grad is None


def test_closure():
    p = parameter([2.0])
    optimizer = optim.SGD([p], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = (p * p).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 4
    assert p.item() == pytest.approx(1.6)


def test_an_optimizer_nobody_holds_is_gone():
    optimizer = optim.SGD([parameter()])
    alive = weakref.ref(optimizer)
    optimizer.zero_grad()
    optimizer.step()
    del optimizer
    gc.collect()
    assert alive() is None


# Captured steps


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad"])
def test_a_compiled_step_follows_the_schedule(name):
    options = {"momentum": 0.9} if name == "SGD" else {}

    def train(compiled):
        p = parameter()
        optimizer = getattr(optim, name)([p], lr=0.1, **options)
        scheduler = lr_scheduler.ExponentialLR(optimizer, 0.5)

        def step(x):
            optimizer.zero_grad()
            loss = ((p - x) ** 2).sum()
            loss.backward()
            optimizer.step()
            return loss

        run = mg.compile(step) if compiled else step
        seen = []
        for _ in range(5):
            run(mg.tensor([0.5, 0.5, 0.0], dtype="float64"))
            scheduler.step()
            seen += p.tolist()
        return seen

    assert train(True) == pytest.approx(train(False), rel=1e-12)


def test_a_new_rate_does_not_record_the_step_again():
    p = parameter()
    optimizer = optim.SGD([p], lr=0.1)
    calls = []

    @mg.compile
    def step():
        calls.append(1)
        optimizer.zero_grad()
        (p * p).sum().backward()
        optimizer.step()

    for k in range(6):
        optimizer.param_groups[0]["lr"] = 0.1 / (k + 1)
        step()
    assert len(calls) == 2  # one plain, one recorded
    expected = math.prod(1 - 0.2 / (k + 1) for k in range(6))
    assert p.tolist() == pytest.approx([expected, -2 * expected, 3 * expected])


# State


@pytest.mark.parametrize(("name", "options"), CASES)
def test_state_dict_round_trip(name, options):
    p = parameter()
    whole = descend(getattr(optim, name)([p], **options), p)
    p = parameter()
    first = getattr(optim, name)([p], **options)
    descend(first, p, GRADIENTS[:2])
    state = first.state_dict()
    q = mg.tensor(p.detach(), requires_grad=True)
    descend(first, p, GRADIENTS[2:])  # the snapshot does not follow
    second = getattr(optim, name)([q], lr=123.0)
    second.load_state_dict(state)
    assert descend(second, q, GRADIENTS[2:]) == [pytest.approx(v) for v in whole[2:]]


def test_state_dict_has_torchs_form():
    torch = pytest.importorskip("torch")
    p = parameter()
    ours = optim.Adam([p])
    q = torch.tensor(p.tolist(), requires_grad=True)
    theirs = torch.optim.Adam([q])
    q.grad = torch.ones(3)
    theirs.step()
    a, b = ours.state_dict(), theirs.state_dict()
    assert set(a) == set(b)
    assert set(a["state"][0]) == set(b["state"][0])
    assert a["param_groups"][0]["params"] == b["param_groups"][0]["params"]


def test_loading_what_does_not_fit_changes_nothing():
    a, b = parameter(), parameter([1.0])
    ours, other = optim.Adam([a]), optim.Adam([b])
    with pytest.raises(ValueError, match=r"'exp_avg' of parameter 0 of shape \(3,\), got \(1,\)"):
        ours.load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match=r"groups of \[1\] parameters, got \[2\]"):
        ours.load_state_dict(optim.Adam([parameter(), parameter()]).state_dict())
    with pytest.raises(ValueError, match="expected 'exp_avg' in the state of parameter 0"):
        ours.load_state_dict(optim.SGD([parameter()], momentum=0.9).state_dict())
    assert ours.state_dict()["state"][0]["exp_avg"].tolist() == [0, 0, 0]


# Schedules


def rates(optimizer, scheduler, steps=12, **arguments):
    seen = [optimizer.param_groups[0]["lr"]]
    for _ in range(steps):
        scheduler.step(**arguments)
        seen.append(optimizer.param_groups[0]["lr"])
    return seen


SCHEDULES = [
    ("StepLR", {"step_size": 3}),
    ("StepLR", {"step_size": 1, "gamma": 0.5}),
    ("MultiStepLR", {"milestones": [2, 5, 5], "gamma": 0.5}),
    ("ConstantLR", {"factor": 0.25, "total_iters": 4}),
    ("LinearLR", {"start_factor": 0.1, "total_iters": 4}),
    ("LinearLR", {"start_factor": 1.0, "end_factor": 0.2, "total_iters": 6}),
    ("ExponentialLR", {"gamma": 0.8}),
    ("PolynomialLR", {"total_iters": 6, "power": 2.0}),
    ("CosineAnnealingLR", {"T_max": 12}),
    ("CosineAnnealingLR", {"T_max": 4, "eta_min": 0.01}),
    ("LambdaLR", {"lr_lambda": lambda epoch: 0.9**epoch}),
    ("OneCycleLR", {"max_lr": 1.0, "total_steps": 14}),
    ("OneCycleLR", {"max_lr": 0.5, "epochs": 5, "steps_per_epoch": 3, "anneal_strategy": "linear"}),
    ("OneCycleLR", {"max_lr": 1.0, "total_steps": 14, "three_phase": True, "div_factor": 10.0}),
]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("name", "options"), SCHEDULES)
def test_schedule_against_torch(name, options):
    torch = pytest.importorskip("torch")
    ours = optim.SGD([parameter()], lr=0.1, momentum=0.9)
    theirs = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1, momentum=0.9)
    mine = getattr(lr_scheduler, name)(ours, **options)
    other = getattr(torch.optim.lr_scheduler, name)(theirs, **options)
    assert rates(ours, mine) == pytest.approx(rates(theirs, other), rel=1e-9, abs=1e-12)
    assert mine.get_last_lr() == [ours.param_groups[0]["lr"]]
    assert ours.param_groups[0]["momentum"] == pytest.approx(theirs.param_groups[0]["momentum"])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_sequential_against_torch():
    torch = pytest.importorskip("torch")

    def build(package, optimizer):
        s = package.lr_scheduler
        parts = [
            s.LinearLR(optimizer, start_factor=0.2, total_iters=3),
            s.StepLR(optimizer, 2, gamma=0.5),
            s.CosineAnnealingLR(optimizer, 4),
        ]
        return s.SequentialLR(optimizer, parts, milestones=[3, 8])

    ours = optim.SGD([parameter()], lr=0.1)
    theirs = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    mine, other = build(optim, ours), build(torch.optim, theirs)
    assert rates(ours, mine) == pytest.approx(rates(theirs, other), rel=1e-9, abs=1e-12)


def test_schedules_by_formula():
    optimizer = optim.SGD([parameter()], lr=1.0)
    cosine = lr_scheduler.CosineAnnealingLR(optimizer, 4)
    expected = [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0]
    assert rates(optimizer, cosine, 4) == pytest.approx(expected)
    optimizer = optim.SGD([parameter()], lr=1.0)
    assert rates(optimizer, lr_scheduler.StepLR(optimizer, 2), 4) == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01]
    )


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("threshold_mode", ["rel", "abs"])
def test_plateau_against_torch(mode, threshold_mode):
    torch = pytest.importorskip("torch")
    metrics = [
        5,
        4,
        4,
        4,
        4,
        3.9999,
        3.5,
        3.5,
        3.6,
        3.7,
        3.5,
        3.5,
        3.5,
        3.5,
        3.5,
        3.5,
        1,
        1,
        1,
        1,
        1,
    ]
    options = {"mode": mode, "threshold_mode": threshold_mode, "patience": 2, "factor": 0.5}
    options |= {"cooldown": 1, "min_lr": 0.02}
    ours = optim.SGD([parameter()], lr=0.1)
    theirs = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    mine = lr_scheduler.ReduceLROnPlateau(ours, **options)
    other = torch.optim.lr_scheduler.ReduceLROnPlateau(theirs, **options)
    for m in metrics:
        mine.step(mg.tensor(m))
        other.step(m)
        assert mine.get_last_lr() == pytest.approx([theirs.param_groups[0]["lr"]])


def test_a_schedule_resumes():
    optimizer = optim.SGD([parameter()], lr=0.1)
    scheduler = lr_scheduler.CosineAnnealingLR(optimizer, 10)
    whole = rates(optimizer, scheduler, 8)
    optimizer = optim.SGD([parameter()], lr=0.1)
    scheduler = lr_scheduler.CosineAnnealingLR(optimizer, 10)
    rates(optimizer, scheduler, 4)
    state = scheduler.state_dict()
    optimizer = optim.SGD([parameter()], lr=0.1)
    scheduler = lr_scheduler.CosineAnnealingLR(optimizer, 10)
    scheduler.load_state_dict(state)
    assert rates(optimizer, scheduler, 4) == whole[4:]


def test_a_sequence_resumes():
    def build():
        optimizer = optim.SGD([parameter()], lr=0.1)
        parts = [
            lr_scheduler.LinearLR(optimizer, total_iters=3),
            lr_scheduler.CosineAnnealingLR(optimizer, 5),
        ]
        return optimizer, lr_scheduler.SequentialLR(optimizer, parts, [3])

    optimizer, scheduler = build()
    whole = rates(optimizer, scheduler, 8)
    optimizer, scheduler = build()
    rates(optimizer, scheduler, 4)
    state = scheduler.state_dict()
    optimizer, scheduler = build()
    scheduler.load_state_dict(state)
    assert rates(optimizer, scheduler, 4) == whole[4:]


# What goes wrong is named

P = mg.tensor([1.0], requires_grad=True)
ERRORS = [
    (lambda: optim.SGD([]), ValueError, "SGD: expected at least one parameter, got none"),
    (lambda: optim.SGD(P), TypeError, r"SGD: expected an iterable of tensors, got one. Pass \[p\]"),
    (
        lambda: optim.SGD([1.0]),
        TypeError,
        "expected tensors as parameters, got float at position 0",
    ),
    (lambda: optim.SGD([mg.zeros(2)]), ValueError, "parameters that require a gradient"),
    (lambda: optim.SGD([P, P]), ValueError, "expected each parameter once"),
    (
        lambda: optim.SGD([{"params": [P], "rate": 1}]),
        ValueError,
        "a group with the keys params, lr",
    ),
    (lambda: optim.SGD([{"lr": 1}]), ValueError, "a group with the keys params, lr"),
    (lambda: optim.SGD([P], lr=-1), ValueError, "SGD: expected lr of 0 or more, got -1"),
    (
        lambda: optim.SGD([P], nesterov=True),
        ValueError,
        "momentum > 0 and dampening 0 with nesterov",
    ),
    (
        lambda: optim.Adam([P], betas=(0.9, 1.0)),
        ValueError,
        r"Adam: expected two betas in \[0, 1\)",
    ),
    (lambda: optim.RMSprop([P], alpha=2), ValueError, r"expected alpha in \[0, 1\]"),
    (lambda: optim.AdamW([P], weight_decay=-1), ValueError, "weight_decay of 0 or more"),
    (lambda: lr_scheduler.StepLR(P, 1), TypeError, "StepLR: expected an Optimizer, got Tensor"),
    (
        lambda: lr_scheduler.StepLR(optim.SGD([P]), 0),
        ValueError,
        "StepLR.step_size: expected an int",
    ),
    (lambda: lr_scheduler.LinearLR(optim.SGD([P]), 0), ValueError, r"start_factor in \(0, 1\]"),
    (lambda: lr_scheduler.LambdaLR(optim.SGD([P]), []), ValueError, "one function for each of 1"),
    (lambda: lr_scheduler.OneCycleLR(optim.SGD([P]), 1.0), ValueError, "expected total_steps, or"),
    (
        lambda: lr_scheduler.OneCycleLR(optim.Adagrad([P]), 1.0, 10),
        ValueError,
        "an optimizer with momentum or betas, got Adagrad",
    ),
    (
        lambda: lr_scheduler.ExponentialLR(optim.SGD([P]), 0.5, last_epoch=3),
        ValueError,
        "expected 'initial_lr' in every parameter group",
    ),
    (
        lambda: lr_scheduler.SequentialLR(optim.SGD([P]), [], [1]),
        ValueError,
        "one milestone between each two",
    ),
    (
        lambda: lr_scheduler.ReduceLROnPlateau(optim.SGD([P]), factor=1.0),
        ValueError,
        r"factor in \[0, 1\)",
    ),
]


@pytest.mark.parametrize(("call", "error", "text"), ERRORS)
def test_bad_arguments_are_named(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_too_many_steps_of_one_cycle():
    optimizer = optim.SGD([parameter()], momentum=0.9)
    scheduler = lr_scheduler.OneCycleLR(optimizer, 1.0, 3)
    with pytest.raises(ValueError, match="expected at most 3 steps, got 4"):
        rates(optimizer, scheduler, 4)
