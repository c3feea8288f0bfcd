#!/usr/bin/env bash
# Runs the program on an emulated Cortex-M4 and on this machine, and fails unless both print the same.
# Needs qemu-system-arm; installs it where apt-get and the rights to use it are at hand, and skips the run elsewhere.
set -euo pipefail
cd "$(dirname "$0")"
target=thumbv7em-none-eabi

if ! command -v qemu-system-arm >/dev/null && command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
  echo "installing qemu-system-arm"
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends qemu-system-arm; } \
    >/dev/null 2>&1 || echo "it could not be installed"
fi
if command -v rustup >/dev/null; then
  rustup target list --installed | grep -qx "$target" || rustup target add "$target"
fi
cargo build --quiet --release
cargo build --quiet --release --target "$target"
if ! command -v qemu-system-arm >/dev/null; then
  echo "skipped: the program builds for $target, but there is no qemu-system-arm to run it (Debian: apt-get install qemu-system-arm)"
  exit 0
fi

here=$(cargo run --quiet --release)
there=$(timeout 120 cargo run --quiet --release --target "$target" </dev/null) || {
  echo "the run on the board failed:"$'\n'"$there"
  exit 1
}
if [ "$here" != "$there" ]; then
  echo "the board (>) prints something else than this machine (<):"
  diff <(echo "$here") <(echo "$there") || true
  exit 1
fi
echo "$there"
echo "the board and this machine agree"
