//! End-to-end tests: the `lamina` program driven as a user drives it, on real input.
//!
//! Most of them mount, so they want root; each says on standard error when it was skipped for the
//! lack of it. `LAMINA_TEST_DIR` names the directory to work in (default: the system's temporary
//! directory); it must be on a filesystem with extended attributes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod archives;
mod bad_input;
mod behaviour;
mod build_file;
mod builds;
mod command_line;
mod commit;
mod conformance;
mod copyup_first;
mod crash;
mod data;
mod diff;
mod differential;
mod faults;
mod fsck;
mod gc;
mod hostile;
mod images;
mod interchange;
mod many_layers;
mod metacopy;
mod mounts;
mod operating;
mod ordinary_user;
mod overlay;
mod passthrough;
mod real_image;
mod registry;
mod requests;
mod stress;
mod support;
