#!/bin/sh
# Stands in for rustc while the fuzz targets are built: our own crates are compiled with coverage counters, which any
# stable compiler can do; what they depend on is left as it is.
rustc=$1
shift
name=
previous=
for argument; do
    [ "$previous" = --crate-name ] && name=$argument
    previous=$argument
done
case $name in
factoryline | hostile | recipe | plan | safetensors | gguf | config | events)
    # `safetensors` is also the name of a dependency.
    case "$*" in */registry/*) exec "$rustc" "$@" ;; esac
    exec "$rustc" "$@" --cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
        -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1
    ;;
*) exec "$rustc" "$@" ;;
esac
