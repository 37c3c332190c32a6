"""Definitions of well-known Caffe networks, written from their public hyper-parameters.

Layer names are those of the published models, so that published weights would fit.
"""

from __future__ import annotations


def fields(value, indent="  "):
    """A dict as the fields of a message; lists repeat a field, dicts are messages, str in capitals
    are values of enums."""
    lines = []
    for name, given in value.items():
        for v in given if isinstance(given, list) else [given]:
            if isinstance(v, dict):
                lines.append(f"{indent}{name} {{\n{fields(v, indent + '  ')}{indent}}}\n")
            elif isinstance(v, bool):
                lines.append(f"{indent}{name}: {str(v).lower()}\n")
            elif isinstance(v, str) and not v.isupper():
                lines.append(f'{indent}{name}: "{v}"\n')
            else:
                lines.append(f"{indent}{name}: {v}\n")
    return "".join(lines)


def layer(name, type_, bottom=(), top=None, **more):
    bottoms = [bottom] if isinstance(bottom, str) else list(bottom)
    tops = [name if top is None else top] if top is None or isinstance(top, str) else list(top)
    quoted = {"name": name, "type": type_, "bottom": bottoms, "top": tops}
    head = "".join(
        f'  {k}: "{v}"\n'
        for k, vs in quoted.items()
        for v in (vs if isinstance(vs, list) else [vs])
    )
    return f"layer {{\n{head}{fields(more)}}}\n"


def relu(blob, name=None):
    return layer(name or f"relu_{blob}", "ReLU", blob, blob)


LEARNED = [{"lr_mult": 1, "decay_mult": 1}, {"lr_mult": 2, "decay_mult": 0}]


def conv(name, bottom, outputs, kernel, filler=None, bias=0.0, param=LEARNED, **options):
    weight = filler or {"type": "xavier"}
    own = {"num_output": outputs, "kernel_size": kernel, **options, "weight_filler": weight}
    if options.get("bias_term", True):
        own["bias_filler"] = {"type": "constant", "value": bias}
    else:
        param = param[:1]
    return layer(name, "Convolution", bottom, param=param, convolution_param=own)


def inner(name, bottom, outputs, filler=None, bias=0.0, param=LEARNED):
    own = {
        "num_output": outputs,
        "weight_filler": filler or {"type": "xavier"},
        "bias_filler": {"type": "constant", "value": bias},
    }
    return layer(name, "InnerProduct", bottom, param=param, inner_product_param=own)


def pool(name, bottom, kernel, stride, method="MAX", **options):
    own = {"pool": method, "kernel_size": kernel, "stride": stride, **options}
    return layer(name, "Pooling", bottom, pooling_param=own)


def data(name="data", batch=(32, 50), **transform):
    """The two layers of a database, one a phase."""
    text, common = "", {"source": "some/lmdb", "backend": "LMDB"}
    for phase, n in zip(("TRAIN", "TEST"), batch, strict=True):
        text += layer(
            name, "Data", (), ("data", "label"), include={"phase": phase},
            transform_param=transform, data_param={**common, "batch_size": n},
        )  # fmt: skip
    return text


def scored(scores, loss="loss", accuracy="accuracy", **options):
    both = (scores, "label")
    return layer(loss, "SoftmaxWithLoss", both, **options) + layer(
        accuracy, "Accuracy", both, include={"phase": "TEST"}
    )


def lenet():
    """MNIST LeNet: 431,080 parameters."""
    return (
        'name: "LeNet"\n' + data("mnist", (64, 100), scale=0.00390625)
        + conv("conv1", "data", 20, 5, stride=1) + pool("pool1", "conv1", 2, 2)
        + conv("conv2", "pool1", 50, 5, stride=1) + pool("pool2", "conv2", 2, 2)
        + inner("ip1", "pool2", 500) + relu("ip1", "relu1") + inner("ip2", "ip1", 10)
        + scored("ip2")
    )  # fmt: skip


def gaussian(std):
    return {"type": "gaussian", "std": std}


def cifar10_full():
    """Three convolutions with LRN within channels: 89,578 parameters."""
    norm = {"local_size": 3, "alpha": 5e-05, "beta": 0.75, "norm_region": "WITHIN_CHANNEL"}
    return (
        'name: "CIFAR10_full"\n' + data("cifar", (100, 100), mean_file="some/mean.binaryproto")
        + conv("conv1", "data", 32, 5, gaussian(0.0001), pad=2)
        + pool("pool1", "conv1", 3, 2) + relu("pool1", "relu1")
        + layer("norm1", "LRN", "pool1", lrn_param=norm)
        + conv("conv2", "norm1", 32, 5, gaussian(0.01), pad=2) + relu("conv2", "relu2")
        + pool("pool2", "conv2", 3, 2, "AVE") + layer("norm2", "LRN", "pool2", lrn_param=norm)
        + conv("conv3", "norm2", 64, 5, gaussian(0.01), pad=2) + relu("conv3", "relu3")
        + pool("pool3", "conv3", 3, 2, "AVE")
        + inner("ip1", "pool3", 10, gaussian(0.01),
                param=[{"lr_mult": 1, "decay_mult": 250}, {"lr_mult": 2, "decay_mult": 0}])
        + scored("ip1")
    )  # fmt: skip


def cifar10_sigmoid_bn():
    """The same with sigmoids and BatchNorm, without Scale: 89,450 parameters."""
    text = 'name: "CIFAR10_full"\n' + data("cifar", (100, 1000), mean_file="some/mean.binaryproto")
    bottom = "data"
    for i, outputs in enumerate((32, 32, 64), 1):
        own = [{"lr_mult": 1}]
        text += conv(
            f"conv{i}", bottom, outputs, 5, gaussian(0.01), param=own, pad=2, bias_term=False
        )
        ordered = ("pool", "bn", "Sigmoid") if i == 1 else ("bn", "Sigmoid", "pool")
        bottom = f"conv{i}"
        for kind in ordered:
            name = f"{kind}{i}"
            if kind == "pool":
                text += pool(name, bottom, 3, 2, "MAX" if i == 1 else "AVE")
            elif kind == "bn":
                text += layer(name, "BatchNorm", bottom, param=[{"lr_mult": 0}] * 3)
            else:
                text += layer(name, "Sigmoid", bottom)
            bottom = name
    specs = [{"lr_mult": 1, "decay_mult": 1}, {"lr_mult": 1, "decay_mult": 0}]
    return text + inner("ip1", bottom, 10, gaussian(0.01), param=specs) + scored("ip1")


def alexnet(features=4096, classes=1000):
    """60,965,224 parameters for images of 227 x 227."""
    norm = {"local_size": 5, "alpha": 0.0001, "beta": 0.75}
    drop = {"dropout_ratio": 0.5}
    text = 'name: "AlexNet"\n' + data(mirror=True, crop_size=227)
    text += conv("conv1", "data", 96, 11, gaussian(0.01), stride=4) + relu("conv1", "relu1")
    text += layer("norm1", "LRN", "conv1", lrn_param=norm) + pool("pool1", "norm1", 3, 2)
    text += conv("conv2", "pool1", 256, 5, gaussian(0.01), 0.1, pad=2, group=2)
    text += relu("conv2", "relu2")
    text += layer("norm2", "LRN", "conv2", lrn_param=norm) + pool("pool2", "norm2", 3, 2)
    text += conv("conv3", "pool2", 384, 3, gaussian(0.01), pad=1) + relu("conv3", "relu3")
    text += conv("conv4", "conv3", 384, 3, gaussian(0.01), 0.1, pad=1, group=2)
    text += relu("conv4", "relu4")
    text += conv("conv5", "conv4", 256, 3, gaussian(0.01), 0.1, pad=1, group=2)
    text += relu("conv5", "relu5") + pool("pool5", "conv5", 3, 2)
    for i, bottom in ((6, "pool5"), (7, "fc6")):
        text += inner(f"fc{i}", bottom, features, gaussian(0.005), 0.1) + relu(f"fc{i}", f"relu{i}")
        text += layer(f"drop{i}", "Dropout", f"fc{i}", f"fc{i}", dropout_param=drop)
    return text + inner("fc8", "fc7", classes, gaussian(0.01)) + scored("fc8")


# name: 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool projection
INCEPTIONS = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}


def conv_relu(name, bottom, outputs, kernel, **options):
    head, _, tail = name.rpartition("/")
    made = conv(name, bottom, outputs, kernel, bias=0.2, **options)
    return made + relu(name, f"{head}/relu_{tail}")


def inception(name, bottom, widths):
    n1, r3, n3, r5, n5, projected = widths
    base = f"inception_{name}"
    text = conv_relu(f"{base}/1x1", bottom, n1, 1)
    text += conv_relu(f"{base}/3x3_reduce", bottom, r3, 1)
    text += conv_relu(f"{base}/3x3", f"{base}/3x3_reduce", n3, 3, pad=1)
    text += conv_relu(f"{base}/5x5_reduce", bottom, r5, 1)
    text += conv_relu(f"{base}/5x5", f"{base}/5x5_reduce", n5, 5, pad=2)
    text += pool(f"{base}/pool", bottom, 3, 1, pad=1)
    text += conv_relu(f"{base}/pool_proj", f"{base}/pool", projected, 1)
    branches = [f"{base}/{b}" for b in ("1x1", "3x3", "5x5", "pool_proj")]
    return text + layer(f"{base}/output", "Concat", branches)


def auxiliary(i, bottom, classes):
    base = f"loss{i}"
    text = pool(f"{base}/ave_pool", bottom, 5, 3, "AVE")
    text += conv_relu(f"{base}/conv", f"{base}/ave_pool", 128, 1)
    text += inner(f"{base}/fc", f"{base}/conv", 1024, bias=0.2)
    text += relu(f"{base}/fc", f"{base}/relu_fc")
    text += layer(
        f"{base}/drop_fc", "Dropout", f"{base}/fc", f"{base}/fc",
        dropout_param={"dropout_ratio": 0.7},
    )  # fmt: skip
    text += inner(f"{base}/classifier", f"{base}/fc", classes)
    return text + scored(f"{base}/classifier", f"{base}/loss", f"{base}/top-1", loss_weight=0.3)


def googlenet(classes=1000):
    """Images of 224 x 224: 6,998,552 parameters and 13,378,280 with the auxiliary heads."""
    norm = {"local_size": 5, "alpha": 0.0001, "beta": 0.75}
    text = 'name: "GoogleNet"\n' + data(mirror=True, crop_size=224, mean_value=[104, 117, 123])
    text += conv_relu("conv1/7x7_s2", "data", 64, 7, pad=3, stride=2)
    text += pool("pool1/3x3_s2", "conv1/7x7_s2", 3, 2)
    text += layer("pool1/norm1", "LRN", "pool1/3x3_s2", lrn_param=norm)
    text += conv_relu("conv2/3x3_reduce", "pool1/norm1", 64, 1)
    text += conv_relu("conv2/3x3", "conv2/3x3_reduce", 192, 3, pad=1)
    text += layer("conv2/norm2", "LRN", "conv2/3x3", lrn_param=norm)
    bottom = "pool2/3x3_s2"
    text += pool(bottom, "conv2/norm2", 3, 2)
    for name, widths in INCEPTIONS.items():
        text += inception(name, bottom, widths)
        bottom = f"inception_{name}/output"
        if name in ("3b", "4e"):
            below, bottom = bottom, f"pool{int(name[0])}/3x3_s2"
            text += pool(bottom, below, 3, 2)
        if name in ("4a", "4d"):
            text += auxiliary(1 + (name == "4d"), bottom, classes)
    text += pool("pool5/7x7_s1", bottom, 7, 1, "AVE")
    text += layer(
        "pool5/drop_7x7_s1", "Dropout", "pool5/7x7_s1", "pool5/7x7_s1",
        dropout_param={"dropout_ratio": 0.4},
    )  # fmt: skip
    text += inner("loss3/classifier", "pool5/7x7_s1", classes)
    return text + scored("loss3/classifier", "loss3/loss3", "loss3/top-1", loss_weight=1)


def normalized(suffix, conv_name, global_statistics):
    own = {} if global_statistics is None else {"use_global_stats": global_statistics}
    return layer(f"bn{suffix}", "BatchNorm", conv_name, conv_name, batch_norm_param=own) + layer(
        f"scale{suffix}", "Scale", conv_name, conv_name, scale_param={"bias_term": True}
    )


def resnet50(deploy=True, classes=1000, small=False):
    """25,557,096 parameters; conv1 has a bias. `small`: the last average of 2 x 2, for 64 x 64."""
    given = True if deploy else None
    head = (
        'input: "data"\ninput_dim: 1\ninput_dim: 3\ninput_dim: 224\ninput_dim: 224\n'
        if deploy
        else data(crop_size=224, mirror=True)
    )
    msra = {"type": "msra"}
    text = 'name: "ResNet-50"\n' + head
    text += conv("conv1", "data", 64, 7, msra, pad=3, stride=2)
    text += normalized("_conv1", "conv1", given) + relu("conv1", "conv1_relu")
    text += pool("pool1", "conv1", 3, 2)
    bottom = "pool1"
    for stage, (blocks, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), 2):
        for block in range(blocks):
            name, stride = f"{stage}{'abcdef'[block]}", 2 if block == 0 and stage > 2 else 1
            shortcut = bottom
            if block == 0:
                shortcut = f"res{name}_branch1"
                text += conv(shortcut, bottom, 4 * width, 1, msra, stride=stride, bias_term=False)
                text += normalized(f"{name}_branch1", shortcut, given)
            below = bottom
            for part, (outputs, kernel) in zip(
                "abc", ((width, 1), (width, 3), (4 * width, 1)), strict=True
            ):
                made = f"res{name}_branch2{part}"
                options = {"stride": stride if part == "a" else 1, "pad": kernel // 2}
                text += conv(made, below, outputs, kernel, msra, bias_term=False, **options)
                text += normalized(f"{name}_branch2{part}", made, given)
                text += relu(made, f"{made}_relu") if part != "c" else ""
                below = made
            bottom = f"res{name}"
            text += layer(bottom, "Eltwise", (shortcut, below)) + relu(bottom, f"{bottom}_relu")
    text += pool("pool5", bottom, 2 if small else 7, 1, "AVE")
    text += inner(f"fc{classes}", "pool5", classes, msra)
    if deploy:
        return text + layer("prob", "Softmax", f"fc{classes}")
    return text + scored(f"fc{classes}")


# As tutorials print it: fields run together, three multipliers of zero for BatchNorm's blobs.
RUN_TOGETHER = """name: "conv_bn_scale_relu"
input: "data"
input_dim: 2
input_dim: 3
input_dim: 8
input_dim: 8
layer {bottom: "data"top: "c1"name: "c1"type: "Convolution"param {lr_mult: 1decay_mult: 1}param \
{lr_mult: 2decay_mult: 0}convolution_param {weight_filler {type: "xavier"}bias_filler \
{type: "constant"}num_output: 6pad: 1kernel_size: 3}
}
layer {bottom: "c1"top: "c1"name: "c1_bn"type: "BatchNorm"param {lr_mult: 0decay_mult: 0}param \
{lr_mult: 0decay_mult: 0}param {lr_mult: 0decay_mult: 0}batch_norm_param {use_global_stats: false}
}
layer {bottom: "c1"top: "c1"name: "c1_scale"type: "Scale"param {lr_mult: 0.1decay_mult: 0}param \
{lr_mult: 0.1decay_mult: 0}scale_param {bias_term: true}
}
layer {bottom: "c1"top: "c1"name: "c1_relu"type: "ReLU"
}
layer {bottom: "c1"top: "c2"name: "c2"type: "Convolution"convolution_param {num_output: 4\
bias_term: falsepad: 1kernel_size: 3stride: 2weight_filler {type: "msra"}
}
}
layer {bottom: "c2"top: "p"name: "p"type: "Pooling"pooling_param {pool: AVEkernel_size: 3stride: 2}
}
"""
