"""Where the importable packages lie: `polyserve`, and four folders that hold one package each, named after them."""

from setuptools import find_packages, setup

ROOTS = {
    "polyserve": ".",
    "polyserve_kernels": "kernels",
    "polyserve_training": "training",
    "polyserve_proto": "proto",
    "polyserve_benchmarks": "benchmarks",
}

setup(
    packages=[package for name, root in ROOTS.items() for package in find_packages(root, include=[name, f"{name}.*"])],
    package_dir={name: name if root == "." else f"{root}/{name}" for name, root in ROOTS.items()},
    package_data={name: ["py.typed", "**/*.proto", "**/*.jinja", "**/*.pyi"] for name in ROOTS},
)
