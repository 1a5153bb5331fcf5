//! What the tests that need root share.

pub mod rig;
