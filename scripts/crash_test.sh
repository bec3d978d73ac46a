#!/usr/bin/env bash
# Kills the line at random moments of a whole chain (profile, prune, quant, eval, package) and compares what comes out
# with what comes out of a run that nobody disturbs: the models and all files of the artifact that do not tell when they were
# made, byte by byte.
#
#   scripts/crash_test.sh [N] [SEED]      N rounds (default 100), moments and victims drawn from SEED (default 1)
#
# Each round is one part on a line of its own. Until it is done, the victim is drawn again and again: the worker, the
# supervisor, or the worker's whole process group and the supervisor at once, always with SIGKILL; then a new supervisor
# goes on with what lies there. BIN names the folder of the binaries (default target/release, built when missing), KILLS how
# many kills a round gets at most (default 3). Ends with 0 when all rounds gave the same bytes.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
rounds=${1:-100} seed=${2:-1} kills=${KILLS:-3}
bin=${BIN:-$here/../target/release}
demo=$here/../recipes/demo
if [[ ! -x $bin/factoryd ]]; then
    cargo build --release --bins --manifest-path "$here/../Cargo.toml"
fi
RANDOM=$seed
work=$(mktemp -d "${TMPDIR:-/tmp}/crash-test.XXXXXX")
trap 'rm -rf "$work"' EXIT

new_line() { # DIR
    "$bin/foreman" init --root "$1" > /dev/null 2>&1
    cat > "$1/factory_node.toml" <<'TOML'
[storage.hot]
min_free_gb = 0
[forge]
max_retries = 100
retry_backoff_seconds = 0
rescan_seconds = 0.2
savepoint_seconds = 0
[grid]
heartbeat_interval_seconds = 0.1
TOML
    cat > "$1/line/intake/x.alloy.json" <<JSON
{"name": "tiny", "version": "1.0.0",
 "source": {"baseModel": "$demo/model", "architecture": "qwen3_moe", "isMoE": true},
 "stages": [
  {"type": "expert-activation-profile", "calibrationCorpus": "$demo/calibration.jsonl", "maxLength": 256},
  {"type": "expert-prune", "keepExpertsPerLayer": 6, "routerKd": true, "heldOut": "$demo/heldout.txt",
   "heldOutTokens": 1024},
  {"type": "quant", "format": "gguf", "quantTypes": ["Q4_0", "Q8_0"], "algorithm": "gptq",
   "calibrationCorpus": "$demo/calibration.jsonl", "calibrationTokens": 2048, "calibrationLength": 128},
  {"type": "eval", "benchmarks": [
   {"name": "perplexity", "data": "$demo/heldout.txt", "context": 128, "convention": "windowed", "maxTokens": 2048},
   {"name": "divergence", "data": "$demo/heldout.txt", "context": 128, "convention": "windowed", "maxTokens": 2048}]},
  {"type": "package", "format": "gguf"}]}
JSON
}

fingerprint() { # DIR: hashes of all files that ship, but those that tell when they were made, or hash one that does
    (cd "$1/work/x/artifact" && find . -type f ! -name '*.alloy.json' ! -name '*.md' ! -name '*.metadata.v1.json' \
        ! -name manifest.json -print0 | sort -z | xargs -0 sha256sum)
}

supervise() { # DIR: in a process group of its own
    setsid "$bin/factoryd" --root "$1" --drain > /dev/null 2>> "$1/factoryd.log" &
    supervisor=$!
}

beat() { # DIR KEY: a number from the heartbeat, empty when it is not there
    grep -o "\"$2\": [0-9]*" "$1/line/.heartbeat.json" 2> /dev/null | grep -o '[0-9]*$' || true
}

pause() { # MILLISECONDS
    sleep "$(printf '%d.%03d' $(($1 / 1000)) $(($1 % 1000)))"
}

now() { date +%s%3N; }

new_line "$work/whole"
began=$(now)
supervise "$work/whole"
wait "$supervisor" || { cat "$work/whole/factoryd.log"; exit 1; }
length=$(($(now) - began))
fingerprint "$work/whole" > "$work/wanted"
printf 'uninterrupted: %d ms, %d files\n' "$length" "$(wc -l < "$work/wanted")"

same=0 hits=0 resumed=0
for round in $(seq "$rounds"); do
    line=$work/round
    rm -rf "$line"
    new_line "$line"
    supervise "$line"
    story=''
    for _ in $(seq "$kills"); do
        pause $((RANDOM % (length + 1)))
        if ! kill -0 "$supervisor" 2> /dev/null; then break; fi
        worker=$(beat "$line" worker_pid)
        case $((RANDOM % 3)) in
            0) victim=worker; if [[ $worker ]]; then kill -9 "$worker" 2> /dev/null || true; fi ;;
            1) victim=supervisor; kill -9 "$supervisor" 2> /dev/null || true ;;
            2) victim=both; kill -9 "$supervisor" 2> /dev/null || true
                if [[ $worker ]]; then kill -9 -- "-$worker" 2> /dev/null || true; fi ;;
        esac
        story="$story $victim"
        hits=$((hits + 1))
        if [[ $victim != worker ]]; then
            wait "$supervisor" 2> /dev/null || true
            supervise "$line"
        fi
    done
    wait "$supervisor" || { echo "round $round:$story: the supervisor failed"; cat "$line/factoryd.log"; exit 1; }
    if ls "$line"/line/finished/*.result.json > /dev/null 2>&1 && fingerprint "$line" | cmp -s - "$work/wanted"; then
        same=$((same + 1))
    else
        echo "round $round:$story: DIFFERENT"
        find "$line/line" -name 'x*' | sort
        fingerprint "$line" | diff - "$work/wanted" || true
    fi
    resumed=$((resumed + $(grep -c 'went on from a savepoint' "$line/line/.events.jsonl" || true)))
done
printf '%d of %d rounds gave the same bytes (%d kills, %d passes went on from a savepoint, seed %d)\n' \
    "$same" "$rounds" "$hits" "$resumed" "$seed"
[[ $same -eq $rounds ]]
