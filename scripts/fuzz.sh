#!/usr/bin/env bash
# Feeds damaged files to every reader of files that others wrote. Builds the targets under fuzz/ with the stable compiler
# and runs each for RUNS inputs, one after the other; says one line for each. An input that crashes a target is kept in
# fuzz/artifacts/TARGET and the script ends with 1.
#
#   scripts/fuzz.sh [RUNS] [TARGET…]        default: 1000000 inputs, all targets
#
# FUZZ_TARGET_DIR names another build folder than fuzz/target; FUZZ_BUILD=0 uses what is built there.
set -euo pipefail
cd "$(dirname "$0")/.."
runs=${1:-1000000}
shift || true
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(recipe plan safetensors gguf config events)
build=${FUZZ_TARGET_DIR:-$PWD/fuzz/target}

if [ "${FUZZ_BUILD:-1}" != 0 ]; then
    RUSTC_WRAPPER=$PWD/fuzz/instrument.sh cargo build --manifest-path fuzz/Cargo.toml --target-dir "$build" \
        $(printf -- '--bin %s ' "${targets[@]}")
fi

# Inputs are written to memory where there is such a folder.
FUZZ_FOLDER=$(mktemp -d -p "$([ -d /dev/shm ] && echo /dev/shm || echo "${TMPDIR:-/tmp}")" factoryline-fuzz.XXXXXX)
export FUZZ_FOLDER
trap 'rm -rf "$FUZZ_FOLDER"' EXIT

failed=0
for target in "${targets[@]}"; do
    corpus=fuzz/corpus/$target artifacts=fuzz/artifacts/$target
    mkdir -p "$corpus" "$artifacts"
    log=$(mktemp)
    before=$(find "$artifacts" -type f | wc -l)
    FUZZ_SEEDS=$corpus "$build/debug/$target" >/dev/null
    start=$(date +%s)
    status=0
    "$build/debug/$target" -runs="$runs" -rss_limit_mb=2048 -malloc_limit_mb=512 -timeout=10 -max_len=16384 \
        -dict="fuzz/dictionaries/$target.dict" -artifact_prefix="$artifacts/" -print_final_stats=1 "$corpus" \
        >"$log" 2>&1 || status=$?
    seconds=$(($(date +%s) - start))
    figure() { awk -v key="stat::$1:" '$1 == key { print $2 }' "$log"; }
    crashes=$(($(find "$artifacts" -type f | wc -l) - before))
    printf '%-12s runs %-9s time %ss  peak rss %s MB  new inputs kept %s  crashes %s\n' "$target" \
        "$(figure number_of_executed_units)" "$seconds" "$(figure peak_rss_mb)" "$(figure new_units_added)" "$crashes"
    if [ "$status" != 0 ] || [ "$crashes" != 0 ]; then
        failed=1
        tail -n 30 "$log"
    fi
    rm -f "$log"
done
exit "$failed"
