//! Kubernetes objects to the desired state.
#![forbid(unsafe_code)]
