//! What to say when the kernel refuses.

/// What to do when it is for want of rights.
pub(crate) const RIGHTS: &str = "the daemon needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON; run it as root or by its systemd unit";

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(c) = cause {
        text = format!("{text}: {c}");
        cause = c.source();
    }
    text
}
