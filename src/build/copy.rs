//! COPY and ADD: files become entries of a layer, without a mount. What their paths mean in the image is
//! looked up in its indexes, so symbolic links there lead where they would in a chroot.

use std::collections::HashSet;
use std::io;

use lamina_layers::tar::{EntryKind, EntryMeta};

use super::error::{BuildResult, Problem};
use super::layer::Writer;
use super::root::{Names, Root, What};
use super::source::{Contents, Holds, Links, Node, Tree, join};
use crate::attr::Kind;

/// How files are copied.
#[derive(Clone, Debug)]
pub struct How {
    /// Whom they belong to; `None` for whom they belong to in the image they come from.
    pub owner: Option<(u32, u32)>,
    /// Their permissions, if not their own.
    pub mode: Option<u32>,
    /// Time of directories that are made.
    pub now: (i64, u32),
    /// No file is younger than this, in seconds since 1970.
    pub latest: Option<i64>,
}

/// Where something is copied to.
#[derive(Clone, Debug)]
pub struct Dest {
    /// The path without symbolic links.
    names: Names,
    /// Whether it is a directory, or will be.
    pub is_dir: bool,
}

impl Dest {
    /// What an instruction means by a path, absolute, to which `count` things are copied.
    ///
    /// # Errors
    /// When it cannot be, or must be a directory.
    pub fn of(root: &Root, path: &str, count: usize) -> BuildResult<Self> {
        let says_dir = path.ends_with('/') || path.ends_with("/.");
        let whole = root.resolve(path.as_bytes())?;
        let is_dir = match root.what(&whole) {
            What::Dir => true,
            What::Nothing => says_dir,
            What::Other if says_dir => {
                return Err(Problem::Target {
                    path: path.to_owned(),
                    problem: "is not a directory".into(),
                }
                .into());
            }
            What::Other => false,
        };
        if count > 1 && !is_dir {
            return Err(Problem::SeveralSources(path.to_owned()).into());
        }
        if is_dir {
            return Ok(Self {
                names: whole,
                is_dir,
            });
        }
        // A symbolic link to a file is replaced, not the file.
        let trimmed = path.trim_end_matches('/');
        let (parent, name) = trimmed.rsplit_once('/').unwrap_or(("", trimmed));
        let mut names = root.resolve(parent.as_bytes())?;
        if name == ".." {
            names = whole;
        } else if !name.is_empty() && name != "." {
            names.push(name.as_bytes().to_vec());
        }
        Ok(Self { names, is_dir })
    }
}

/// Copies into one layer.
pub struct Copier<'a> {
    out: &'a mut Writer,
    root: &'a Root,
    how: &'a How,
    /// Directories that this layer has.
    made: HashSet<Names>,
}

impl<'a> Copier<'a> {
    /// One that writes to `out`, a layer on top of `root`.
    pub fn new(out: &'a mut Writer, root: &'a Root, how: &'a How) -> Self {
        Self {
            out,
            root,
            how,
            made: HashSet::new(),
        }
    }

    /// Copies what was in an archive: whom it belongs to, and its permissions, are the archive's.
    ///
    /// # Errors
    /// As [`Self::copy`].
    pub fn unpack(
        &mut self,
        tree: &Tree<'_>,
        node: &Node,
        dest: &Dest,
        unpacked: &'a How,
    ) -> BuildResult<()> {
        self.make_dirs(&dest.names)?;
        let how = std::mem::replace(&mut self.how, unpacked);
        let result = self.copy(tree, node, dest);
        self.how = how;
        result
    }

    /// Copies what was found: of a directory what is in it, of anything else itself.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn copy(&mut self, tree: &Tree<'_>, node: &Node, dest: &Dest) -> BuildResult<()> {
        let mut links = Links::new();
        if node.kind == Kind::Dir {
            if self.root.what(&dest.names) == What::Other {
                return Err(Problem::Target {
                    path: shown(&dest.names),
                    problem: "is not a directory".into(),
                }
                .into());
            }
            self.make_dirs(&dest.names)?;
            return self.inside(tree, node, &dest.names, &mut links);
        }
        let mut names = dest.names.clone();
        if dest.is_dir {
            let asked = node.asked.rsplit(|byte| *byte == b'/').next();
            names.push(asked.unwrap_or_default().to_vec());
        }
        self.make_parents(&names)?;
        self.one(tree, node, &names, &mut links)
    }

    /// Writes a file with these contents.
    ///
    /// # Errors
    /// When writing fails.
    pub fn document(&mut self, name: &str, text: &str, dest: &Dest) -> BuildResult<()> {
        let contents = Contents {
            mode: 0o644,
            owner: (0, 0),
            mtime: self.how.now,
            xattrs: Vec::new(),
            identity: None,
            data: Holds::File(text.len() as u64, Box::new(text.as_bytes())),
        };
        self.file(name, contents, dest)
    }

    /// Writes a file that is in no tree, `name` being what it is called in a directory.
    ///
    /// # Errors
    /// When writing fails.
    pub fn file(&mut self, name: &str, contents: Contents<'_>, dest: &Dest) -> BuildResult<()> {
        let mut names = dest.names.clone();
        if dest.is_dir {
            names.push(name.as_bytes().to_vec());
        }
        self.make_parents(&names)?;
        self.add(contents, &names, &mut Links::new())
    }

    /// Makes a directory, and those above it, as far as they are not there.
    ///
    /// # Errors
    /// When writing fails.
    pub fn make_dirs(&mut self, names: &Names) -> BuildResult<()> {
        for end in 1..=names.len() {
            let dir: Names = names.iter().take(end).cloned().collect();
            if self.made.contains(&dir) || self.root.what(&dir) == What::Dir {
                continue;
            }
            let meta = EntryMeta {
                mode: 0o755,
                uid: self.how.owner.map_or(0, |(uid, _)| uid),
                gid: self.how.owner.map_or(0, |(_, gid)| gid),
                mtime: self.how.now,
                xattrs: Vec::new(),
            };
            self.write(&dir, &meta, EntryKind::Directory)?;
            self.made.insert(dir);
        }
        Ok(())
    }

    fn make_parents(&mut self, names: &Names) -> BuildResult<()> {
        let count = names.len().saturating_sub(1);
        self.make_dirs(&names.iter().take(count).cloned().collect())
    }

    /// What is in a directory, and below.
    fn inside(
        &mut self,
        tree: &Tree<'_>,
        dir: &Node,
        to: &Names,
        links: &mut Links,
    ) -> BuildResult<()> {
        for name in tree.names(dir)? {
            let excluded = tree.excludes(&join(&dir.path, &name));
            if excluded && !tree.may_include_below() {
                continue;
            }
            let child = tree.child(dir, &name)?;
            if excluded && (child.kind != Kind::Dir || !tree.includes_something(&child)?) {
                continue;
            }
            let mut target = to.clone();
            target.push(name);
            if child.kind != Kind::Dir {
                self.one(tree, &child, &target, links)?;
                continue;
            }
            // What is a symbolic link to a directory in the image stays one.
            if self.root.is_symlink(&target) {
                let whole = self.root.resolve(&target.join(&b'/'))?;
                if self.root.what(&whole) == What::Dir {
                    target = whole;
                }
            }
            if tree.is_implicit(&child) {
                self.make_dirs(&target)?;
            } else {
                self.add(tree.contents(&child)?, &target, links)?;
                self.made.insert(target.clone());
            }
            self.inside(tree, &child, &target, links)?;
        }
        Ok(())
    }

    fn one(
        &mut self,
        tree: &Tree<'_>,
        node: &Node,
        names: &Names,
        links: &mut Links,
    ) -> BuildResult<()> {
        let contents = tree.contents(node)?;
        if matches!(contents.data, Holds::Socket) {
            tracing::warn!(
                "{}: sockets are not part of a layer",
                node.path.escape_ascii()
            );
            return Ok(());
        }
        self.add(contents, names, links)
    }

    fn add(&mut self, contents: Contents<'_>, names: &Names, links: &mut Links) -> BuildResult<()> {
        let path = names.join(&b'/');
        let (uid, gid) = self.how.owner.unwrap_or(contents.owner);
        let is_link = matches!(contents.data, Holds::Symlink(_));
        let own = if is_link { 0o777 } else { contents.mode };
        let mut meta = EntryMeta {
            mode: self.how.mode.filter(|_| !is_link).unwrap_or(own),
            uid,
            gid,
            mtime: contents.mtime,
            xattrs: contents.xattrs,
        };
        if let Some(latest) = self.how.latest
            && meta.mtime > (latest, 0)
        {
            meta.mtime = (latest, 0);
        }
        if let Some(identity) = contents.identity {
            if let Some(first) = links.get(&identity) {
                let first = first.clone();
                return self.write(names, &meta, EntryKind::HardLink(&first));
            }
            links.insert(identity, path);
        }
        match contents.data {
            Holds::Dir => self.write(names, &meta, EntryKind::Directory),
            Holds::File(size, mut data) => {
                let kind = EntryKind::File {
                    size,
                    segments: None,
                    data: &mut *data,
                };
                self.write(names, &meta, kind)
            }
            Holds::Symlink(target) => self.write(names, &meta, EntryKind::Symlink(&target)),
            Holds::Block(major, minor) => {
                self.write(names, &meta, EntryKind::BlockDevice { major, minor })
            }
            Holds::Char(major, minor) => {
                self.write(names, &meta, EntryKind::CharDevice { major, minor })
            }
            Holds::Fifo => self.write(names, &meta, EntryKind::Fifo),
            Holds::Socket => Ok(()),
        }
    }

    fn write(&mut self, names: &Names, meta: &EntryMeta, kind: EntryKind<'_>) -> BuildResult<()> {
        let path = names.join(&b'/');
        self.out.add(&path, meta, kind).map_err(|error| {
            let error = match error.kind() {
                io::ErrorKind::UnexpectedEof => {
                    io::Error::other("it became shorter while it was read")
                }
                _ => error,
            };
            Problem::io("copy", shown(names))(error).into()
        })
    }
}

/// A path for a message.
fn shown(names: &Names) -> String {
    format!("/{}", String::from_utf8_lossy(&names.join(&b'/')))
}
