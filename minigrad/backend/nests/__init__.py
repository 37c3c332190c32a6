"""What the loop-nest kernels of all devices share: a writer's state, and reductions in parts."""
