"""The optional compiled part; everything else is declared in pyproject.toml.

torch's stable ABI needs only torch's headers and libraries, so torch is no build requirement: inside pip's isolated
build, sysconfig still names the target environment's site-packages. Without torch there, without a compiler, or with
HYENAREC_BUILD=0, the install is pure Python; without nvcc, or where nvcc fails, it has the CPU's kernels alone. One
line says what is missing. No GPU is needed to compile for one, and torch may be built without CUDA.

HYENAREC_CUDA_ARCHS names the GPU architectures to compile for, "80;90+PTX" by default: "+PTX" adds what newer GPUs
translate when they first run it, and "80-virtual" is that alone. Empty, it leaves the CUDA part out.
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
    """nvcc's flags for architectures such as "80;90+PTX"."""
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
    """Whether HYENAREC_BUILD asks for the compiled part: 1, or nothing, does, 0 does not."""
    if build not in ("", "0", "1"):
        sys.exit(f"hyenarec: HYENAREC_BUILD={build}: allowed are 0 and 1")
    return build != "0"


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME")
    beside_home = shutil.which("nvcc", path=f"{home}/bin") if home else None
    return beside_home or shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def run(*command: str) -> str:
    """The output of a command; a failed one raises with its first line about an error."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        reason = next((line for line in lines if "error" in line.lower()), lines[0] if lines else "no message")
        raise RuntimeError(f"{command[0]} exited with {done.returncode}: {reason}")
    return done.stderr + done.stdout


class Build(build_ext):
    """Compiles the kernels for each instruction set, gives .cu files to nvcc, and compiles files side by side."""

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
        # the longest first: of the CUDA sources those of kernels, the short convolutions' among them
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
        """One file of all sources but the kernels: torch's headers take most of the time that each of them takes."""
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
        # -O1 is the host's code, which launches kernels; theirs are optimised all the same
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
    """Linker flags for the CUDA runtime of this nvcc: static, so that the result loads without a CUDA of its own."""
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
