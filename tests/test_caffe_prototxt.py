"""Definitions of Caffe networks: what loads and runs, what is refused and where, and weights."""

from __future__ import annotations

import math
import random

import caffe_definitions as definitions
import pytest

import minigrad as mg
from layers.caffe import load_caffemodel, load_prototxt
from layers.caffe.fillers import fill
from layers.caffe.schema import message_class
from layers.caffe.text import LARGEST_FILE


@pytest.fixture
def load(tmp_path):
    """Loads a definition that is given as text."""

    def loaded(text, **options):
        path = tmp_path / "net.prototxt"
        path.write_text(text)
        return load_prototxt(path, **options)

    return loaded


@pytest.fixture
def refused(load):
    """The message with which a definition is refused."""

    def message(text, **options):
        with pytest.raises(ValueError, match="load_prototxt") as error:
            load(text, **options)
        return str(error.value)

    return message


def count(net):
    return sum(math.prod(p.shape) for p in net.parameters())


def normal(*shape, seed=0):
    return mg.random.normal(shape, generator=mg.random.Generator(seed))


def largest(a, b):
    return mg.max(mg.abs(a - b)).item()


def trains(net, *shape, classes=10, lr=1e-3):
    """One step of training; every parameter gets a finite gradient and moves where it should."""
    optimizer = mg.optim.SGD(net.param_groups(), lr=lr, momentum=0.9, weight_decay=1e-4)
    before = {name: p.detach() for name, p in net.named_parameters()}
    loss = net.train()(normal(*shape), mg.arange(shape[0]) % classes)
    loss.backward()
    for name, p in net.named_parameters():
        assert p.grad is not None, name
        assert mg.all(mg.isfinite(p.grad)).item(), name
    optimizer.step()
    moved = [name for name, p in net.named_parameters() if largest(p, before[name]) > 0]
    assert len(moved) > len(before) // 2
    return loss.item()


# The networks.


@pytest.mark.parametrize(
    ("text", "shape", "expected"),
    [
        (definitions.lenet(), (64, 1, 28, 28), 431_080),
        (definitions.cifar10_full(), (100, 3, 32, 32), 89_578),
        (definitions.cifar10_sigmoid_bn(), (100, 3, 32, 32), 89_450),
        (definitions.alexnet(), (1, 3, 227, 227), 60_965_224),
        (definitions.googlenet(), (32, 3, 224, 224), 13_378_280),
        (definitions.resnet50(deploy=False), (32, 3, 224, 224), 25_557_096),
        (definitions.resnet50(), None, 25_557_096),
    ],
    ids=["lenet", "cifar10", "sigmoid", "alexnet", "googlenet", "resnet50", "resnet50-deploy"],
)
def test_parameter_counts(load, text, shape, expected):
    net = load(text, shapes=None if shape is None else {"data": shape})
    assert count(net) == expected


def test_googlenet_without_its_auxiliary_heads(load):
    net = load(definitions.googlenet(), shapes={"data": (1, 3, 224, 224)})
    heads = {"loss1": 0, "loss2": 0, "": 0}
    for name, p in net.named_parameters():
        head = name[:5] if name[:5] in heads else ""
        heads[head] += p.size
    assert heads == {"loss1": 3_188_840, "loss2": 3_190_888, "": 6_998_552}


@pytest.mark.parametrize(
    ("text", "shape", "start"),
    [
        (definitions.lenet(), (2, 1, 28, 28), None),
        (definitions.cifar10_full(), (2, 3, 32, 32), math.log(10)),
        (definitions.cifar10_sigmoid_bn(), (4, 3, 32, 32), None),
        pytest.param(
            definitions.alexnet(64, 10), (2, 3, 67, 67), math.log(10), marks=pytest.mark.slow
        ),
        pytest.param(
            definitions.resnet50(False, 10, small=True), (2, 3, 64, 64), None,
            marks=pytest.mark.slow,
        ),
    ],
    ids=["lenet", "cifar10", "sigmoid", "alexnet", "resnet50"],
)  # fmt: skip
def test_a_step_of_training_and_a_test(load, text, shape, start):
    mg.random.seed(0)
    net = load(text, shapes={"data": shape})
    loss = trains(net, *shape)
    if start is not None:
        assert loss == pytest.approx(start, abs=0.05)
    x, label = normal(*shape), mg.arange(shape[0])
    accuracy = net.eval()(x, label, blobs=["accuracy"])["accuracy"]
    assert accuracy.item() in [i / shape[0] for i in range(shape[0] + 1)]
    assert net(x).shape == (shape[0], 10)  # no label: neither loss nor accuracy


@pytest.mark.slow
def test_googlenet_weights_its_three_losses(load):
    mg.random.seed(0)
    net = load(definitions.googlenet(10), shapes={"data": (1, 3, 224, 224)})
    trains(net, 1, 3, 224, 224)
    x, label = normal(1, 3, 224, 224), mg.tensor([3])
    net.eval()  # no dropout: both calls see the same
    names = ["loss1/loss", "loss2/loss", "loss3/loss3", "loss3/top-1"]
    first, second, third, accuracy = net(x, label, blobs=names).values()
    total = third + 0.3 * first + 0.3 * second
    assert net(x, label).item() == pytest.approx(total.item(), rel=1e-6)
    assert accuracy.item() in (0.0, 1.0)
    assert sorted(net(x)) == ["loss1/classifier", "loss2/classifier", "loss3/classifier"]


@pytest.mark.slow
def test_resnet50_deploy_runs_and_trains_with_frozen_statistics(load):
    mg.random.seed(0)
    net = load(definitions.resnet50(small=True), shapes={"data": (2, 3, 64, 64)})
    ones = {n: mg.ones(b.shape) for n, b in net.named_buffers() if "mean" not in n}
    net.load_state_dict(ones, strict=False)  # variance 1 and factor 1 instead of no statistics
    optimizer = mg.optim.SGD(net.param_groups(), lr=1e-6)
    blobs = net(normal(2, 3, 64, 64), blobs=["fc1000", "prob"])
    assert mg.sum(blobs["prob"], axis=1).tolist() == pytest.approx([1, 1], abs=1e-5)
    mg.nn.cross_entropy(blobs["fc1000"], mg.tensor([1, 2])).backward()
    optimizer.step()
    assert all(mg.all(mg.isfinite(p.grad)).item() for p in net.parameters())
    assert net.bn_conv1.scale_factor.tolist() == [1.0]


def test_a_definition_whose_fields_run_together(load):
    net = load(definitions.RUN_TOGETHER)
    text = net.summary((2, 3, 8, 8))
    for line in ("c1 (Conv2d)", "c1_bn (BatchNorm)", "c1_scale (Scale)", "c2 (Conv2d)", "p (Pool"):
        assert line in text
    assert "(2, 4, 2, 2)" in text
    groups = [(len(g["params"]), g["lr_mult"], g["decay_mult"]) for g in net.param_groups()]
    assert groups == [(2, 1.0, 1.0), (1, 2.0, 0.0), (2, 0.1, 0.0)]
    optimizer = mg.optim.SGD(net.param_groups(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    y = net(normal(2, 3, 8, 8))
    mg.mean(y * y).backward()
    optimizer.step()
    assert net.c1_bn.scale_factor.tolist() == [1.0]
    assert net.c2.bias is None


def test_a_compiled_step_is_the_plain_one(load):
    def trained(compiled):
        mg.random.seed(3)
        net = load(definitions.RUN_TOGETHER)
        optimizer = mg.optim.SGD(net.param_groups(), lr=0.1, momentum=0.9, weight_decay=0.01)

        def step(x):
            optimizer.zero_grad()
            loss = mg.mean(net(x) ** 2)
            loss.backward()
            optimizer.step()
            return loss

        run = mg.compile(step) if compiled else step
        for seed in range(3):
            run(normal(2, 3, 8, 8, seed=seed))
        return net.state_dict()

    plain, compiled = trained(False), trained(True)
    for name, value in plain.items():
        assert largest(value, compiled[name]) < 1e-6, name


# Multipliers.


def test_multipliers_of_each_blob_reach_the_optimizer(load):
    net = load(
        'input: "x" input_shape { dim: 2 dim: 3 }'
        + definitions.inner("a", "x", 2, param=[
            {"lr_mult": 2, "decay_mult": 0.5}, {"lr_mult": 0.1, "decay_mult": 0}])
        + definitions.inner("b", "a", 2, param=[{"lr_mult": 0}, {"lr_mult": 3}])
    )  # fmt: skip
    assert not net.b.weight.requires_grad
    optimizer = mg.optim.SGD(net.param_groups(), lr=0.1, momentum=0.9, weight_decay=0.2)
    expected = {}
    multipliers = {"a.weight": (2, 0.5), "a.bias": (0.1, 0), "b.bias": (3, 1)}
    velocity = dict.fromkeys(multipliers, 0.0)
    for seed in range(3):
        optimizer.zero_grad()
        mg.sum(net(normal(2, 3, seed=seed)) ** 2).backward()
        for name, p in net.named_parameters():
            if name in multipliers:  # Caffe: V = momentum V + rate (g + decay w), w = w - V
                lr, decay = multipliers[name]
                velocity[name] = 0.9 * velocity[name] + 0.1 * lr * (p.grad + 0.2 * decay * p)
                expected[name] = (p - velocity[name]).detach()
        optimizer.step()
        for name, p in net.named_parameters():
            if name in multipliers:
                assert largest(p, expected[name]) < 1e-6, name
    assert net.b.weight.grad is None


# Phases and wiring.


def test_phases_have_their_own_layers_and_common_parameters(load):
    def norm(phase, given):
        own = {"use_global_stats": given}
        return definitions.layer(
            "bn", "BatchNorm", "x", "y", include={"phase": phase}, batch_norm_param=own
        )

    head = 'input: "x" input_shape { dim: 4 dim: 2 }\n'
    net = load(head + norm("TRAIN", False) + norm("TEST", True))
    x = normal(4, 2)
    y = net(x)
    assert largest(mg.mean(y, axis=0), mg.zeros((2,))) < 1e-6
    assert list(net.state_dict()) == ["bn.mean_sum", "bn.var_sum", "bn.scale_factor"]
    assert largest(net.eval()(x), net.train()(x)) > 1e-3  # global variances are m / (m - 1) times
    assert net.eval()(x).shape == (4, 2)
    mean, _ = net.bn_.global_statistics()
    assert largest(mean, mg.mean(x, axis=0)) < 1e-6


def test_stages_levels_and_excludes(load):
    text = (
        'input: "x" input_shape { dim: 1 dim: 4 }\n'
        + definitions.layer("a", "Power", "x", power_param={"scale": 2.0},
                            include={"stage": "double", "not_stage": "off"})
        + definitions.layer("b", "Power", "x", power_param={"shift": 1.0},
                            exclude={"phase": "TEST"})
        + definitions.layer("c", "Power", "x", include={"min_level": 1})
    )  # fmt: skip
    x = mg.ones((1, 4))
    net = load(text)
    assert net(x).tolist() == [[2.0] * 4]
    net = load(text, stages=["double"])
    assert sorted(net(x)) == ["a", "b"]
    assert net.eval()(x).tolist() == [[2.0] * 4]
    assert load(text, stages=["double", "off"])(x).tolist() == [[2.0] * 4]
    assert sorted(load("state { level: 1 }" + text)(x)) == ["b", "c"]


def test_blobs_split_slice_concat_and_silence(load):
    net = load(
        'input: "x" input_shape { dim: 2 dim: 4 }\n'
        + definitions.layer("cut", "Slice", "x", ("a", "b"))
        + definitions.layer("copy", "Split", "b", ("b1", "b2"))
        + definitions.layer("none", "Silence", "b1", ())
        + definitions.layer("sum", "Eltwise", ("a", "b2"), eltwise_param={"coeff": [1, -1]})
        + definitions.layer("back", "Concat", ("sum", "a"))
    )
    x = normal(2, 4)
    expected = mg.concat([x[:, :2] - x[:, 2:], x[:, :2]], axis=1)
    assert largest(net(x), expected) == 0
    with pytest.raises(ValueError, match="expected the name of a blob that was made, got 'y'"):
        net(x, blobs=["y"])


def test_loss_weight_of_any_layer_and_stopped_gradients(load):
    both = {"propagate_down": [True, False]}
    net = load(
        'input: "x" input: "t" input_shape { dim: 2 dim: 3 } input_shape { dim: 2 dim: 3 }'
        + definitions.inner("ip", "x", 3)
        + definitions.layer("scaled", "Power", "t", power_param={"scale": 3.0})
        + definitions.layer("distance", "EuclideanLoss", ("ip", "scaled"), loss_weight=0.5)
        + definitions.layer("size", "AbsVal", "ip", loss_weight=0.25)
        + definitions.layer("both", "Eltwise", ("ip", "size"), loss_weight=1, **both)
    )
    x, t = normal(2, 3), normal(2, 3, seed=1)
    y = net.ip(x)
    expected = 0.5 * mg.sum((y - 3 * t) ** 2) / 4 + mg.sum(0.25 * mg.abs(y) + y + mg.abs(y))
    objective = net(x, t)
    assert objective.item() == pytest.approx(expected.item(), rel=1e-5)
    objective.backward()
    slope = (y - 3 * t) / 4 + 0.25 * mg.sign(y) + 1  # nothing through both's second bottom
    assert largest(net.ip.bias.grad, mg.sum(slope, axis=0)) < 1e-5


def test_names_that_a_module_has_already(load):
    net = load(
        'input: "x" input_shape { dim: 1 dim: 2 }'
        + definitions.inner("forward", "x", 2) + definitions.inner("inputs", "forward", 2)
        + definitions.inner("", "inputs", 1).replace('top: ""', 'top: "y"')
    )  # fmt: skip
    assert net(mg.ones((1, 2))).shape == (1, 1)
    assert {name.split(".")[0] for name in net.state_dict()} == {"forward_", "inputs_", "layer2"}


# Shapes of inputs.


def test_inputs_of_all_kinds(load):
    text = "".join(
        [
            definitions.layer("a", "Input", (), ("a1", "a2"),
                              input_param={"shape": {"dim": [2, 3]}}),
            definitions.layer("m", "MemoryData", (), ("m1", "m2"), memory_data_param={
                "batch_size": 2, "channels": 3, "height": 4, "width": 5}),
            definitions.layer("d", "DummyData", (), "d1", dummy_data_param={
                "shape": {"dim": [2, 3]}, "data_filler": {"type": "constant"}}),
            definitions.layer("ip", "InnerProduct", "m1", inner_product_param={"num_output": 2}),
            definitions.layer("loss", "SoftmaxWithLoss", ("ip", "m2")),
        ]
    )  # fmt: skip
    net = load(text)
    assert net.inputs == ("a1", "a2", "m1", "m2", "d1")
    assert net.ip.weight.shape == (2, 60)


def test_layers_wait_for_shapes_that_the_file_does_not_have(load):
    mg.random.seed(0)
    net = load(definitions.lenet())
    with pytest.raises(ValueError, match=r"got none for data, label. Pass shapes=\{'data'"):
        net.param_groups()
    with pytest.raises(ValueError, match="before its parameters are asked for"):
        list(net.parameters())
    assert "ip2 (InnerProduct)" in net.summary((1, 1, 28, 28))
    assert count(net) == 431_080
    other = load(definitions.lenet())
    assert other.eval()(mg.zeros((3, 1, 28, 28))).shape == (3, 10)
    assert count(other) == 431_080
    assert not other.conv1.training


def test_wrong_shapes_are_named(load, refused):
    text = definitions.lenet()
    assert "expected shapes of inputs among data, label, got ['image']" in refused(
        text, shapes={"image": (1, 1, 28, 28)}
    )
    message = refused(text, shapes={"data": (1, 1, 3, 3)})
    assert "layer 'conv1' (Convolution): conv2d: expected images no smaller" in message
    assert f"line {text[: text.index('conv1')].count(chr(10))}," in message
    assert "expected for each of 1 inputs one input_shape or four" in refused(
        'input: "x" input_dim: 1 input_dim: 2'
    )
    with pytest.raises(ValueError, match=r"expected inputs \('data', 'label'\), got 3"):
        load(text)(*[mg.zeros((1, 1, 28, 28))] * 3)


# What is refused, and where.

HEAD = 'input: "x"\ninput_shape { dim: 1 dim: 4 dim: 8 dim: 8 }\n'


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ('layer { name: "a" type: "Crop" bottom: "x" top: "y" }', 3, "layer 'a' (Crop): expec"),
        ('layer {\n name: "a"\n type: "Python"\n python_param { module: "os" } }', 6,
         "layer 'a': python_param"),
        ('layer { name: "p" type: "Pooling" bottom: "x" top: "y"\n pooling_param {\n'
         ' pool: STOCHASTIC kernel_size: 2 } }', 5, "expected pool MAX or AVE, got STOCHASTIC"),
        ('layer { name: "p" type: "Pooling" bottom: "x" top: "y"\npooling_param { kernel_size: 3\n'
         'pad: 2 } }', 5, "expected pad of at most half the window (3, 3), got (2, 2)"),
        ('layer { name: "p" type: "Pooling" bottom: "x" top: "y" }', 3, "expected kernel_size of"),
        ('layer { name: "c" type: "Convolution" bottom: "x" top: "y"\n'
         'convolution_param { num_output: 2 kernel_size: 3\n axis: 2 } }', 5, "axis 1, got 2"),
        ('layer { name: "c" type: "Convolution" bottom: "x" top: "y"\n'
         'convolution_param { kernel_size: 3 } }', 4, "expected convolution_param.num_output in 1"),
        ('layer { name: "c" type: "Convolution" bottom: "x" top: "y"\n'
         'convolution_param { num_output: 6 kernel_size: 3 group: 3 } }', 3,
         "expected groups to divide"),
        ('layer { name: "c" type: "Convolution" bottom: "x" top: "y"\n convolution_param {'
         'num_output: 6 kernel_size: 3 kernel_h: 2 kernel_w: 2 } }', 4, "got both"),
        ('layer { name: "c" type: "Convolution" bottom: "x" top: "y"\n convolution_param {'
         'num_output: 6 kernel_size: 3\n weight_filler { type: "orthogonal" } } }', 5,
         "got 'orthogonal'"),
        ('layer { name: "i" type: "InnerProduct" bottom: "x" top: "y"\n inner_product_param {'
         'num_output: 16000000 } }', 3, "elements a blob"),
        ('layer { name: "b" type: "BatchNorm" bottom: "x" top: "y"\n param {\n lr_mult: 1 } }', 5,
         "expected lr_mult 0 for all blobs of BatchNorm"),
        ('layer { name: "n" type: "LRN" bottom: "x" top: "y"\n lrn_param { local_size: 4 } }', 3,
         "expected an odd local_size, got 4"),
        ('layer { name: "d" type: "Dropout" bottom: "x" top: "y"\n dropout_param {'
         'dropout_ratio: 1.0 } }', 4, "expected a ratio in [0, 1), got 1.0"),
        ('layer { name: "s" type: "Slice" bottom: "x" top: "y" top: "z"\n slice_param {'
         'slice_point: 1 slice_point: 2 } }', 4, "expected 1 increasing numbers for 2 tops"),
        ('layer { name: "s" type: "Scale" bottom: "x" top: "y"\n scale_param { num_axes: 4 } }', 3,
         "expected num_axes that fit"),
        ('layer { name: "r" type: "ReLU"\n bottom: "w" top: "y" }', 4,
         "expected a bottom made before, got 'w' in phase TRAIN"),
        ('layer { name: "r" type: "ReLU" bottom: "x" top: "y" }\n'
         'layer { name: "q" type: "ReLU" bottom: "x" top: "y" }', 4, "another layer makes"),
        ('layer { name: "r" type: "ReLU" bottom: "x" bottom: "x" top: "y" }', 3,
         "expected 1 of the field bottom, got 2"),
        ('layer { name: "r" type: "ReLU" bottom: "x" top: "y" include { phase: TEST }\n'
         'exclude { phase: TEST } }', 4, "expected include or exclude rules, got both"),
        ('layer { name: "r" type: "ReLU" bottom: "x" top: "y"\n relu_param { negative_slope: a } }',
         4, "expected Caffe's text format"),
        ('layer { name: "r"\n type: "ReLU"\n', 4, 'got an error: Expected "}"'),
        ('layer { name: "r" type: "ReLU" bottom: "x" top: "y" param { lr_mult: -1 } }', 3,
         "expected multipliers of 0 or more"),
        ('layer { name: "r" type: "Reshape" bottom: "x" top: "y" reshape_param { shape {'
         'dim: -1 dim: -1 } } }', 3, "or one -1 as dimensions"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_named_with_its_line(refused, text, line, says):
    message = refused(HEAD + text)
    assert says in message
    assert f"net.prototxt, line {line}" in message


def test_everything_unsupported_is_named_at_once(refused):
    message = refused(
        HEAD + 'layer { name: "a" type: "Crop" bottom: "x" top: "y" }\n'
        'layer { name: "b" type: "LSTM" bottom: "y" top: "z" }\n'
    )
    assert "line 3, layer 'a' (Crop)" in message
    assert "line 4, layer 'b' (LSTM)" in message


def test_sizes_are_bounded(load, tmp_path):
    path = tmp_path / "large.prototxt"
    path.write_bytes(b"#" * (LARGEST_FILE + 1))
    with pytest.raises(ValueError, match="expected a definition of at most 2,097,152 bytes"):
        load_prototxt(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="to be text in UTF-8"):
        load_prototxt(path)
    with pytest.raises(ValueError, match="expected messages at most 8 deep"):
        load("layer {" * 20)
    with pytest.raises(ValueError, match="expected at most 10,000 layers"):
        load('layer { name: "a" }' * 10_001)


def test_arbitrary_text_is_refused_or_loaded(load):
    """Cut, doubled and shuffled definitions: a ValueError, or a net."""
    dice, text = random.Random(0), definitions.cifar10_full()
    for _ in range(150):
        a, b = sorted(dice.sample(range(len(text)), 2))
        broken = dice.choice([text[:a], text[a:b], text[:a] + text[b:], text[:b] + text[a:]])
        try:
            load(broken)
        except ValueError as e:
            assert str(e).startswith("load_prototxt: "), e  # noqa: PT017


# The old form.


def test_layers_in_their_old_form(load):
    text = """
input: "data" input_dim: 1 input_dim: 3 input_dim: 8 input_dim: 8
layers { bottom: "data" top: "c" name: "c" type: CONVOLUTION blobs_lr: 1 blobs_lr: 2
  weight_decay: 1 weight_decay: 0 convolution_param { num_output: 2 kernel_size: 3 } }
layers { bottom: "c" top: "c" name: "r" type: RELU }
layers { bottom: "c" top: "n" name: "n" type: LRN lrn_param { local_size: 3 } }
layers { bottom: "n" top: "p" name: "p" type: SOFTMAX }
"""
    net = load(text)
    assert net(mg.ones((1, 3, 8, 8))).shape == (1, 2, 6, 6)
    groups = [(g["lr_mult"], g["decay_mult"]) for g in net.param_groups()]
    assert groups == [(1.0, 1.0), (2.0, 0.0)]
    with pytest.raises(ValueError, match=r"expected a type of layer among .*, got 'Im2Col'"):
        load(text.replace("type: RELU", "type: IM2COL"))


# Weights.


def add_blob(message, value, legacy=False):
    blob = message.blobs.add()
    if legacy:
        sizes = (1,) * (4 - value.ndim) + value.shape
        blob.num, blob.channels, blob.height, blob.width = sizes
    else:
        blob.shape.dim.extend(value.shape)
    blob.data.extend(value.reshape((-1,)).tolist())


@pytest.mark.parametrize("legacy", [False, True])
def test_weights_and_statistics_of_a_caffemodel(load, tmp_path, legacy):
    mg.random.seed(0)
    source, target = (load(definitions.RUN_TOGETHER) for _ in range(2))
    for seed in range(3):
        mg.evaluate(source(normal(2, 3, 8, 8, seed=seed)))
    message = message_class("NetParameter")()
    state = source.state_dict()
    for name in ("c1", "c1_bn", "c1_scale", "c2"):
        stored = (message.layers if legacy else message.layer).add(name=name)
        for key, value in state.items():
            if key.startswith(f"{name}."):
                add_blob(stored, value, legacy)
    path = tmp_path / "net.caffemodel"
    path.write_bytes(message.SerializeToString())
    blobs = load_caffemodel(path)
    assert [len(blobs[name]) for name in ("c1", "c1_bn", "c1_scale", "c2")] == [2, 3, 2, 1]
    target.load_blobs(blobs)
    x = normal(2, 3, 8, 8, seed=9)
    assert largest(source.eval()(x), target.eval()(x)) == 0
    for name, value in target.state_dict().items():
        assert largest(value, state[name]) == 0, name


def test_weights_that_do_not_fit(load, tmp_path):
    net = load(definitions.RUN_TOGETHER)
    blobs = {"c2": [mg.zeros((4, 6, 3, 3))], "fc": [mg.zeros((2,))]}
    with pytest.raises(ValueError, match=r"missing: c1.weight\n(.*\n)*.*unexpected: fc.0"):
        net.load_blobs(blobs)
    keys = net.load_blobs(blobs, strict=False)
    assert keys.unexpected == ["fc.0"]
    assert largest(net.c2.weight, mg.zeros((4, 6, 3, 3))) == 0
    with pytest.raises(ValueError, match=r"c2.weight: expected shape \(4, 6, 3, 3\), got \(6, 4"):
        net.load_blobs({"c2": [mg.zeros((6, 4, 3, 3))]}, strict=False)
    path = tmp_path / "bad.caffemodel"
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(ValueError, match="to be a binary NetParameter"):
        load_caffemodel(path)
    message = message_class("NetParameter")()
    blob = message.layer.add(name="a").blobs.add()
    blob.shape.dim.extend([2, 3])
    blob.data.extend([1.0] * 5)
    path.write_bytes(message.SerializeToString())
    with pytest.raises(ValueError, match=r"layer 'a' with \(2, 3\) elements, got 5"):
        load_caffemodel(path)


# Fillers.


def filled(shape, **fields):
    tensor = mg.zeros(shape)
    fill(tensor, message_class("FillerParameter")(**fields))
    return tensor


SHAPE = (40, 30, 5, 5)  # fan_in 750, fan_out 1000


@pytest.mark.parametrize(("norm", "n"), [("FAN_IN", 750), ("FAN_OUT", 1000), ("AVERAGE", 875)])
def test_xavier_and_msra_have_the_variance_they_say(norm, n):
    mg.random.seed(0)
    w = filled(SHAPE, type="xavier", variance_norm=norm)
    assert mg.var(w).item() == pytest.approx(1 / n, rel=0.03)
    assert math.sqrt(3 / n) * 0.99 < mg.max(mg.abs(w)).item() <= math.sqrt(3 / n)
    w = filled(SHAPE, type="msra", variance_norm=norm)
    assert mg.var(w).item() == pytest.approx(2 / n, rel=0.03)
    assert mg.max(mg.abs(w)).item() > 3 * math.sqrt(2 / n)


def test_other_fillers():
    mg.random.seed(0)
    assert filled((3,), value=0.25).tolist() == [0.25] * 3
    w = filled((10_000,), type="uniform", min=-1, max=3)
    assert (mg.min(w).item() >= -1, mg.max(w).item() <= 3) == (True, True)
    assert mg.mean(w).item() == pytest.approx(1, abs=0.05)
    w = filled((10_000,), type="gaussian", mean=2, std=0.5)
    assert mg.mean(w).item() == pytest.approx(2, abs=0.02)
    assert mg.std(w).item() == pytest.approx(0.5, abs=0.02)
    w = filled((100, 200), type="gaussian", sparse=10)
    assert mg.mean((w != 0).astype("float32")).item() == pytest.approx(0.1, abs=0.01)
    w = filled((4, 3, 2), type="positive_unitball")
    assert mg.sum(w, axis=(1, 2)).tolist() == pytest.approx([1] * 4)
    assert mg.min(w).item() >= 0
    w = filled((2, 1, 4, 4), type="bilinear")
    tent = [0.25, 0.75, 0.75, 0.25]
    assert w[1, 0].tolist() == [[a * b for b in tent] for a in tent]
    with pytest.raises(ValueError, match="expected square kernels"):
        filled((2, 1, 3, 4), type="bilinear")


def test_parameters_without_a_filler_are_zero(load):
    net = load(HEAD + definitions.layer(
        "c", "Convolution", "x", convolution_param={"num_output": 2, "kernel_size": 3}
    ))  # fmt: skip
    assert mg.max(mg.abs(net.c.weight)).item() == 0
