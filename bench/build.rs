//! Embeds the measuring frame: `bench-ebpf.o` in `OUT_DIR`.

fn main() {
    lb_ebpf_build::main(&["bench/ebpf"]);
}
