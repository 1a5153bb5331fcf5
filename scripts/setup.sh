#!/usr/bin/env bash
# Installs what this repository needs and this machine lacks. Says what and why before it does, does
# nothing (in well under a second) when nothing is missing, and uses sudo when it is not root.
#
#   setup.sh build    compilers, BPF linker
#   setup.sh test     the same and what the namespace lab uses
#   setup.sh kernel   the same as build and an emulator
#   setup.sh lint     the same as build and the linters
set -euo pipefail

want=${1:-build}
case $want in
build | test | kernel | lint) ;;
*)
    echo "usage: $0 build|test|kernel|lint" >&2
    exit 2
    ;;
esac

readonly BPF_LINKER_VERSION=0.13.0
readonly BPF_TARGET=bpfel-unknown-none
export PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"

say() { echo "setup: $*"; }
fail() {
    echo "setup: $*" >&2
    exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif have sudo; then
        sudo "$@"
    else
        fail "not root and no sudo; as root, run: $*"
    fi
}

installed() { [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

updated=
# install WHY PACKAGE...: those of the packages that are missing. Removes nothing that is installed.
install() {
    local why=$1 package missing=()
    shift
    for package; do
        installed "$package" || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    have apt-get || fail "missing: ${missing[*]} ($why). This is not a Debian: install what corresponds to these packages."
    say "installing ${missing[*]} with apt-get: $why"
    if [ -z "$updated" ]; then
        as_root apt-get -q update >/dev/null || fail "apt-get update failed"
        updated=yes
    fi
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -qq -y --no-install-recommends --no-remove -o Dpkg::Use-Pty=0 \
        "${missing[@]}" >/dev/null ||
        fail "apt-get could not install ${missing[*]}; its messages stand above"
}

# Whether a nightly of rustup's can make BPF programs; then Debian's compiler is not needed.
nightly_is_enough() {
    have bpf-linker && have rustup || return 1
    local rustc
    rustc=$(rustup which --toolchain nightly rustc 2>/dev/null) || return 1
    [ -d "$("$rustc" --print sysroot)/lib/rustlib/src/rust/library/core" ]
}

debian_has_core() {
    [ -x /usr/bin/rustc ] &&
        [ -d "$(/usr/bin/rustc --print sysroot)/lib/rustlib/$BPF_TARGET/lib" ]
}

# The LLVM that a bpf-linker is linked with; empty when it is none that comes as a package.
linker_llvm() {
    have bpf-linker || return 0
    ldd "$(command -v bpf-linker)" | sed -n 's/.*libLLVM[-.a-z]*\([0-9][0-9]*\).*=>.*/\1/p' | head -n 1
}

compilers() {
    have cargo || fail "cargo is missing. Install rustup (https://rustup.rs) and run this again."
    have cc || install "the linker and libc of host programs" gcc libc6-dev
    if ! debian_has_core; then
        if nightly_is_enough; then
            return 0
        fi
        install "a Rust compiler with core for the BPF target" rustc-web libstd-rust-web-dev-bpf
        debian_has_core || fail "/usr/bin/rustc is not rustc-web's: remove the package that owns it"
    fi

    # bpf-linker reads that compiler's bitcode, so both have one LLVM.
    local llvm
    llvm=$(/usr/bin/rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
    [ "$(linker_llvm)" != "$llvm" ] || return 0
    install "bpf-linker is built with the LLVM of /usr/bin/rustc" "llvm-$llvm-dev" g++ zlib1g-dev libzstd-dev
    say "building bpf-linker $BPF_LINKER_VERSION with LLVM $llvm: it links BPF programs (about a minute)"
    env -u CARGO_TARGET_DIR LLVM_PREFIX="/usr/lib/llvm-$llvm" \
        cargo install bpf-linker --quiet --force --locked --version "$BPF_LINKER_VERSION" \
        --no-default-features --features "llvm-$llvm" ||
        fail "bpf-linker could not be built; cargo's messages stand above"
}

# component PROGRAM NAME: a component of rustup's default toolchain.
component() {
    cargo "$1" --version >/dev/null 2>&1 && return 0
    have rustup || fail "cargo $1 is missing, and there is no rustup to add it with"
    say "adding $2 with rustup: make lint"
    rustup component add "$2" >/dev/null
}

compilers
case $want in
test)
    install "real HTTP servers, captures and switches of the namespace lab" \
        nginx-light iproute2 ethtool tcpdump bpftool
    install "what bans through us, under test" fail2ban
    ;;
kernel)
    install "another kernel, in an emulated machine" qemu-system-x86 busybox-static cpio
    ;;
lint)
    component fmt rustfmt
    component clippy clippy
    if debian_has_core; then
        install "the linter of the BPF programs, of the same compiler" rust-web-clippy
    fi
    ;;
esac
