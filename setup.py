"""How the compiled modules are built: one table of extensions, instruction sets and flags.

Everything else about the package stands in pyproject.toml. Environment: FASTBN_OPENMP=0 builds without OpenMP,
FASTBN_DEBUG=1 keeps symbols for debuggers and checks the indices of tuples.
"""

import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy
from Cython.Build import cythonize
from Cython.Compiler.Version import version as cython_version
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

DEBUG = os.environ.get("FASTBN_DEBUG") == "1"

DIRECTIVES = {
    "language_level": 3,
    "boundscheck": DEBUG,
    "wraparound": False,
    "initializedcheck": DEBUG,
    "cdivision": True,
    "freethreading_compatible": True,
    "warn.unreachable": False,  # what is chosen when a loop over types is compiled leaves the other ways unreachable
}

# -ffp-contract=off: a fused multiply-add on one instruction set only would give other bits there.
# Never a flag that lets compilers reorder sums or forget NaN: tests/test_structure.py has their names.
# (-fno-math-errno is none: a square root need not set errno, and may then stand in a vector.)
FLAGS = {"unix": ["-O3", "-ffp-contract=off", "-fno-math-errno"], "msvc": ["/O2", "/fp:precise"]}
if not DEBUG:
    FLAGS["unix"].append("-g0")  # Python's own flags have -g: modules would be several times as large

# GCC peels loops of constant length away before its vectoriser sees them, makes calls of memcpy out of those that copy
# a line of results (a fifth to three quarters more instructions, counted by bench/instructions.py), adds to pointers
# that go on together as to one vector, which it takes to pieces again, and calls inline functions inside loops, all
# registers saved, when it thinks a module large. Other compilers do not need it.
KEEP_LANE_LOOPS = [
    "--param",
    "max-completely-peel-times=4",
    "-fno-tree-loop-distribute-patterns",
    "-fno-tree-slp-vectorize",
    "-DCYTHON_INLINE=__inline__ __attribute__((always_inline))",
]

# Intel's processors from Skylake to Cascade Lake decode a loop anew each time round whose jump back lies across two
# blocks of 32 bytes (their erratum of conditional jumps), which a change elsewhere in a module decides: 1 to 5 % of
# small loops. The assembler fills up before such jumps. Others need not know the option.
KEEP_JUMPS_IN_BLOCKS = ["-Wa,-mbranches-within-32B-boundaries"]

# The kernels are built once for each row: module, flags. Which one runs is decided at import (fastbn/_dispatch.py).
V3 = "fastbn._kernels.x86_64_v3"
KERNELS = {
    "fastbn._kernels.baseline": [],
    V3: ["-march=x86-64-v3"],
}
OTHERS = ["fastbn._core", "fastbn._cpu"]

# A reduction over two threads that must give 10 when it *runs*, and the call that makes fork safe (fastbn/_threads.py).
OPENMP_PROBE = r"""
#include <omp.h>
#include <stdio.h>
int main(void) {
    int i, sum = 0;
    #pragma omp parallel for num_threads(2) reduction(+:sum)
    for (i = 0; i < 5; i++) sum += i;
    PAUSE
    printf("%d\n", sum);
    return sum == 10 ? 0 : 1;
}
"""
PAUSE_CALL = "if (omp_pause_resource_all(omp_pause_soft)) return 2;"
OPENMP_FLAGS = [(["-fopenmp"], ["-fopenmp"]), (["-Xpreprocessor", "-fopenmp"], ["-lomp"])]

V3_PROBE = 'int main(void) { return __builtin_cpu_supports("x86-64-v3"); }'  # compiled, never run


def say(line: str) -> None:
    """Print a decision of the build where pip -v and CI logs show it."""
    print(f"fastbn build: {line}", file=sys.stderr, flush=True)


def differs(record: Path, options: str) -> bool:
    """Whether what stands there was made with other options: no source is newer then, but nothing of it will do."""
    return not record.exists() or record.read_text() != options


class BuildExt(build_ext):
    """Decides flags once the compiler is known, and records the decisions for `fastbn.show_config()`."""

    def build_extensions(self) -> None:
        kind = "msvc" if self.compiler.compiler_type == "msvc" else "unix"
        flags = list(FLAGS[kind])
        for wanted in (KEEP_LANE_LOOPS, KEEP_JUMPS_IN_BLOCKS) if kind == "unix" else ():
            if self.works("int main(void) { return 0; }", wanted, []):
                flags += wanted
        openmp, link, pause = self.openmp(kind)
        v3 = self.can_build_v3(kind)
        if not v3:
            self.extensions[:] = [e for e in self.extensions if e.name != V3]
        for extension in self.extensions:
            extension.extra_compile_args = flags + openmp + KERNELS.get(extension.name, [])
            extension.extra_link_args = link
            extension.define_macros += [
                ("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION"),
                ("FASTBN_OMP_PAUSE", str(int(pause))),
                ("FASTBN_V3", str(int(v3))),
                ("FASTBN_BUILD", f'"Cython {cython_version}; flags {" ".join(flags + openmp)}"'),
            ]
        self.parallel = self.parallel or os.cpu_count()  # the kernels take a minute each
        options = [(e.name, e.extra_compile_args, e.extra_link_args, e.define_macros) for e in self.extensions]
        made_with = Path(self.build_temp, "options.txt")
        self.force = self.force or differs(made_with, repr(options))
        super().build_extensions()
        made_with.write_text(repr(options))

    def openmp(self, kind: str) -> tuple[list[str], list[str], bool]:
        """Flags to compile and to link with OpenMP, and whether its thread pool can be paused before a fork."""
        if os.environ.get("FASTBN_OPENMP") == "0":
            say("OpenMP switched off by FASTBN_OPENMP=0: SERIAL BUILD")
            return [], [], False
        if kind == "msvc":
            say("OpenMP of MSVC")
            return ["/openmp"], [], False
        for compile_args, link_args in OPENMP_FLAGS:
            for pause in (True, False):
                source = OPENMP_PROBE.replace("PAUSE", PAUSE_CALL if pause else "")
                if self.works(source, compile_args, link_args, run=True):
                    say(f"OpenMP found: {' '.join(compile_args)}")
                    return compile_args, link_args, pause
        say("NO OPENMP: the probe did not compile, link and run. SERIAL BUILD, one thread only.")
        return [], [], False

    def can_build_v3(self, kind: str) -> bool:
        """Whether compiler and processor family know x86-64-v3."""
        known = kind == "unix" and platform.machine().lower() in ("x86_64", "amd64")
        known = known and self.works(V3_PROBE, KERNELS[V3], [])
        say("kernels: baseline, x86-64-v3" if known else "kernels: baseline only")
        return known

    def works(self, source: str, compile_args: list[str], link_args: list[str], run: bool = False) -> bool:
        """Whether a C program compiles and links with these flags (and ends with status 0 where `run`)."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "probe.c")
            path.write_text(source)
            cc = [*self.compiler.compiler_so, "-Werror", str(path), "-o", str(path.with_suffix(""))]
            built = subprocess.run([*cc, *compile_args, *link_args], capture_output=True, check=False)
            if built.returncode != 0 or not run:
                return built.returncode == 0
            try:
                ran = subprocess.run([path.with_suffix("")], capture_output=True, timeout=30, check=False)
                return ran.returncode == 0
            except (OSError, subprocess.TimeoutExpired):
                return False


def extension(name: str) -> Extension:
    """The extension of a module: one .pyx, with the included kernel sources as dependencies."""
    kernels = Path("fastbn/_kernels")
    return Extension(
        name,
        [name.replace(".", "/") + ".pyx"],
        include_dirs=[numpy.get_include(), str(kernels)],
        depends=[str(p) for pattern in ("*.pxi", "*.pxd", "*.h") for p in kernels.glob(pattern)],
    )


made_with = Path("build", "directives.txt")
modules = cythonize(
    [extension(n) for n in [*KERNELS, *OTHERS]],
    compiler_directives=DIRECTIVES,
    force=differs(made_with, repr(DIRECTIVES)),
)
made_with.parent.mkdir(exist_ok=True)
made_with.write_text(repr(DIRECTIVES))
setup(ext_modules=modules, cmdclass={"build_ext": BuildExt})
