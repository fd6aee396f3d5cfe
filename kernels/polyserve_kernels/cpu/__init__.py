"""The operations for CPUs, in C++ (kernels/csrc). Meanings are in `reference/`, in files of the same names."""
