#!/usr/bin/env bash
# Clippy on the crates given (directories), for the BPF target, with the compiler that builds them.
set -euo pipefail

readonly TARGET=bpfel-unknown-none
export PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"
export CARGO_ENCODED_RUSTFLAGS=

if [ -d "$(/usr/bin/rustc --print sysroot 2>/dev/null)/lib/rustlib/$TARGET/lib" ]; then
    # Debian's clippy-driver in the place where `cargo clippy` would put rustup's.
    export RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1
    export RUSTC_WORKSPACE_WRAPPER=/usr/bin/clippy-driver
    export CLIPPY_ARGS='-Dwarnings__CLIPPY_HACKERY__'
    check=(cargo check)
    deny=()
else
    check=(cargo +nightly clippy -Z build-std=core)
    deny=(-- -Dwarnings)
fi

for crate; do
    crate=${crate//\//-}
    "${check[@]}" --release --all-features --target "$TARGET" --target-dir "${CARGO_TARGET_DIR:-target}/ebpf-lint" \
        -p "lb-$crate" --bin "lb-$crate" "${deny[@]}"
done
