"""Where the importable packages lie (`polyserve`, and four folders that hold one package each, named after them), and
how the C++ kernels are built: each source once for every instruction set, chosen among when the library is loaded."""

import platform
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOTS = {
    "polyserve": ".",
    "polyserve_kernels": "kernels",
    "polyserve_training": "training",
    "polyserve_proto": "proto",
    "polyserve_benchmarks": "benchmarks",
}

CSRC = Path("kernels/csrc")
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
INSTRUCTION_SETS = {"avx2": AVX2, "avx512": AVX512, "avx512bf16": [*AVX512, "-mavx512bf16", "-mavx512vbmi"]}
# A product and a sum that the source keeps apart stay apart: a formula has the same bits wherever it is inlined. GCC 12
# takes its own undefined-vector intrinsics for uninitialised values.
FLAGS = ["-std=c++17", "-O3", "-ffp-contract=off", "-fvisibility=hidden", "-pthread", "-g0", "-Wno-uninitialized"]
# Python's own flags define signed overflow; here it is a fault. -O1 builds and runs a few times faster than -O3 does.
SANITIZE = ["-O1", "-g1", "-fno-wrapv", "-fno-omit-frame-pointer"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
X86_64 = platform.machine().lower() in ("x86_64", "amd64")


class build_kernels(build_ext):
    user_options: ClassVar = [
        *build_ext.user_options,
        ("sanitize", None, "see to memory and undefined behaviour, for tests"),
    ]
    boolean_options: ClassVar = [*build_ext.boolean_options, "sanitize"]

    def initialize_options(self) -> None:
        super().initialize_options()
        self.sanitize = False

    def build_extension(self, ext: Extension) -> None:
        folder = Path(self.build_temp)
        sanitizers = SANITIZERS if self.sanitize else []
        common = [*FLAGS, *SANITIZE, *SANITIZERS] if self.sanitize else FLAGS
        units = [(source, folder, common) for source in ("threads.cpp", "library.cpp")]
        units += [
            ("isa.cpp", folder / name, [*common, f"-DPS_ISA={name}", *flags])
            for name, flags in INSTRUCTION_SETS.items()
        ]
        with ThreadPoolExecutor() as pool:
            objects = [part for parts in pool.map(self._compile, units) for part in parts]
        self.compiler.link_shared_object(
            objects, self.get_ext_fullpath(ext.name), extra_postargs=["-pthread", *sanitizers], target_lang="c++"
        )

    def _compile(self, unit: tuple[str, Path, list[str]]) -> list[str]:
        source, folder, flags = unit
        return self.compiler.compile([str(CSRC / source)], output_dir=str(folder), extra_postargs=flags)


setup(
    packages=[package for name, root in ROOTS.items() for package in find_packages(root, include=[name, f"{name}.*"])],
    package_dir={name: name if root == "." else f"{root}/{name}" for name, root in ROOTS.items()},
    package_data={name: ["py.typed", "**/*.proto", "**/*.jinja", "**/*.pyi"] for name in ROOTS},
    # optional: where there is no C++ compiler, or another processor, the reference kernels answer
    ext_modules=[
        Extension(
            "polyserve_kernels.cpu._native",
            sources=[str(CSRC / "library.cpp")],
            depends=[str(path) for path in sorted(CSRC.glob("*"))],
            optional=True,
        )
    ]
    if X86_64
    else [],
    cmdclass={"build_ext": build_kernels},
)
