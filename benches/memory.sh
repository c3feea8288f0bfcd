#!/bin/sh
# A context of 128k tokens under a limit on memory that a dense cache exceeds: it says what it lacks, the tiered one decodes.
# usage: benches/memory.sh MODEL [LENGTH] [MEGABYTES]
#   MODEL      a folder with a profile beside it, or `nano`
#   LENGTH     tokens in the cache, filled with noise (128k)
#   MEGABYTES  the limit on data (200)
# FASA=target/release/fasa names the program, FASA_CACHE_DIR the folder for the file.
set -eu
model=$1 length=${2:-128k} limit=${3:-200}
fasa=${FASA:-target/release/fasa}
measure() { "$fasa" bench memory --model "$model" --lengths "$length" --steps "${STEPS:-16}" --threads 2 --what "$1"; }

echo "without a limit"
for what in dense fasa-c fasa-m; do measure "$what" | tail -n 1; done
ulimit -d $((limit * 1024))
echo "with $limit MB of data"
if measure dense; then
    echo "the dense cache fits: choose a lower limit" >&2
    exit 1
fi
measure fasa-m | tail -n 1
