#!/usr/bin/env python3
"""Prints a LD_LIBRARY_PATH on which the CUDA 13 libraries of this machine lie; on stderr, where each was found.

They come with a toolkit under /usr/local, or with Python packages (nvidia-cublas, nvidia-curand); libcuda comes with
the driver. Exit status 1 when one that the engine cannot do without is missing.
"""
import glob
import pathlib
import site
import subprocess
import sys

NEEDED = ["libcuda.so.1", "libcublas.so.13", "libcublasLt.so.13", "libcurand.so.10"]
WISHED = ["libnvrtc.so.13"]  # only for kernels compiled at run time
FOLDERS = ["/usr/local/cuda/lib64", "/usr/local/cuda-13*/lib64", "/usr/local/cuda-13*/targets/*/lib",
           "/usr/local/nvidia/lib64", "/usr/lib/x86_64-linux-gnu", "/usr/lib64"]


def in_linker_cache(library):
    try:
        listing = subprocess.run(["ldconfig", "-p"], capture_output=True, text=True).stdout
    except OSError:
        return None
    return next((line.split(" => ")[1] for line in listing.splitlines() if line.split()[:1] == [library]), None)


def main():
    packages = [*site.getsitepackages(), site.getusersitepackages(), *(p for p in sys.path if p.endswith("-packages"))]
    folders = FOLDERS + [f"{p}/nvidia/{part}/lib" for p in dict.fromkeys(packages) for part in ("cu13", "*")]
    path, missing = [], []
    for library in NEEDED + WISHED:
        hits = [hit for folder in folders for hit in glob.glob(f"{folder}/{library}")]
        place = hits[0] if hits else in_linker_cache(library)
        print(f"{library}: {place or 'not found'}", file=sys.stderr)
        if place:
            path.append(str(pathlib.Path(place).parent))
        elif library in NEEDED:
            missing.append(library)
    print(":".join(dict.fromkeys(path)))
    if missing:
        sys.exit(f"missing: {', '.join(missing)} (pip install nvidia-cublas nvidia-curand brings all but libcuda, "
                 "which is part of the driver)")


if __name__ == "__main__":
    main()
