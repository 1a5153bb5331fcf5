#!/usr/bin/env bash
# Runs golden tests on another kernel: Debian's 6.1, the oldest that is supported, in an emulated machine.
#
#   kernel-test.sh [TEST...]    names, or parts of names; without any: that every program loads, and that some work
#
# The kernel's package is downloaded and unpacked, not installed. Needs no root; ends with the tests' own status.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly META=linux-image-cloud-amd64
[ $# -gt 0 ] || set -- the_verifier ipip_in_every blocked_sources
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

say() { echo "kernel-test: $*"; }
fail() {
    echo "kernel-test: $*" >&2
    exit 1
}

kernel=${LB_TEST_KERNEL:-}
if [ -z "$kernel" ]; then
    package=$(apt-cache depends "$META" | sed -n 's/.*Depends: \(linux-image-[^ ]*\)/\1/p' | head -1)
    [ -n "$package" ] || fail "no package $META: is this Debian 12? Else name a kernel's image in LB_TEST_KERNEL"
    say "downloading $package"
    (cd "$dir" && apt-get -qq download "$package" 2>/dev/null && dpkg -x "$package"_*.deb kernel) ||
        fail "$package cannot be downloaded; try apt-get update"
    kernel=$(echo "$dir"/kernel/boot/vmlinuz-*)
fi

say "building the tests"
# shellcheck disable=SC2086 # words: which crates
golden=$(cargo test -q ${LB_CRATES:--p lb-tests} --test golden --no-run --message-format json |
    sed -n 's/.*"executable":"\([^"]*\/golden-[^"]*\)".*/\1/p' | tail -1)
[ -x "$golden" ] || fail "no test binary"

root=$dir/root
mkdir -p "$root"/{bin,proc,sys,dev,run,tmp}
cp "$(command -v busybox)" "$root/bin/busybox"
cp "$golden" "$root/bin/golden"
for library in $(ldd "$golden" | grep -o '/[^ ]*'); do
    mkdir -p "$root/$(dirname "$library")"
    cp -L "$library" "$root/$library"
done
cat >"$root/init" <<EOF
#!/bin/busybox sh
b=/bin/busybox
\$b mount -t proc p /proc; \$b mount -t sysfs s /sys; \$b mount -t bpf b /sys/fs/bpf
\$b mount -t devtmpfs d /dev; \$b mount -t tmpfs t /run; \$b mount -t tmpfs t /tmp
\$b ip link set lo up
cd /tmp
/bin/golden --test-threads 1 $* 2>&1
echo "status \$?"
\$b poweroff -f
EOF
chmod +x "$root/init"
(cd "$root" && find . | cpio -o -H newc --quiet | gzip -1) >"$dir/initrd"

say "booting $(basename "$kernel"), emulated: a test takes many times as long as on this machine"
# Two CPUs: with one, the mask of their numbers is 0, and much is a constant to the verifier that is none elsewhere.
qemu-system-x86_64 -accel tcg -smp 2 -cpu max -m 3000 -nographic -no-reboot -kernel "$kernel" -initrd "$dir/initrd" \
    -append "console=ttyS0 quiet panic=-1" </dev/null | sed -u 's/\r$//' | tee "$dir/log" |
    grep --line-buffered -E '^(test |error|thread|assert|  left|  right|---- |the program loads)'
status=$(sed -n 's/^status //p' "$dir/log")
[ "$status" = 0 ] || fail "the tests ended with ${status:-nothing: the machine did not end by itself}"
