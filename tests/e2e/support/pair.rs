//! A Lamina mount and a plain directory with the same tree: what the second does is right.

use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{Gid, Uid};

use super::lamina::{Lamina, Mount};
use super::run;
use super::sandbox::Sandbox;

/// The two, in a sandbox of their own. The tree starts in the lower of the mount.
pub struct Pair {
    /// Where both are; other files of the test too.
    pub sandbox: Sandbox,
    native: PathBuf,
    lower: PathBuf,
    io: &'static str,
    mount: Option<Mount>,
}

impl Pair {
    /// Calls `fill` for the plain directory and for the lower directory; `io` is a mode of `--io`.
    pub fn new(name: &str, io: &'static str, fill: impl Fn(&Path)) -> Self {
        let sandbox = Sandbox::new(name);
        let (native, lower) = (sandbox.dir("native"), sandbox.dir("lower"));
        fill(&native);
        fill(&lower);
        sandbox.dir("upper");
        sandbox.dir("work");
        for like_lower in ["native", "upper"] {
            let mut touch = Command::new("touch");
            run(touch.arg("-r").arg(&lower).arg(sandbox.join(like_lower)));
        }
        let mut pair = Self {
            sandbox,
            native,
            lower,
            io,
            mount: None,
        };
        pair.remount();
        pair
    }

    /// Mounts (again), over the same lower and upper.
    pub fn remount(&mut self) {
        if let Some(mount) = self.mount.take() {
            mount.unmount();
        }
        let (upper, work) = (self.sandbox.join("upper"), self.sandbox.join("work"));
        let options = [
            Path::new("--io"),
            Path::new(self.io),
            Path::new("--lower"),
            &self.lower,
            Path::new("--upper"),
            &upper,
            Path::new("--work"),
            &work,
        ];
        let lamina = Lamina::new(&self.sandbox);
        self.mount = Some(lamina.mount(&options, &self.sandbox.join("mount")));
    }

    /// The plain directory.
    pub fn native(&self) -> &Path {
        &self.native
    }

    /// The mount.
    pub fn mount(&self) -> &Path {
        self.mount.as_ref().expect("mounted").path()
    }

    /// The lower directory of the mount, which nothing may change.
    pub fn lower(&self) -> &Path {
        &self.lower
    }
}

/// Whom to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// One more group.
    pub also: Option<u32>,
}

impl User {
    /// The superuser.
    pub const ROOT: Self = Self::new(0, 0);

    /// One with a user and a group id.
    pub const fn new(uid: u32, gid: u32) -> Self {
        let also = None;
        Self { uid, gid, also }
    }

    /// The same in one more group.
    pub const fn and(self, group: u32) -> Self {
        let also = Some(group);
        Self { also, ..self }
    }

    /// Does something as this user, in a thread whose ids nobody gets back.
    pub fn act<T: Send>(self, act: impl FnOnce() -> T + Send) -> T {
        if self == Self::ROOT {
            return act();
        }
        let become_user = move || {
            let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
            let also: Vec<Gid> = self.also.map(Gid::from_raw).into_iter().collect();
            rustix::thread::set_thread_groups(&also).expect("groups");
            rustix::thread::set_thread_res_gid(gid, gid, gid).expect("group");
            rustix::thread::set_thread_res_uid(uid, uid, uid).expect("user");
        };
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                become_user();
                act()
            });
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}
