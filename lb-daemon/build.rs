//! Embeds the BPF programs of the appliance: `xdp.o`, `tc.o`, `sock.o` in `OUT_DIR`.

fn main() {
    lb_ebpf_build::main(&["xdp", "tc", "sock"]);
}
