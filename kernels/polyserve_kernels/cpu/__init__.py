"""The operations for CPUs, in C++ (kernels/csrc), in files of the same names as in `reference/`, where their meanings are."""
