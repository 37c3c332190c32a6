"""LeNet-5 without and with BatchNorm, same seed, side by side.

    python -m examples.lenet                                  # embedded digits, under a minute
    python -m examples.lenet --data cifar10 --root DIR        # CIFAR-10 (--download fetches it)

Trains three networks: without normalization, and with BatchNorm whose running statistics keep 0.99
and 0.9 of their old value (momentum 0.01 and 0.1). Writes one picture with the training and
validation losses of the three, and prints their test accuracies.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

import layers
import minigrad as mg
from minigrad.data import (
    CIFAR10,
    Compose,
    DataLoader,
    Digits,
    ImageDataset,
    Normalize,
    RandomCrop,
    RandomHorizontalFlip,
)

Norm = Callable[[int], layers.Module]


@dataclass
class Recipe:
    """What is trained on, and how."""

    train: ImageDataset
    validation: ImageDataset
    test: ImageDataset
    transform: Compose | Normalize
    plain: Normalize  # the transform without augmentation
    epochs: int
    batch_size: int


@dataclass
class Variant:
    """One network: its normalization, its learning rate, and what came of it."""

    name: str
    norm: Norm | None
    lr: float
    train_loss: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    accuracy: float = 0.0


def variants() -> list[Variant]:
    """BatchNorm's running statistics keep `decay` of the old value: momentum is 1 - decay."""
    return [
        Variant("no BN", None, lr=0.02),
        Variant("BN, decay 0.99", lambda c: layers.BatchNorm2d(c, momentum=0.01), lr=0.05),
        Variant("BN, decay 0.9", lambda c: layers.BatchNorm2d(c, momentum=0.1), lr=0.05),
    ]


def digits(epochs: int | None) -> Recipe:
    """The 1797 embedded digits, upsampled to 32 x 32."""
    normalize = Normalize([0.305], [0.376])
    train, validation = split(Digits(train=True, size=32), 0.15)
    return Recipe(
        train, validation, Digits(train=False, size=32), normalize, normalize, epochs or 10, 32
    )


def cifar10(root: str, download: bool, epochs: int | None) -> Recipe:
    """CIFAR-10 with crop and flip; 1000 training images are kept for validation."""
    normalize = Normalize([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616])
    augmented = Compose([RandomCrop(32, padding=4), RandomHorizontalFlip(), normalize])
    train, validation = split(CIFAR10(root, train=True, download=download), 0.02)
    test = CIFAR10(root, train=False)
    return Recipe(train, validation, test, augmented, normalize, epochs or 30, 128)


def split(dataset: ImageDataset, fraction: float) -> tuple[ImageDataset, ImageDataset]:
    """The data set without, and of, its last `fraction` of samples."""
    kept = len(dataset) - round(len(dataset) * fraction)
    return dataset.subset(0, kept), dataset.subset(kept, len(dataset))


def train(variant: Variant, recipe: Recipe, seed: int, save: Path | None) -> None:
    """Train one network, recording its losses after every epoch, and test it."""
    mg.random.seed(seed)
    channels = recipe.train.shape[0]
    model = layers.models.LeNet5(in_channels=channels, norm=variant.norm)
    optimizer = mg.optim.SGD(
        model.parameters(), lr=variant.lr, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    schedule = mg.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=recipe.epochs)

    @mg.compile
    def step(x: mg.Tensor, y: mg.Tensor) -> mg.Tensor:
        optimizer.zero_grad()
        loss = mg.nn.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    @mg.compile
    @mg.no_grad()
    def score(x: mg.Tensor, y: mg.Tensor) -> tuple[mg.Tensor, mg.Tensor]:
        scores = model(x)
        correct = (scores.argmax(axis=1) == y).sum()
        return mg.nn.cross_entropy(scores, y, reduction="sum"), correct

    def evaluate(dataset: ImageDataset) -> tuple[float, float]:
        model.eval()
        loss = correct = 0.0
        for x, y in DataLoader(dataset, batch_size=500, transform=recipe.plain):
            batch_loss, batch_correct = score(x, y)
            loss += batch_loss.item()
            correct += batch_correct.item()
        model.train()
        return loss / len(dataset), correct / len(dataset)

    loader = DataLoader(
        recipe.train, recipe.batch_size, shuffle=True, transform=recipe.transform, seed=seed,
        drop_last=True,
    )  # fmt: skip
    bar = tqdm(total=recipe.epochs * len(loader), desc=f"{variant.name:15}", unit="step")
    for _ in range(recipe.epochs):
        losses = []
        for x, y in loader:
            losses.append(step(x, y))
            bar.update()
        schedule.step()
        # Looked at only now, so that no step waits for its loss to be read.
        variant.train_loss.append(sum(loss.item() for loss in losses) / len(losses))
        variant.validation_loss.append(evaluate(recipe.validation)[0])
        bar.set_postfix(
            train=f"{variant.train_loss[-1]:.3f}", validation=f"{variant.validation_loss[-1]:.3f}"
        )
    bar.close()
    variant.accuracy = evaluate(recipe.test)[1]
    if save is not None:
        mg.save(save, model.state_dict())


def draw(results: list[Variant], path: Path, title: str) -> None:
    """Training (dashed) and validation (solid) loss of each network, and their accuracies."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (curves, table) = plt.subplots(
        1, 2, figsize=(10, 4.5), width_ratios=(3, 1.4), layout="constrained"
    )
    for result, colour in zip(results, ("tab:gray", "tab:blue", "tab:orange"), strict=True):
        epochs = range(1, len(result.train_loss) + 1)
        curves.plot(epochs, result.train_loss, "--", color=colour, alpha=0.7)
        curves.plot(epochs, result.validation_loss, color=colour, label=result.name)
    curves.set(xlabel="epoch", ylabel="cross-entropy", yscale="log", title=title)
    curves.plot([], [], "--", color="black", alpha=0.7, label="(training loss)")
    curves.legend()
    curves.grid(alpha=0.3)
    table.axis("off")
    table.set_title("test accuracy")
    cells = [[r.name, f"{100 * r.accuracy:.2f} %"] for r in results]
    drawn = table.table(cells, colWidths=(0.62, 0.38), loc="upper center", edges="horizontal")
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(11)
    drawn.scale(1, 1.8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> list[Variant]:
    """Parse the command line, train the three networks, draw and print."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.lenet", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--data", choices=("digits", "cifar10"), default="digits")
    parser.add_argument("--root", default=".", help="folder of the CIFAR-10 files or archive")
    parser.add_argument("--download", action="store_true", help="fetch CIFAR-10 if it is not there")
    parser.add_argument("--device", help="cpu or cuda (default: cuda if there is a GPU)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, help="default: 10 for digits, 30 for cifar10")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the results")
    options = parser.parse_args(arguments)
    if options.epochs is not None and options.epochs < 1:
        parser.error(f"--epochs: expected 1 or more, got {options.epochs}")
    if options.device:
        mg.set_default_device(options.device)
    if options.data == "digits":
        recipe = digits(options.epochs)
    else:
        recipe = cifar10(options.root, options.download, options.epochs)
    device = mg.default_device()
    print(
        f"LeNet-5 on {options.data}: {len(recipe.train)} images, {recipe.epochs} epochs, {device}"
    )

    options.out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    results = variants()
    for k, variant in enumerate(results):
        train(variant, recipe, options.seed, options.out / f"lenet_{options.data}_{k}.safetensors")
    picture = options.out / f"lenet_{options.data}.png"
    draw(results, picture, f"LeNet-5 on {options.data}")

    print(f"\n{'':15}  train loss  validation loss  test accuracy")
    for r in results:
        print(
            f"{r.name:15}  {r.train_loss[-1]:10.4f}  {r.validation_loss[-1]:15.4f}"
            f"  {100 * r.accuracy:11.2f} %"
        )
    print(f"\n{time.perf_counter() - started:.0f} s; wrote {picture}")
    return results


if __name__ == "__main__":
    main()
