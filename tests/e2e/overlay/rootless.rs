//! podman and buildah of an ordinary user, with our mount program and with fuse-overlayfs.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;
use std::process::Command;

use super::comparable;
use crate::build_file::base::base_layer;
use crate::support::device::OpenDevice;
use crate::support::lamina::{NOBODY, wait_until};
use crate::support::sandbox::Sandbox;
use crate::support::{describe, needs_root, output, run};

/// A new mount namespace in which nobody has ids, and a process there that is his. crun is confused by a
/// hierarchy of cgroups v2 beside those of v1.
const ENTER: &str = "umount /sys/fs/cgroup/unified 2> /dev/null || true
    mount --bind \"$RANGES\" /etc/subuid && mount --bind \"$RANGES\" /etc/subgid
    exec setpriv --reuid 65534 --regid 65534 --clear-groups sh -eu \"$@\"";

/// What the script says with a mount program.
fn say(sandbox: &Sandbox, name: &str, program: &Path) -> String {
    let home = sandbox.dir(format!("home-{name}"));
    let runtime = tempfile::Builder::new()
        .prefix("lr")
        .tempdir_in("/tmp")
        .unwrap();
    for dir in [&home, &runtime.path().to_owned()] {
        chown(dir, Some(NOBODY), Some(NOBODY)).unwrap();
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).unwrap();
    }
    let ranges = sandbox.file("ranges", "nobody:100000:65536\n");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/overlay/rootless.sh");
    let script = sandbox.file("rootless.sh", fs::read(script).unwrap());
    let mut command = Command::new("unshare");
    command
        .args(["-m", "sh", "-ec", ENTER, "sh"])
        .arg(script)
        .args([&home, runtime.path(), program]);
    command.arg(sandbox.join("base.tar")).env("RANGES", ranges);
    let said = output(&mut command);
    assert!(said.status.success(), "{name}: {}", describe(&said));
    // What has the ids of his ranges is not his to remove by himself.
    fs::remove_dir_all(&home).unwrap();
    let place = home.display().to_string();
    wait_until("the end of all daemons", || {
        !run(Command::new("ps").args(["-eo", "args"])).contains(&place)
    });
    String::from_utf8(said.stdout).unwrap()
}

#[test]
fn an_ordinary_users_podman_does_the_same() {
    needs_root!();
    let _device = OpenDevice::new();
    let sandbox = Sandbox::new("overlay-rootless");
    base_layer(&sandbox);
    fs::set_permissions(sandbox.join("base.tar"), fs::Permissions::from_mode(0o644)).unwrap();
    let ours = sandbox.dir("bin").join("lamina-overlay");
    fs::copy(env!("CARGO_BIN_EXE_lamina"), &ours).unwrap();
    let ours = say(&sandbox, "ours", &ours);
    let theirs = say(&sandbox, "theirs", Path::new("/usr/bin/fuse-overlayfs"));
    assert_eq!(comparable(&ours), comparable(&theirs), "ours, then theirs");
}
