# Builds the extension with CMake and ninja. CMakeLists.txt describes the build; torch is never imported.
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
# One folder an interpreter, kept between builds and shared with tools/check, so that a rebuild compiles what changed.
BUILD = ROOT / "build" / sys.implementation.cache_tag


def tool(name):
    """The tool of this interpreter's environment, which need not be activated, else of PATH."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise SystemExit(f"[setup] {name} was not found, expected it on PATH, run: pip install {name}")
    return found


class CMakeBuild(build_ext):
    def build_extension(self, ext):
        cmake = tool("cmake")
        pybind11 = subprocess.check_output([sys.executable, "-m", "pybind11", "--cmakedir"], text=True).strip()
        configure = [cmake, "-S", str(ROOT), "-B", str(BUILD), "-G", "Ninja", "-DSMEZO_PYTHON=ON"]
        # Given every time: an isolated build leaves paths of a folder in the cache that is gone by the next build.
        configure += [f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}", f"-Dpybind11_DIR={pybind11}"]
        configure += [f"-DPython_EXECUTABLE={sys.executable}", *shlex.split(os.environ.get("CMAKE_ARGS", ""))]
        build = [cmake, "--build", str(BUILD), "--target", "_core"]
        if os.environ.get("MAX_JOBS"):
            build += ["--parallel", os.environ["MAX_JOBS"]]
        prefix = Path(self.get_ext_fullpath(ext.name)).resolve().parents[1]
        install = [cmake, "--install", str(BUILD), "--component", "python", "--prefix", str(prefix)]
        for command in (configure, build, install):
            done = subprocess.run(command, stdout=None if self.verbose else subprocess.DEVNULL)
            if done.returncode:
                raise SystemExit(f"[setup] failed with status {done.returncode}: {shlex.join(command)}")


setup(ext_modules=[Extension("pysmezo._core", sources=[])], cmdclass={"build_ext": CMakeBuild})
