"""The packages and the optional compiled CPU backend; everything else is declared in pyproject.toml.

The folder benchmarks/ is installed as the package hyenarec_benchmarks, which pyproject.toml's tables cannot say.

torch's stable ABI needs only torch's headers and libraries, so torch is no build requirement: inside pip's isolated
build, sysconfig still names the target environment's site-packages. Without torch there, without a compiler, or with
HYENAREC_BUILD=0, the install is pure Python and one line says what is missing.
"""

import os
import platform
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

TORCH = Path(sysconfig.get_path("purelib")) / "torch"
X86 = platform.machine().lower() in ("x86_64", "amd64")
ISA_FLAGS = {
    "kernels_avx512.cpp": ["-march=x86-64-v4", "-mprefer-vector-width=512"],
    "kernels_avx2.cpp": ["-march=x86-64-v3"],
    "kernels_portable.cpp": [],
}


def sources() -> list[str]:
    isa = list(ISA_FLAGS) if X86 else ["kernels_portable.cpp"]
    return ["csrc/register.cpp", "csrc/cpu/dispatch.cpp", *(f"csrc/cpu/{name}" for name in isa)]


class Build(build_ext):
    """Adds each instruction set's flags to its own file, and compiles the files side by side."""

    def build_extension(self, ext: Extension) -> None:
        if not TORCH.is_dir():
            print(f"hyenarec: no compiled CPU backend: no torch in {TORCH.parent}", file=sys.stderr)
            return
        try:
            self.compile_and_link(ext)
        except Exception as error:  # the compiled part is optional: any failure leaves a working pure-Python install
            print(f"hyenarec: no compiled CPU backend: {error}", file=sys.stderr)

    def compile_and_link(self, ext: Extension) -> None:
        def compile_one(source: str) -> str:
            flags = [*ext.extra_compile_args, *ISA_FLAGS.get(Path(source).name, [])]
            (built,) = self.compiler.compile(
                [source],
                output_dir=self.build_temp,
                macros=ext.define_macros,
                include_dirs=ext.include_dirs,
                extra_postargs=flags,
                depends=ext.depends,
            )
            return built

        with ThreadPoolExecutor(min(os.cpu_count() or 1, 4)) as pool:
            objects = list(pool.map(compile_one, ext.sources))
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        self.compiler.link_shared_object(
            objects,
            str(target),
            libraries=ext.libraries,
            library_dirs=ext.library_dirs,
            extra_postargs=ext.extra_link_args,
            target_lang="c++",
        )


def extension() -> Extension:
    extra = os.environ.get("HYENAREC_CXXFLAGS", "").split()  # the sanitizer build
    return Extension(
        "hyenarec_kernels._C",
        sources(),
        depends=[str(path) for path in Path("csrc").rglob("*") if path.suffix in (".h", ".inc", ".cpp")],
        include_dirs=[str(TORCH / "include"), sysconfig.get_path("include")],
        library_dirs=[str(TORCH / "lib")],
        libraries=["torch", "torch_cpu", "c10"],
        define_macros=[("TORCH_TARGET_VERSION", "0x020a000000000000"), ("Py_LIMITED_API", "0x030A0000")],
        extra_compile_args=["-std=c++17", "-O3", "-g0", "-fvisibility=hidden", *extra],
        extra_link_args=["-Wl,--no-as-needed", *extra],
        py_limited_api=True,
        optional=True,
    )


setup(
    packages=[
        *find_packages(".", include=["hyenarec_kernels*"]),
        *find_packages("python", include=["hyenarec*"]),
        "hyenarec_benchmarks",
    ],
    package_dir={"hyenarec": "python/hyenarec", "hyenarec_benchmarks": "benchmarks"},
    ext_modules=[] if os.environ.get("HYENAREC_BUILD") == "0" else [extension()],
    cmdclass={"build_ext": Build},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
