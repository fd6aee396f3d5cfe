"""The kernels of PolyServe. `polyserve_kernels.ops` is the only door; importing this package does no work."""
