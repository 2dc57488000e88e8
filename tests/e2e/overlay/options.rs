//! How the program is called, and what it says.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::process::Command;

use super::layers;
use crate::support::lamina::wait_until;
use crate::support::overlayfs::Layers;
use crate::support::program::Program;
use crate::support::sandbox::{Sandbox, mounted_type};
use crate::support::{describe, needs_root, output, run};

struct Setting {
    sandbox: Sandbox,
    layers: Layers,
    program: Program,
}

impl Setting {
    fn new(name: &str) -> Self {
        let sandbox = Sandbox::new(name);
        sandbox.file("lower/dir/file", "below");
        let layers = layers(&sandbox, "layers", vec![sandbox.join("lower")]);
        Self {
            program: Program::lamina(&sandbox, "lamina-overlay"),
            sandbox,
            layers,
        }
    }
}

#[test]
fn it_goes_by_several_names() {
    needs_root!();
    let setting = Setting::new("overlay-names");
    let target = setting.sandbox.join("mnt");
    for (name, kind) in [
        ("lamina-overlay", "fuse.lamina"),
        ("fuse-overlayfs", "fuse.fuse-overlayfs"),
    ] {
        let program = Program::lamina(&setting.sandbox, name);
        let said = run(program.command().arg("--version"));
        assert!(said.starts_with(&format!("{name}: version ")), "{said}");
        assert_eq!(run(program.command().arg("-V")), said);
        let help = run(program.command().arg("--help"));
        assert!(help.contains(&format!("Usage: {name}")) && help.contains("uidmapping="));
        let mount = program.mount(&setting.layers, "", &target);
        assert_eq!(mounted_type(&target).as_deref(), Some(kind));
        assert_eq!(fs::read(target.join("dir/file")).unwrap(), b"below");
        mount.unmount();
    }
    // As mount(8) calls its helpers.
    let helper = Program::lamina(&setting.sandbox, "mount.fuse.lamina");
    let options = setting.layers.overlayfs_options("rw,nofail,_netdev");
    let mut command = helper.command();
    command
        .arg("the-source")
        .arg(&target)
        .args(["-o", &options, "-t", "fuse.lamina"]);
    run(&mut command);
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(mounts.contains(&format!("the-source {} fuse.lamina ", target.display())));
    run(Command::new("umount").arg(&target));
    // As mount.fuse3 calls a program; and of this command.
    let plain = env!("CARGO_BIN_EXE_lamina");
    let mut command = Command::new(plain);
    command.args(["overlay", "the-source"]).arg(&target);
    command.args(["-o", &options, "-o", "dev,suid,fsname=other"]);
    run(&mut command);
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(mounts.contains(&format!("other {} fuse.lamina ", target.display())));
    run(Command::new("umount").arg(&target));
}

#[test]
fn what_is_wrong_is_named() {
    needs_root!();
    let setting = Setting::new("overlay-errors");
    let target = setting.sandbox.join("mnt");
    let lower = setting.sandbox.join("lower").display().to_string();
    let right = format!("lowerdir={lower}");
    for (options, status, words) in [
        ("ro".to_owned(), 2, "'lowerdir=' is missing"),
        (
            format!("{right},upperdir=/tmp"),
            2,
            "'upperdir=' needs 'workdir='",
        ),
        (format!("{right},uidmapping=1:2"), 2, "'uidmapping': '1:2'"),
        (
            format!("{right},fsync=2"),
            2,
            "'fsync=2' is not possible: give 0 or 1",
        ),
        (
            format!("{right},xattr_permissions=9"),
            2,
            "'xattr_permissions=9'",
        ),
        ("lowerdir=/no/such/dir".to_owned(), 1, "\"/no/such/dir\""),
    ] {
        let said = setting.program.output(&options, &target);
        assert_eq!(
            said.status.code(),
            Some(status),
            "{options}: {}",
            describe(&said)
        );
        let text = String::from_utf8_lossy(&said.stderr);
        assert!(text.contains(words), "{options}: {text}");
        assert_eq!(mounted_type(&target), None);
    }
    // What buildah passes on without meaning us.
    let options = setting.layers.overlayfs_options("private,something=1");
    let said = setting.program.output(&options, &target);
    assert!(said.status.success(), "{}", describe(&said));
    let text = String::from_utf8_lossy(&said.stderr);
    assert!(
        text.contains("'private' is not known") && text.contains("'something=1'"),
        "{text}"
    );
    run(Command::new("umount").arg(&target));
}

#[test]
fn paths_are_relative_and_many_and_have_commas() {
    needs_root!();
    let sandbox = Sandbox::new("overlay-paths");
    let program = Program::lamina(&sandbox, "lamina-overlay");
    let mut names = Vec::new();
    for number in 0..500 {
        sandbox.file(format!("l/{number}/only-{number}"), "x");
        names.push(format!("l/{number}"));
    }
    sandbox.file("odd,name:here/odd", "x");
    names.push("odd\\,name\\:here".into());
    for name in ["upper", "work", "mnt"] {
        sandbox.dir(name);
    }
    let options = format!("lowerdir={},upperdir=upper,workdir=work", names.join(":"));
    let mut command = program.command();
    run(command
        .args(["-o", &options, "mnt"])
        .current_dir(sandbox.path()));
    let target = sandbox.join("mnt");
    assert_eq!(fs::read_dir(&target).unwrap().count(), 501);
    assert!(target.join("odd").exists() && target.join("only-499").exists());
    fs::write(target.join("new"), "x").unwrap();
    run(Command::new("umount").arg(&target));
    assert!(sandbox.join("upper/new").exists());
}

#[test]
fn switches_do_what_they_say() {
    needs_root!();
    let setting = Setting::new("overlay-switches");
    let (program, layers) = (&setting.program, &setting.layers);
    let target = setting.sandbox.join("mnt");
    let file = target.join("dir/file");
    let mount = program.mount(
        layers,
        "static_nlink,noacl,timeout=1.5,xino=auto,threads=1",
        &target,
    );
    assert_eq!(fs::metadata(&target).unwrap().nlink(), 1);
    let said = output(Command::new("setfacl").args(["-m", "u:7:r"]).arg(&file));
    assert!(!said.status.success());
    run(Command::new("setfattr")
        .args(["-n", "user.x", "-v", "1"])
        .arg(&file));
    mount.unmount();
    let mount = program.mount(layers, "", &target);
    assert_eq!(fs::metadata(&target).unwrap().nlink(), 3);
    run(Command::new("setfacl").args(["-m", "u:7:r"]).arg(&file));
    mount.unmount();
    let mount = program.mount(layers, "noxattrs", &target);
    let said = output(
        Command::new("setfattr")
            .args(["-n", "user.x", "-v", "1"])
            .arg(&file),
    );
    assert!(String::from_utf8_lossy(&said.stderr).contains("not supported"));
    mount.unmount();

    // A directory of a lower layer moves only where that is asked for.
    let (old, new) = (target.join("dir"), target.join("moved"));
    let mount = program.mount(layers, "", &target);
    let error = fs::rename(&old, &new).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::CrossesDevices);
    run(Command::new("mv").args([&old, &new]));
    assert_eq!(fs::read(new.join("file")).unwrap(), b"below");
    mount.unmount();
    let again = super::layers(&setting.sandbox, "redirected", layers.lowers.clone());
    let mount = program.mount(&again, "redirect_dir=on", &target);
    fs::rename(&old, &new).unwrap();
    mount.unmount();

    // Read-only without an upper.
    let lower = layers.lowers[0].display();
    let mount = program.mount_options(&format!("lowerdir={lower}:{lower}"), &target);
    let error = fs::write(target.join("new"), "x").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    mount.unmount();
}

#[test]
fn it_stays_in_the_foreground_and_ends_with_status_0() {
    needs_root!();
    let setting = Setting::new("overlay-foreground");
    let target = setting.sandbox.dir("mnt");
    for (flag, detach) in [("-f", false), ("-d", false), ("-f", true)] {
        let mut command = setting.program.command();
        command
            .args([flag, "-o", &setting.layers.overlayfs_options("")])
            .arg(&target);
        let mut child = command.stderr(std::process::Stdio::null()).spawn().unwrap();
        wait_until("the mount", || mounted_type(&target).is_some());
        let mut umount = Command::new("umount");
        run(umount.args(detach.then_some("-l")).arg(&target));
        assert!(child.wait().unwrap().success());
    }
    // A mount at once after the other's end finds the upper free.
    for _ in 0..20 {
        setting
            .program
            .mount(&setting.layers, "fsync=0", &target)
            .unmount();
    }
    // A daemon that was killed leaves an upper that can be used.
    let mount = setting.program.mount(&setting.layers, "volatile", &target);
    fs::write(target.join("written"), "kept").unwrap();
    let record = run(Command::new(env!("CARGO_BIN_EXE_lamina")).args(["ps", "--json"]));
    let all: serde_json::Value = serde_json::from_str(&record).unwrap();
    let ours = all.as_array().unwrap().iter();
    let ours = ours.filter(|one| one["target"] == target.to_str().unwrap());
    let pid = ours
        .map(|one| one["pid"].to_string())
        .next()
        .expect(&record);
    run(Command::new("kill").args(["-9", &pid]));
    wait_until("the end of the daemon", || {
        fs::metadata(target.join("dir")).is_err()
    });
    run(Command::new("umount").arg("-l").arg(&target));
    drop(mount);
    let mount = setting.program.mount(&setting.layers, "volatile", &target);
    assert_eq!(fs::read(target.join("written")).unwrap(), b"kept");
    mount.unmount();
}
