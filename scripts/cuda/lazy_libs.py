#!/usr/bin/env python3
"""Static stand-ins for the CUDA libraries, so that one binary starts with and without them.

    lazy_libs.py CUDARC_SOURCE OUT_FOLDER

candle links libcuda, libcublas, libcublasLt, libcurand and libnvrtc dynamically: such a binary does not even start
where they are missing. The linker takes lib<name>.a when OUT_FOLDER has no .so, so this script writes archives in which
every entry point that cudarc declares is a few instructions: jump through a slot; while the slot is empty, find the real
function (dlopen, dlsym), keep it in the slot, go there. If there is no such library or function, the call returns
the library's own code for "no device" or "not initialised", which every CUDA program checks first.

x86-64 Linux (System V calling convention) only. CUDA_LAZY_DEBUG=1 prints what could not be found. Needs gcc and ar.
"""
import pathlib
import re
import subprocess
import sys
import tempfile

# library: (module of cudarc with its declarations, file to open, status code if it is not there)
LIBRARIES = {
    "cuda": ("driver", "libcuda.so.1", 100),          # CUDA_ERROR_NO_DEVICE
    "cublas": ("cublas", "libcublas.so.13", 1),       # CUBLAS_STATUS_NOT_INITIALIZED
    "cublasLt": ("cublaslt", "libcublasLt.so.13", 1),  # the same
    "curand": ("curand", "libcurand.so.10", 101),     # CURAND_STATUS_NOT_INITIALIZED
    "nvrtc": ("nvrtc", "libnvrtc.so.13", 7),          # NVRTC_ERROR_BUILTIN_OPERATION_FAILURE
}

FINDER = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#define HIDDEN __attribute__((visibility("hidden")))
static const char *const name_of[] = { @NAMES@ };
HIDDEN void *@LIB@_slots[@COUNT@];
static void *library;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static int not_there(void) { return @STATUS@; }
static void complain(const char *what) {
    if (getenv("CUDA_LAZY_DEBUG")) fprintf(stderr, "@FILE@: %s\n", what);
}
static void open_library(void) {
    library = dlopen("@FILE@", RTLD_NOW | RTLD_GLOBAL);
    if (!library) complain(dlerror());
}
HIDDEN void *@LIB@_find(unsigned index) {
    pthread_once(&once, open_library);
    void *found = library ? dlsym(library, name_of[index]) : NULL;
    if (library && !found) complain(name_of[index]);
    if (!found) found = (void *)not_there;
    __atomic_store_n(&@LIB@_slots[index], found, __ATOMIC_RELEASE);
    return found;
}
"""

# r11 carries the index to the shared part, which keeps every register that may hold an argument (al counts the vector
# registers of a variadic call), and leaves with the found address in r10.
ENTRIES = r"""
.macro entry name index
    .globl \name
    .hidden \name
    .type \name, @function
\name:
    movq @LIB@_slots+8*\index(%rip), %r10
    testq %r10, %r10
    jz 7f
    jmpq *%r10
7:  movl $\index, %r11d
    jmp find_and_go
    .size \name, . - \name
.endm
.text
.type find_and_go, @function
find_and_go:
    pushq %rbp
    movq %rsp, %rbp
    subq $192, %rsp
.irp n, 0, 1, 2, 3, 4, 5, 6, 7
    movups %xmm\n, 16*\n(%rsp)
.endr
    movq %rdi, 128(%rsp)
    movq %rsi, 136(%rsp)
    movq %rdx, 144(%rsp)
    movq %rcx, 152(%rsp)
    movq %r8, 160(%rsp)
    movq %r9, 168(%rsp)
    movq %rax, 176(%rsp)
    movl %r11d, %edi
    call @LIB@_find
    movq %rax, %r10
    movq 176(%rsp), %rax
    movq 168(%rsp), %r9
    movq 160(%rsp), %r8
    movq 152(%rsp), %rcx
    movq 144(%rsp), %rdx
    movq 136(%rsp), %rsi
    movq 128(%rsp), %rdi
.irp n, 0, 1, 2, 3, 4, 5, 6, 7
    movups 16*\n(%rsp), %xmm\n
.endr
    leave
    jmpq *%r10
.section .note.GNU-stack, "", @progbits
.text
"""


def declared(source, module):
    """The functions cudarc declares for a library (it names them one a line: `fn cuInit(`)."""
    text = (source / "src" / module / "sys" / "mod.rs").read_text()
    pattern = r"^\s*(?:pub )?(?:unsafe )?fn ((?:cu|nvrtc)[A-Z]\w*|cu[a-z]+[A-Z]\w*)\s*\("
    return sorted(set(re.findall(pattern, text, re.M)))


def build(library, names, file, status, out):
    fill = {"LIB": library, "COUNT": str(len(names)), "FILE": file, "STATUS": str(status),
            "NAMES": ", ".join(f'"{n}"' for n in names)}

    def filled(template):
        return re.sub(r"@(LIB|COUNT|FILE|STATUS|NAMES)@", lambda m: fill[m.group(1)], template)

    archive = out / f"lib{library}.a"
    archive.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        finder, entries = pathlib.Path(scratch, "finder.c"), pathlib.Path(scratch, "entries.s")
        finder.write_text(filled(FINDER))
        entries.write_text(filled(ENTRIES) + "".join(f"entry {n} {i}\n" for i, n in enumerate(names)))
        objects = []
        for unit in (finder, entries):
            objects.append(str(unit.with_suffix(".o")))
            subprocess.run(["gcc", "-O2", "-fPIC", "-c", str(unit), "-o", objects[-1]], check=True)
        subprocess.run(["ar", "crs", str(archive), *objects], check=True)


def main():
    source, out = map(pathlib.Path, sys.argv[1:3])
    out.mkdir(parents=True, exist_ok=True)
    for library, (module, file, status) in LIBRARIES.items():
        names = declared(source, module)
        if not names:
            sys.exit(f"{source} declares nothing for {library}: another version of cudarc?")
        build(library, names, file, status, out)
        print(f"lib{library}.a: {len(names)} entry points, real ones from {file}")


if __name__ == "__main__":
    main()
