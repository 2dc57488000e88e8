//! The program under test: how the tests call it, and its mounts.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use super::sandbox::{Sandbox, detach, mounted_type};
use super::{describe, output};

/// The user id that tests of an ordinary user take (Debian's nobody).
pub const NOBODY: u32 = 65534;

/// `lamina` with a store of its own, called as one user.
#[derive(Clone)]
pub struct Lamina {
    program: PathBuf,
    store: PathBuf,
    user: Option<u32>,
    wrapper: Vec<&'static str>,
}

impl Lamina {
    /// Called as whoever runs the tests, with its store in `sandbox`.
    pub fn new(sandbox: &Sandbox) -> Self {
        Self {
            program: env!("CARGO_BIN_EXE_lamina").into(),
            store: sandbox.join("store"),
            user: None,
            wrapper: Vec::new(),
        }
    }

    /// Called as `uid`, an ordinary user; wants root to become it. The user gets a copy of the
    /// program, as the build directory may be closed to others.
    pub fn as_user(sandbox: &Sandbox, uid: u32) -> Self {
        let bin = sandbox.dir(format!("bin-{uid}"));
        let program = bin.join("lamina");
        fs::copy(env!("CARGO_BIN_EXE_lamina"), &program).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let home = sandbox.dir(format!("home-{uid}"));
        std::os::unix::fs::chown(&home, Some(uid), Some(uid)).unwrap();
        Self {
            program,
            store: home.join("store"),
            user: Some(uid),
            wrapper: Vec::new(),
        }
    }

    /// The same program and user with another store.
    pub fn with_store(&self, store: &Path) -> Self {
        Self {
            store: store.to_owned(),
            ..self.clone()
        }
    }

    /// The same, started by a program such as prlimit, given with its options.
    pub fn under(&self, wrapper: &[&'static str]) -> Self {
        Self {
            wrapper: wrapper.to_vec(),
            ..self.clone()
        }
    }

    /// Where its store is.
    pub fn store(&self) -> &Path {
        &self.store
    }

    /// A call of it with `arguments`, not yet started.
    pub fn command<I, S>(&self, arguments: I) -> Command
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let mut command = match self.wrapper.as_slice() {
            [] => Command::new(&self.program),
            [wrapper, options @ ..] => {
                let mut command = Command::new(wrapper);
                command.args(options).arg(&self.program);
                command
            }
        };
        command
            .args(arguments)
            .env("LAMINA_STORE", &self.store)
            .env_remove("RUST_LOG");
        if let Some(uid) = self.user {
            command.uid(uid).gid(uid);
        }
        command
    }

    /// Runs it, however it ends.
    pub fn output<I, S>(&self, arguments: I) -> Output
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        output(&mut self.command(arguments))
    }

    /// Runs it, demands success and returns its standard output.
    pub fn ok<I, S>(&self, arguments: I) -> String
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        super::run(&mut self.command(arguments))
    }

    /// Runs it, demands that it fails with `status` and a message, and returns the message.
    ///
    /// A crash, a backtrace or a bare error number is no message.
    pub fn fails<I, S>(&self, status: i32, arguments: I) -> String
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let mut command = self.command(arguments);
        let result = output(&mut command);
        let said = describe(&result);
        assert_eq!(
            result.status.code(),
            Some(status),
            "{command:?} should have failed\n{said}"
        );
        let message = String::from_utf8_lossy(&result.stderr).into_owned();
        assert!(
            !message.trim().is_empty(),
            "{command:?} failed without a word\n{said}"
        );
        assert!(
            !message.contains("panicked"),
            "{command:?} panicked\n{said}"
        );
        message
    }

    /// Builds an image of `layers`, bottom first.
    pub fn build(&self, name: &str, layers: &[PathBuf]) -> String {
        let mut arguments = vec![
            OsStr::new("layer"),
            OsStr::new("build"),
            OsStr::new("-t"),
            OsStr::new(name),
        ];
        arguments.extend(layers.iter().map(|path| path.as_os_str()));
        self.ok(arguments)
    }

    /// Mounts at `target`, which is made if it is not there; the mount is live on return.
    pub fn mount<S: AsRef<OsStr>>(&self, options: &[S], target: &Path) -> Mount {
        if !target.exists() {
            fs::create_dir(target).unwrap();
            if let Some(uid) = self.user {
                std::os::unix::fs::chown(target, Some(uid), Some(uid)).unwrap();
            }
        }
        let mut arguments = vec![OsStr::new("mount")];
        arguments.extend(options.iter().map(AsRef::as_ref));
        arguments.push(target.as_os_str());
        self.ok(arguments);
        let mount = Mount {
            lamina: self.clone(),
            target: target.to_owned(),
            live: true,
        };
        let kind = mounted_type(target);
        assert!(
            kind.as_deref().is_some_and(|kind| kind.starts_with("fuse")),
            "lamina mount returned success, and {} is {kind:?}",
            target.display()
        );
        mount
    }
}

/// A live mount, unmounted when dropped.
pub struct Mount {
    lamina: Lamina,
    target: PathBuf,
    live: bool,
}

impl Mount {
    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.target
    }

    /// Unmounts it as a user does and waits until its daemon is gone: `lamina ps` must forget it.
    pub fn unmount(mut self) {
        let arguments = [OsStr::new("umount"), self.target.as_os_str()];
        // Others may look at all mounts, or fork with a file open, for a moment.
        let mut last = self.lamina.output(arguments);
        let deadline = Instant::now() + Duration::from_secs(10);
        while !last.status.success()
            && String::from_utf8_lossy(&last.stderr).contains("is in use")
            && Instant::now() < deadline
        {
            std::thread::sleep(Duration::from_millis(50));
            last = self.lamina.output(arguments);
        }
        assert!(last.status.success(), "{}", describe(&last));
        self.live = false;
        assert_eq!(
            mounted_type(&self.target),
            None,
            "still mounted after lamina umount"
        );
        let path = self.target.to_string_lossy().into_owned();
        wait_until("the daemon to end", || {
            !self.lamina.ok(["ps"]).contains(&path)
        });
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.live && mounted_type(&self.target).is_some() {
            detach(&self.target);
        }
    }
}

/// Waits for something that takes a moment. Half a minute is not a speed limit but "never".
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < deadline, "waited for {what} in vain");
        std::thread::sleep(Duration::from_millis(10));
    }
}
