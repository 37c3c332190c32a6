"""Devices: memory, kernels and programs, behind one contract.

`interface` says what a device must provide; `cpu` and `cuda` provide it, in rooms of one outline.
The rest is what they share: `launch` and `loopnest` are what the compiler hands them, `geometry`
how windows lie, `nests` what writers of loop nests have in common, `checks` what every kernel asks
of its operands, `tables` and `cache_directory` what runs and keeps compiled kernels.
"""
