//! `/dev/fuse` as it is on most systems.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

/// Lets everyone open `/dev/fuse` while it lives, as it is on most systems.
pub struct OpenDevice(u32);

impl OpenDevice {
    /// Opens it to all.
    pub fn new() -> Self {
        let mode = fs::metadata("/dev/fuse").unwrap().mode();
        fs::set_permissions("/dev/fuse", fs::Permissions::from_mode(0o666)).unwrap();
        Self(mode)
    }
}

impl Drop for OpenDevice {
    fn drop(&mut self) {
        fs::set_permissions("/dev/fuse", fs::Permissions::from_mode(self.0 & 0o7777)).unwrap();
    }
}
