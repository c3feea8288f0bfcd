#!/usr/bin/env bash
# What a user would pick instead: llama.cpp and candle beside fasa, same checkpoint, same machine, same threads.
#   benches/peers/run.sh MODEL_FOLDER [LENGTH...]
# Environment: THREADS, REPEATS, STEPS (timed decode steps), JOBS (of the compilers), PEERS_DIR (builds and results),
# FASA (a built binary), PREPARE=1 (build and check, measure nothing).
set -euo pipefail

[ $# -ge 1 ] || { sed -n '2,5s/^# //p' "$0"; exit 2; }
model=$(realpath "$1")
shift
mapfile -t lengths < <(printf '%s\n' "${@:-2048 8192 16384}" | tr ' ,' '\n\n' | sort -n)
cd "$(dirname "$0")/../.."
here=benches/peers
work=${PEERS_DIR:-target/peers}
export THREADS=${THREADS:-$(nproc)} REPEATS=${REPEATS:-3} STEPS=${STEPS:-32} JOBS=${JOBS:-$(nproc)}
export RAYON_NUM_THREADS=$THREADS PYTHONDONTWRITEBYTECODE=1
results=$work/results/$(basename "$model")
gguf=$work/$(basename "$model").f16.gguf
python=$work/venv/bin/python
candle=$work/candle/release/peers-candle
llama_version=0.3.36

step() { printf '\n== %s\n' "$*" >&2; }

step "llama.cpp"
if ! "$python" -c "import gguf, llama_cpp; assert llama_cpp.__version__ == '$llama_version'" 2>/dev/null; then
  python3 -m venv "$work/venv"
  # No cached wheel: pip would take one that was built with other flags. No multimodal library, no tools: not used.
  CMAKE_BUILD_PARALLEL_LEVEL=$JOBS CMAKE_ARGS="-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF" \
    nice -n 19 "$work/venv/bin/pip" install --quiet --no-cache-dir --no-binary llama-cpp-python \
    "llama-cpp-python==$llama_version" "gguf==0.19.0"
fi
newest=$(ls -t "$model"/*.json "$model"/model*.safetensors "$here/convert.py" | head -1)
if [ ! "$gguf" -nt "$newest" ]; then
  "$python" "$here/convert.py" "$model" "$gguf.part"
  mv "$gguf.part" "$gguf"
fi

step "candle"
RUSTFLAGS="-C target-cpu=native" nice -n 19 cargo build --quiet --release --locked --jobs "$JOBS" \
  --manifest-path "$here/candle/Cargo.toml" --target-dir "$work/candle"

step "fasa"
if [ -z "${FASA:-}" ]; then
  nice -n 19 cargo build --quiet --release --jobs "$JOBS" --package fasa-cli
  FASA=${CARGO_TARGET_DIR:-target}/release/fasa
fi

# A converted model that computes something else ends the run; a model that candle does not know leaves it out.
candle_runs=true
step "check against the logits of transformers"
if [ -e "$model/expected.safetensors" ]; then
  "$python" "$here/llamacpp.py" check "$gguf" "$model/expected.safetensors"
  "$candle" check "$model" || { candle_runs=false; echo "candle is left out" >&2; }
else
  echo "NOT CHECKED: no expected.safetensors in $model" >&2
fi
[ -z "${PREPARE:-}" ] || exit 0

# How busy others keep the cores, in percent. The load average would still show our own builds.
jiffies() { awk '/^cpu / { print $2 + $3 + $4 + $7 + $8, $5 + $6 }' /proc/stat; }
read -r busy idle < <(jiffies)
sleep 5
busy=$(jiffies | awk -v b="$busy" -v i="$idle" '{ b = $1 - b; i = $2 - i; printf "%.0f", 100 * b / (b + i) }')

step "measure, $THREADS threads, cores $busy % busy before"
# llama.cpp's threads spin for each other: one that loses its core holds up all, and its rates fall tenfold.
[ "$busy" -le 5 ] || echo "THE MACHINE IS NOT IDLE: these rates compare nothing" >&2
rm -rf "$results"
mkdir -p "$results"
commas=$(IFS=,; echo "${lengths[*]}")
"$python" "$here/llamacpp.py" measure "$gguf" "${lengths[@]}" >"$results/llama.cpp.jsonl"
if $candle_runs; then
  "$candle" measure "$model" "${lengths[@]}" >"$results/candle.jsonl" || echo "candle failed" >&2
fi
for what in decode prefill; do
  "$FASA" bench "$what" --model "$model" --lengths "$commas" --dtype f16 --threads "$THREADS" --format json \
    >"$results/fasa-$what.json" || echo "fasa bench $what failed" >&2
done

{
  echo "$(basename "$model"), f16 weights and cache (candle: as said), $THREADS threads, cores $busy % busy before, $(sed -n 's/^model name\s*: //p' /proc/cpuinfo | head -1)"
  echo "llama-cpp-python $llama_version, candle $(sed -n '/name = "candle-transformers"/{n;s/.*"\(.*\)"/\1/p}' "$here/candle/Cargo.lock"), $("$FASA" --version)"
  "$python" "$here/table.py" "$results"
} | tee "$results/table.md"
