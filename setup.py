"""Builds the optional compiled kernels; everything else is declared in pyproject.toml.

torch is no build requirement, because its stable ABI needs only torch's headers and libraries: inside pip's isolated
build, sysconfig still names the target environment's site-packages, where they lie. Without torch there, without a
compiler, or with HYENAREC_BUILD=0, the install is pure Python. Without nvcc, or where nvcc fails, it has the CPU
kernels alone. One printed line says what is missing. Compiling for a GPU needs no GPU, and torch may be built without
CUDA.

HYENAREC_CUDA_ARCHS names the GPU architectures to compile for, "80;90+PTX" by default. "+PTX" adds PTX code, which
newer GPUs translate when they first run it; "80-virtual" is PTX code alone. An empty value leaves the CUDA kernels out.
"""

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

TORCH = Path(sysconfig.get_path("purelib")) / "torch"
X86 = platform.machine().lower() in ("x86_64", "amd64")
KERNELS = "csrc/cpu/kernels.cpp"  # compiled once for each instruction set
ISA_FLAGS = (
    {"avx512": ["-march=x86-64-v4", "-mprefer-vector-width=512"], "avx2": ["-march=x86-64-v3"]} if X86 else {}
) | {"portable": []}
CUDA_ARCHS = "80;90+PTX"
OLDEST_CUDA_ARCH = 80  # bfloat16 arithmetic


def cuda_targets(archs: str) -> list[str]:
    """nvcc's flags for architectures such as "80;90+PTX"; exits with a message for one that is unknown or too old."""
    flags = []
    for name in filter(None, map(str.strip, archs.split(";"))):
        match = re.fullmatch(r"(\d{2,3})([af]?)(\+PTX|-virtual)?", name)
        if match is None or int(match[1]) < OLDEST_CUDA_ARCH:
            sys.exit(
                f"hyenarec: HYENAREC_CUDA_ARCHS: expected compute capabilities from {OLDEST_CUDA_ARCH} on, such as "
                f"'80;90+PTX', got {name!r} in {archs!r}"
            )
        arch = match[1] + match[2]
        if match[3] != "-virtual":
            flags.append(f"-gencode=arch=compute_{arch},code=sm_{arch}")
        if match[3]:
            flags.append(f"-gencode=arch=compute_{arch},code=compute_{arch}")
    return list(dict.fromkeys(flags))


def wanted(build: str) -> bool:
    """Whether to compile: yes for HYENAREC_BUILD "1" or "", no for "0"; exits with a message for anything else."""
    if build not in ("", "0", "1"):
        sys.exit(f"hyenarec: HYENAREC_BUILD={build}: allowed are 0 and 1")
    return build != "0"


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME")
    beside_home = shutil.which("nvcc", path=f"{home}/bin") if home else None
    return beside_home or shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def run(*command: str) -> str:
    """A command's output. Raises RuntimeError with its first line about an error if it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        reason = next((line for line in lines if "error" in line.lower()), lines[0] if lines else "no message")
        raise RuntimeError(f"{command[0]} exited with {done.returncode}: {reason}")
    return done.stderr + done.stdout


class Build(build_ext):
    """Compiles the CPU kernels once for each instruction set, .cu files with nvcc, and several files in parallel."""

    def build_extension(self, ext: Extension) -> None:
        targets = cuda_targets(os.environ.get("HYENAREC_CUDA_ARCHS", CUDA_ARCHS))
        if not TORCH.is_dir():
            print(f"hyenarec: no compiled backends: no torch in {TORCH.parent}", file=sys.stderr)
            return
        try:
            self.compile_and_link(ext, targets)
        except Exception as error:  # the compiled part is optional: any failure leaves a working pure-Python install
            print(f"hyenarec: no compiled backends: {error}", file=sys.stderr)

    def compile_and_link(self, ext: Extension, targets: list[str]) -> None:
        nvcc = find_nvcc() if targets else None
        # the longest compilations start first; among the CUDA sources that is short_conv.cu
        cuda_sources = sorted(Path("csrc/cuda").glob("*.cu"), key=lambda source: (source.stem != "short_conv", source))
        with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
            kernels = [pool.submit(self.compile_cpp, ext, KERNELS, isa) for isa in ISA_FLAGS]
            cuda = []
            if nvcc:
                cuda = [pool.submit(self.compile_cuda, str(source), nvcc, targets) for source in cuda_sources]
                cuda.append(pool.submit(self.compile_cpp, ext, "csrc/cuda/register.cpp"))
            rest = pool.submit(self.compile_cpp, ext, self.together(ext))
            objects = [job.result() for job in (*kernels, rest)]
        try:
            if nvcc is None:
                raise RuntimeError("no nvcc in CUDA_HOME, on PATH or in /usr/local/cuda")
            self.link(ext, [*objects, *(job.result() for job in cuda)], cuda_runtime(nvcc))
        except Exception as error:
            if targets:
                print(f"hyenarec: no CUDA backend: {error}", file=sys.stderr)
            self.link(ext, objects, [])

    def together(self, ext: Extension) -> str:
        """One file that includes all CPU sources but the kernels: alone, each would spend most of its time on torch's
        headers."""
        joined = Path(self.build_temp, "together.cpp")
        joined.parent.mkdir(parents=True, exist_ok=True)
        joined.write_text("".join(f'#include "{source}"\n' for source in ext.sources if source != KERNELS))
        return str(joined)

    def compile_cpp(self, ext: Extension, source: str, isa: str | None = None) -> str:
        (built,) = self.compiler.compile(
            [source],
            output_dir=str(Path(self.build_temp, isa or "")),
            macros=[*ext.define_macros, *([("HYENAREC_ISA", isa)] if isa else [])],
            include_dirs=ext.include_dirs,
            extra_postargs=[*ext.extra_compile_args, *(ISA_FLAGS[isa] if isa else [])],
            depends=ext.depends,
        )
        return built

    def compile_cuda(self, source: str, nvcc: str, targets: list[str]) -> str:
        built = Path(self.build_temp, source).with_suffix(".cu.o")
        built.parent.mkdir(parents=True, exist_ok=True)
        # -O1 is for the host code, which launches kernels; nvcc optimises the kernels themselves all the same
        run(nvcc, "-O1", "-std=c++17", "-Xcompiler=-fPIC,-fvisibility=hidden", *targets, "-c", source, "-o", str(built))
        return str(built)

    def link(self, ext: Extension, objects: list[str], libraries: list[str]) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        self.compiler.link_shared_object(
            objects,
            str(target),
            libraries=ext.libraries,
            library_dirs=ext.library_dirs,
            extra_postargs=[*ext.extra_link_args, *libraries],
            target_lang="c++",
        )


def cuda_runtime(nvcc: str) -> list[str]:
    """Linker flags for this nvcc's CUDA runtime, linked statically so that the extension loads where CUDA is not
    installed."""
    plan = run(nvcc, "--dryrun", "-c", "-x", "cu", os.devnull)
    folders = re.search(r"^#\$ LIBRARIES=(.*)$", plan, re.MULTILINE)
    return [*shlex.split(folders[1] if folders else ""), "-l:libcudart_static.a", "-lrt", "-ldl", "-lpthread"]


def extension() -> Extension:
    extra = os.environ.get("HYENAREC_CXXFLAGS", "").split()  # the sanitizer build
    return Extension(
        "hyenarec_kernels._C",
        sorted(map(str, Path("csrc/cpu").glob("*.cpp"))),
        depends=[str(path) for path in Path("csrc").rglob("*") if path.suffix in (".h", ".inc", ".cpp", ".cu", ".cuh")],
        include_dirs=[".", str(TORCH / "include"), sysconfig.get_path("include")],
        library_dirs=[str(TORCH / "lib")],
        libraries=["torch", "torch_cpu", "c10"],
        define_macros=[("TORCH_TARGET_VERSION", "0x020a000000000000"), ("Py_LIMITED_API", "0x030A0000")],
        # GCC warns of its own headers' _mm512_undefined_ps
        extra_compile_args=["-std=c++17", "-O3", "-g0", "-fvisibility=hidden", "-Wno-maybe-uninitialized", *extra],
        extra_link_args=["-Wl,--no-as-needed", *extra],
        py_limited_api=True,
        optional=True,
    )


setup(
    ext_modules=[extension()] if wanted(os.environ.get("HYENAREC_BUILD", "")) else [],
    cmdclass={"build_ext": Build},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
