"""The operations for GPUs, in Triton. Contracts are in `ops.py`, meanings in `reference/`, in files of the same names.

With TRITON_INTERPRET=1 in the environment before the first import they run on CPU tensors instead, slowly, which is how
their numbers are tested where there is no GPU.
"""
