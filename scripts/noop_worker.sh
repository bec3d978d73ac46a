#!/bin/sh
# A worker that builds nothing, for measuring and shaking the line itself: it writes a result without files and ends. With
# RUNS set to a file, it adds a line there for every run.
while [ $# -gt 1 ]; do
    case $1 in
        --part) part=$2 ;;
        --work) work=$2 ;;
        --attempt) attempt=$2 ;;
    esac
    shift 2
done
if [ -n "${RUNS:-}" ]; then
    echo "${part##*/} $attempt" >> "$RUNS"
fi
printf '{"attempt_token": "%s", "modelHash": "", "fileHashes": [], "forged_dir": "%s"}\n' "$attempt" "$work" > "$work/result.json"
