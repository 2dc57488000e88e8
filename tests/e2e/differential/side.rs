//! The filesystems that are compared, all with the same tree in them at the start.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{Mode, OFlags};

use super::lowers::Lowers;
use super::op::SLOTS;
use crate::support::lamina::{Lamina, Mount, wait_until};
use crate::support::sandbox::Sandbox;
use crate::support::tree::Tree;
use crate::support::{describe, output, run};

/// How a side holds the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A plain directory with a copy of the tree: says what POSIX and Linux say.
    Native,
    /// Kernel overlayfs over the lower directories.
    Overlayfs,
    /// Lamina over the lower directories.
    LaminaDirs,
    /// Lamina over an image made of the same layers.
    LaminaImage,
}

/// A file held open, and its number at that time.
pub struct Held {
    pub file: File,
    pub number: u64,
}

/// One of the filesystems.
pub struct Side {
    pub kind: Kind,
    path: PathBuf,
    /// The directory that operations start from, and the case's directory it is, relative to `path`.
    root: Option<OwnedFd>,
    place: String,
    /// Files held open.
    pub slots: [Option<Held>; SLOTS],
    mounting: Mounting,
    program: Lamina,
    upper: PathBuf,
    lowers: Vec<PathBuf>,
    /// How often an upper became a lower.
    rotations: usize,
}

enum Mounting {
    Native,
    Overlayfs {
        options: String,
    },
    Lamina {
        lamina: Lamina,
        options: Vec<String>,
        live: Option<Mount>,
    },
}

impl Side {
    /// Prepares a side of `kind` in `sandbox`, mounted.
    pub fn new(kind: Kind, sandbox: &Sandbox, lowers: &Lowers) -> Self {
        let name = format!("{kind:?}");
        let path = sandbox.dir(&name);
        let (upper, work) = (
            sandbox.join(format!("{name}-upper")),
            sandbox.join(format!("{name}-work")),
        );
        let program = Lamina::new(sandbox);
        let mounting = match kind {
            Kind::Native => {
                copy_of_lowers(&path, sandbox, lowers);
                Mounting::Native
            }
            Kind::Overlayfs => overlayfs(&upper, &work, &lowers.dirs, "index=on,metacopy=off"),
            Kind::LaminaDirs => lamina(program.clone(), &upper, &work, lower_options(&lowers.dirs)),
            Kind::LaminaImage => {
                let side = lamina(program.clone(), &upper, &work, vec!["case".to_owned()]);
                if let Mounting::Lamina { lamina, .. } = &side {
                    lamina.build("case", &lowers.archives);
                }
                side
            }
        };
        if kind != Kind::Native {
            // The root of a mount looks like the upper directory, so that starts as the lower's.
            for dir in [&upper, &work] {
                std::fs::create_dir(dir).unwrap();
            }
            run(Command::new("touch")
                .arg("-r")
                .arg(&lowers.dirs[0])
                .arg(&upper));
        }
        let mut side = Self {
            kind,
            path,
            root: None,
            place: String::new(),
            slots: [const { None }; SLOTS],
            mounting,
            program,
            upper,
            lowers: lowers.dirs.clone(),
            rotations: 0,
        };
        side.mount();
        side
    }

    /// Closes everything; operations are on what is below the directory `place` from now on.
    pub fn enter(&mut self, place: &str) {
        self.slots = [const { None }; SLOTS];
        place.clone_into(&mut self.place);
        self.open_root();
    }

    fn open_root(&mut self) {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(self.absolute(""), flags, Mode::empty());
        self.root = Some(root.unwrap());
    }

    /// The directory that operations start from.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_ref().expect("mounted").as_fd()
    }

    /// A path on this side as seen from outside.
    pub fn absolute(&self, path: &str) -> PathBuf {
        self.path.join(&self.place).join(path)
    }

    /// The whole tree, of all cases.
    pub fn tree(&self) -> Tree {
        Tree::read(&self.path)
    }

    /// Closes everything, unmounts, and mounts again with the same upper.
    pub fn remount(&mut self) {
        self.unmount();
        self.mount();
    }

    /// Makes the upper the topmost lower, and mounts with a new one: the tree stays as it is.
    pub fn rotate(&mut self) {
        self.rotations += 1;
        let number = self.rotations;
        let image = format!("case{number}");
        if self.kind == Kind::LaminaImage {
            let (mount, tag) = (self.path.as_os_str(), image.as_ref());
            self.program
                .ok(["commit".as_ref(), "-t".as_ref(), tag, mount]);
        }
        self.unmount();
        if self.kind == Kind::Native {
            return self.mount();
        }
        let old = std::mem::replace(
            &mut self.upper,
            self.path.with_extension(format!("upper{number}")),
        );
        let work = self.path.with_extension(format!("work{number}"));
        for dir in [&self.upper, &work] {
            std::fs::create_dir(dir).unwrap();
        }
        for program in ["touch", "chmod", "chown"] {
            let mut like = std::ffi::OsString::from("--reference=");
            like.push(&old);
            run(Command::new(program).arg(like).arg(&self.upper));
        }
        self.lowers.insert(0, old);
        self.mounting = match self.kind {
            Kind::Overlayfs => overlayfs(&self.upper, &work, &self.lowers, "index=on,metacopy=off"),
            Kind::LaminaImage => lamina(self.program.clone(), &self.upper, &work, vec![image]),
            _ => lamina(
                self.program.clone(),
                &self.upper,
                &work,
                lower_options(&self.lowers),
            ),
        };
        self.mount();
    }

    /// Closes everything and unmounts.
    pub fn unmount(&mut self) {
        self.slots = [const { None }; SLOTS];
        self.root = None;
        match &mut self.mounting {
            Mounting::Native => {}
            Mounting::Overlayfs { .. } => {
                // Busy for a moment when another test forks while it has files open here.
                crate::support::lamina::wait_until("overlayfs to be unmounted", || {
                    let flags = rustix::mount::UnmountFlags::empty();
                    rustix::mount::unmount(&self.path, flags).is_ok()
                });
            }
            Mounting::Lamina { live, .. } => live.take().into_iter().for_each(Mount::unmount),
        }
    }

    /// The tree of this side's upper over the lower directories as `kind` shows it. The side must be
    /// unmounted, and stays so.
    pub fn tree_mounted_by(&mut self, kind: Kind) -> Tree {
        let work = self.upper.with_extension(format!("{kind:?}-work"));
        std::fs::create_dir(&work).unwrap();
        let other = match kind {
            // The index, which joins names that were not copied up, belongs to the work directory.
            Kind::Overlayfs => overlayfs(&self.upper, &work, &self.lowers, "index=off,metacopy=on"),
            _ => lamina(
                self.program.clone(),
                &self.upper,
                &work,
                lower_options(&self.lowers),
            ),
        };
        let own = std::mem::replace(&mut self.mounting, other);
        self.mount();
        let tree = self.tree();
        self.unmount();
        self.mounting = own;
        tree
    }

    fn mount(&mut self) {
        match &mut self.mounting {
            Mounting::Native => {}
            Mounting::Overlayfs { options } => {
                // It is busy as long as some process that was just forked has a file of the mount
                // before open.
                wait_until("the mount before to be gone", || {
                    let mut mount = Command::new("mount");
                    mount.args(["-t", "overlay", "overlay", "-o", options]);
                    let mounted = output(mount.arg(&self.path));
                    let said = String::from_utf8_lossy(&mounted.stderr);
                    let busy = said.contains("busy") || said.contains("already mounted");
                    assert!(mounted.status.success() || busy, "{}", describe(&mounted));
                    !busy
                });
            }
            Mounting::Lamina {
                lamina,
                options,
                live,
            } => *live = Some(lamina.mount(options, &self.path)),
        }
        self.open_root();
    }
}

fn overlayfs(upper: &Path, work: &Path, lowers: &[PathBuf], features: &str) -> Mounting {
    let (upper, work) = (upper.display(), work.display());
    let features = format!("{features},redirect_dir=on,xino=on");
    Mounting::Overlayfs {
        options: format!(
            "{},upperdir={upper},workdir={work},{features}",
            lowerdir(lowers)
        ),
    }
}

fn lower_options(lowers: &[PathBuf]) -> Vec<String> {
    lowers
        .iter()
        .flat_map(|dir| ["--lower".to_owned(), dir.display().to_string()])
        .collect()
}

fn lamina(program: Lamina, upper: &Path, work: &Path, mut lowers: Vec<String>) -> Mounting {
    let mut options = vec![
        "--upper".into(),
        upper.display().to_string(),
        "--work".into(),
        work.display().to_string(),
    ];
    options.append(&mut lowers);
    Mounting::Lamina {
        lamina: program,
        options,
        live: None,
    }
}

fn lowerdir(lowers: &[PathBuf]) -> String {
    let dirs: Vec<String> = lowers.iter().map(|dir| dir.display().to_string()).collect();
    format!("lowerdir={}", dirs.join(":"))
}

/// Fills `target` with what the lowers make together, as kernel overlayfs sees it.
fn copy_of_lowers(target: &Path, sandbox: &Sandbox, lowers: &Lowers) {
    let view = sandbox.dir("lowers-view");
    run(Command::new("mount")
        .args(["-t", "overlay", "overlay", "-o", &lowerdir(&lowers.dirs)])
        .arg(&view));
    run(Command::new("cp").arg("-aT").arg(&view).arg(target));
    run(Command::new("umount").arg(&view));
}
