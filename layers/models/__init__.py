"""Complete networks."""

from layers.models.lenet import LeNet5

__all__ = ["LeNet5"]
