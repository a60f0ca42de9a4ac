"""Build of the compiled kernels; everything else about the package is in pyproject.toml.

Environment variables:

CYLSTM_BUILD_ISA
    Comma-separated instruction sets to build, of those the architecture has (default: all).
CYLSTM_OPENMP
    ``0`` builds without OpenMP even where the compiler has it.
CYLSTM_CFLAGS_OPT
    Replaces ``-O3``; for example ``-O1`` compiles faster and ``-O0 -g`` suits a debugger.
CYLSTM_CHECKS
    Comma-separated checks to build in, for the tests that need them (default: none).
    ``chaos`` can delay every hand-over between threads, by a seed, and counts them;
    ``exact`` allocates each piece of memory by itself and fills it with NaN before and after use;
    ``thread`` is ThreadSanitizer; ``address`` is AddressSanitizer and UBSan, not with ``thread``.
"""

import os
import sys
import sysconfig
import tempfile
from pathlib import Path

import numpy as np
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError

KERNELS = Path("src/cylstm/kernels")
THREADS = KERNELS / "threads"
GENERATED = Path("build/cython")

AVX512 = ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl"]
# Instruction set: (bytes in one vector, compiler flags). What a processor must have for it is in
# machine.h.
LEVELS = {
    "base": (16, []),
    "neon": (16, []),
    "avx2": (32, ["-mavx2", "-mfma"]),
    "avx512": (64, "-mavx2 -mfma -mprefer-vector-width=512".split() + AVX512),
}
X86_64, AARCH64 = ["base", "avx2", "avx512"], ["neon"]
ARCHITECTURES = {"x86_64": X86_64, "amd64": X86_64, "aarch64": AARCH64, "arm64": AARCH64}
REALS = {"f32": "float", "f64": "double"}

# No -ffast-math, which changes the floating-point mode of the whole process, and no
# -march=native, which ties a wheel to the machine that built it.
CFLAGS = [
    *os.environ.get("CYLSTM_CFLAGS_OPT", "-O3").split(),
    *"-std=gnu11 -fno-math-errno -fno-trapping-math -ffp-contract=off".split(),
    *"-fvisibility=hidden -g0 -pthread".split(),
]
LDFLAGS = ["-pthread"] if sys.platform == "linux" else []
# Check: compiler flags, of which those of sanitizers are the linker's as well.
TRACED = "-fno-omit-frame-pointer -g1".split()
CHECKS = {
    "chaos": ["-DCYLSTM_CHAOS"],
    "exact": ["-DCYLSTM_EXACT_MEMORY"],
    "thread": ["-fsanitize=thread", *TRACED],
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", *TRACED],
}

MACROS = [("_GNU_SOURCE", "1"), ("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION")]
DIRECTIVES = dict.fromkeys(["boundscheck", "wraparound", "initializedcheck", "autotestdict"], False)
DIRECTIVES |= dict.fromkeys(["binding", "cdivision"], True)

OPENMP_PROBE = "#include <omp.h>\nint probe(void) { return omp_get_max_threads(); }\n"


def chosen(variable, known):
    """Return the comma-separated words of an environment variable, which must be known."""
    words = [word.strip() for word in os.environ.get(variable, "").split(",") if word.strip()]
    if unknown := [word for word in words if word not in known]:
        raise SystemExit(f"{variable}: expected names out of {list(known)}, got {unknown}")
    return words


def checked_flags():
    """Return flags of the compiler and of the linker for the checks that are asked for."""
    checks = chosen("CYLSTM_CHECKS", CHECKS)
    if {"thread", "address"} <= set(checks):
        raise SystemExit("CYLSTM_CHECKS: expected at most one of thread and address, got both")
    flags = [flag for check in checks for flag in CHECKS[check]]
    sanitizers = [flag for flag in flags if flag.startswith("-fsanitize")]
    strip = [] if sanitizers or sys.platform != "linux" else ["-Wl,-s"]
    return flags, [*sanitizers, *strip]


def levels():
    """Return the instruction sets to build on this architecture."""
    known = ARCHITECTURES.get(sysconfig.get_platform().rpartition("-")[2], ["base"])
    return chosen("CYLSTM_BUILD_ISA", known) or known


def extension(name, sources, cflags=(), macros=()):
    """Describe one module of cylstm.kernels."""
    headers = [path for kind in ("*.h", "*.pxi", "*.pxd") for path in KERNELS.rglob(kind)]
    checks, link_checks = checked_flags()
    return Extension(
        f"cylstm.kernels.{name}",
        list(map(str, sources)),
        depends=["setup.py", *map(str, headers)],
        include_dirs=[str(KERNELS), np.get_include()],
        define_macros=[*MACROS, *macros],
        extra_compile_args=[*CFLAGS, *cflags, *checks],
        extra_link_args=[*LDFLAGS, *link_checks],
    )


def level_extension(level, real):
    """Describe the kernels of one instruction set and element type: level.pxi under its flags."""
    lane_bytes, cflags = LEVELS[level]
    macros = [("CYLSTM_REAL", REALS[real]), ("CYLSTM_LANES_BYTES", str(lane_bytes))]
    # Constants that cells are specialised by reach all that they call, whatever its size.
    macros.append(("CYTHON_INLINE", "inline __attribute__((always_inline))"))
    source = GENERATED / f"level_{level}_{real}.pyx"
    if not source.exists():
        source.parent.mkdir(parents=True, exist_ok=True)
        source.write_text('include "level.pxi"\n')
    return extension(source.stem, [source], cflags, macros)


class BuildKernels(build_ext):
    """Build what the compiler can: levels whose flags it takes, OpenMP if it links."""

    def finalize_options(self):
        """Compile in parallel unless told otherwise."""
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()

    def build_extensions(self):
        """Probe the compiler, drop what it cannot build, and build the rest."""
        if self.compiler.compiler_type == "msvc":
            raise SystemExit("cylstm needs GCC or Clang: its kernels use vector extensions")
        refused = {level for level in levels() if not self.works("int probe;\n", LEVELS[level][1])}
        for level in refused:
            self.warn(f"the compiler refuses the flags of {level}: built without it")
        self.extensions = [e for e in self.extensions if refused.isdisjoint(e.name.split("_"))]
        if os.environ.get("CYLSTM_OPENMP") != "0" and self.works(OPENMP_PROBE, ["-fopenmp"]):
            for ext in self.extensions:
                ext.extra_compile_args.append("-fopenmp")
                ext.extra_link_args.append("-fopenmp")
        else:
            self.warn("built without OpenMP: cylstm will run on one thread")
        self.forget_other_settings()
        super().build_extensions()

    def forget_other_settings(self):
        """Remove what an earlier build with other flags or levels left behind."""
        settings = "\n".join(f"{ext.name} {ext.extra_compile_args}" for ext in self.extensions)
        stamp = Path(self.build_temp, "settings.txt")
        if not stamp.exists() or stamp.read_text() != settings:
            self.force = True
            for module in Path(self.build_lib, "cylstm", "kernels").glob("*.so"):
                module.unlink()
            stamp.parent.mkdir(parents=True, exist_ok=True)
            stamp.write_text(settings)

    def works(self, source, flags):
        """Whether a C source compiles and links into a shared library with these flags."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "probe.c")
            path.write_text(source)
            try:
                objects = self.compiler.compile([str(path)], folder, extra_postargs=flags)
                self.compiler.link_shared_object(
                    objects, str(path.with_suffix(".so")), extra_postargs=flags
                )
            except (CompileError, LinkError):
                return False
        return True


setup(
    ext_modules=cythonize(
        [
            extension("sequence", [KERNELS / "sequence.pyx", *THREADS.glob("*.c")]),
            *(level_extension(level, real) for level in levels() for real in REALS),
        ],
        language_level=3,
        build_dir=str(GENERATED),
        include_path=["src", str(KERNELS)],
        compiler_directives=DIRECTIVES,
    ),
    cmdclass={"build_ext": BuildKernels},
)
