//! The union itself: one tree made of an upper over lowers. No FUSE here.
//!
//! The operations are methods of [`Union`] by subject: [`lookup`](Union::lookup) and identity in
//! `resolve.rs`, attributes in `attributes.rs`, listings in `readdir.rs`, contents in `data.rs`,
//! new names in `create.rs`, names that go in `remove.rs`, `rename.rs`, extended attributes in
//! `xattr.rs`, copy-up in `copyup.rs`, descriptors of upper objects in `descriptors.rs`, what an
//! upper changed in `diff.rs` (for a layer) and `change.rs` (beside what was there before).

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use lamina_layers::digest::{ChainId, DiffId};
use lamina_layers::index::Ino;
use lamina_layers::store::Store;
use rustix::io::Errno;

use crate::attr::{Attr, Kind};
use crate::error::{FsError, FsResult};
use crate::fdcache::{self, FdCache};
use crate::gate::Gate;
use crate::lower::dir::DirLayer;
use crate::lower::image::ImageLayer;
use crate::lower::{Layer, Lowers, Number};
use crate::stats::Stats;
use crate::upper::mark::{Dialect, NodeMark};
use crate::upper::{Upper, UpperDirs, UpperError, UpperOptions, reading_namespace};

mod attributes;
mod change;
mod copyup;
mod create;
mod data;
mod descriptors;
mod diff;
mod listing;
mod metacopy;
mod moved;
mod node;
mod readdir;
mod remove;
mod rename;
mod resolve;
#[cfg(test)]
mod tests;
#[cfg(all(test, feature = "shuttle"))]
mod tests_shuttle;
#[cfg(test)]
mod tests_user;
mod xattr;

pub use attributes::{SetAttr, SetTime};
pub use change::{Change, ChangeKind, Side};
pub use create::NewNode;
pub use data::{FsStat, Place, Seek};
pub use diff::{LayerItem, LayerWhat};
pub use listing::Cookie;
pub use readdir::{DirItem, Listed};
pub use rename::RenameMode;

use descriptors::FdKey;
use node::{Node, State, Table};

/// An image as the bottom of a mount.
#[derive(Clone)]
pub struct ImageLower {
    /// The store that has it.
    pub store: Arc<Store>,
    /// Its layers, bottom first.
    pub layers: Vec<DiffId>,
}

/// What to stack.
#[derive(Clone, Default)]
pub struct Config {
    /// The image, below everything else.
    pub image: Option<ImageLower>,
    /// Plain directories above it, topmost first.
    pub lowers: Vec<PathBuf>,
    /// Where changes go; without it the mount is read-only.
    pub upper: Option<UpperDirs>,
    /// How the upper is used.
    pub upper_options: UpperOptions,
    /// Refuse to rename directories that have parts in the lowers (`EXDEV`), which leaves a mark.
    pub no_redirect: bool,
    /// Copy attributes up without contents where these are not changed, as overlayfs's option
    /// `metacopy` does. Not where the upper has marks of users.
    pub metacopy: bool,
}

/// Why a union cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is nothing to show.
    #[error("nothing to mount: name an image, or at least one lower directory")]
    NoLower,
    /// A plain directory cannot be opened.
    #[error("cannot open lower directory {path:?}: {source}")]
    Lower {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: Errno,
    },
    /// More layers than a number can name.
    #[error("{0} lower directories are more than the 65,000 that can be stacked")]
    TooManyLowers(usize),
    /// The image cannot be used.
    #[error(transparent)]
    Store(#[from] lamina_layers::store::StoreError),
    /// The upper cannot be used.
    #[error(transparent)]
    Upper(#[from] UpperError),
}

/// Who asks: for the owner of new files, and for what only some may keep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Thread, which may have more groups; 0 if it cannot be seen from here.
    pub tid: u32,
}

impl Caller {
    /// Whether it is in a group. A thread that cannot be looked at is in its first group only.
    fn is_in_group(&self, gid: u32) -> bool {
        self.gid == gid || crate::sys::process::groups_of(self.tid).contains(&gid)
    }
}

/// A union of an upper and lowers.
pub struct Union {
    lowers: Lowers,
    upper: Option<Upper>,
    table: Table,
    root: Arc<Node>,
    fds: FdCache<FdKey>,
    /// What was done and how often; whoever serves the union counts in it too.
    pub stats: Arc<Stats>,
    /// Whoever serves the union makes every change inside of it.
    pub gate: Arc<Gate>,
    moved: moved::MovedDirs,
    /// Whether a last name went since somebody last waited for its space in vain.
    freed: AtomicBool,
    /// Whether files are copied up without their contents where these are not changed.
    metacopy: bool,
    /// Whether directories that have parts in the lowers keep their names.
    no_redirect: bool,
    /// How often a file of the upper was given the contents that it lacked.
    completions: AtomicU64,
    /// Tells this stack of layers from another in the marks of copied-up files.
    tag: String,
    /// Whom files of an image belong to that belong to root in it: this process's own ids where
    /// it is not privileged, so that an ordinary user owns the tree he mounts.
    root_ids: (u32, u32),
}

/// What a node id means.
enum Target {
    /// An inode of the image that nothing was done to.
    Image(Ino),
    /// A node with state.
    Node(Arc<Node>),
}

impl Union {
    /// Opens a union for a mount. The upper belongs to it until it is dropped.
    pub fn open(config: &Config) -> Result<Self, OpenError> {
        let upper = match &config.upper {
            Some(dirs) => Some(Upper::open(dirs, config.upper_options)?),
            None => None,
        };
        Self::with_upper(config, upper)
    }

    /// Opens a union to look at while another process may have it mounted. Changes are refused.
    pub fn open_for_diff(config: &Config) -> Result<Self, OpenError> {
        let upper = match &config.upper {
            Some(dirs) => Some(Upper::open_read_only(dirs)?),
            None => None,
        };
        Self::with_upper(config, upper)
    }

    fn with_upper(config: &Config, upper: Option<Upper>) -> Result<Self, OpenError> {
        let descriptors = fdcache::budget();
        let stats = Arc::new(Stats::new());
        let tag = tag_of(config);
        let lowers = Lowers::new(open_layers(config, descriptors, &stats)?);
        let state = State {
            upper: match &upper {
                Some(upper) => crate::sys::stat_fd(upper.root()).ok().map(|attr| attr.ino),
                None => None,
            },
            lowers: lowers.roots().into(),
            mark: match &upper {
                Some(upper) => upper.root_mark(),
                None => NodeMark::default(),
            },
            ..State::default()
        };
        let table = Table::new();
        let root = table.get_or_insert(Node::new(Number::ROOT, Kind::Dir, state), true);
        let root_ids = if rustix::process::geteuid().is_root() {
            (0, 0)
        } else {
            (
                rustix::process::geteuid().as_raw(),
                rustix::process::getegid().as_raw(),
            )
        };
        let fds = FdCache::new(descriptors / 3, &stats);
        Ok(Self {
            lowers,
            upper,
            table,
            root,
            fds,
            stats,
            gate: Arc::default(),
            moved: moved::MovedDirs::default(),
            freed: AtomicBool::new(false),
            metacopy: config.metacopy,
            no_redirect: config.no_redirect,
            completions: AtomicU64::new(0),
            tag,
            root_ids,
        })
    }

    /// Writes everything to disk and ends the use of the upper in order.
    pub fn close(&self) -> FsResult<()> {
        if let Some(upper) = &self.upper {
            upper.close()?;
        }
        Ok(())
    }

    /// Calls what needs room in the upper. An object whose last name is gone takes space until the
    /// kernel has told us that nobody has it open, which may be a moment after the program was
    /// told that it is deleted: so who finds no room after a deletion waits for that moment.
    fn with_room<T>(&self, mut act: impl FnMut() -> FsResult<T>) -> FsResult<T> {
        let is_full = |result: &FsResult<T>| {
            let errno = result.as_ref().err().map(FsError::errno);
            matches!(errno, Some(Errno::NOSPC | Errno::DQUOT))
        };
        let mut result = act();
        if is_full(&result) && self.freed.swap(false, Ordering::Relaxed) {
            for milliseconds in [1, 2, 4, 8, 16, 32] {
                std::thread::sleep(Duration::from_millis(milliseconds));
                result = act();
                if !is_full(&result) {
                    self.freed.store(true, Ordering::Relaxed);
                    break;
                }
            }
        }
        result
    }

    /// Whether changes are refused.
    pub fn is_read_only(&self) -> bool {
        self.upper.is_none()
    }

    /// Number of objects the daemon keeps state for.
    pub fn node_count(&self) -> usize {
        self.table.len()
    }

    fn upper(&self) -> FsResult<&Upper> {
        self.upper.as_ref().ok_or_else(|| Errno::ROFS.into())
    }

    /// What a node id of the kernel means.
    fn target(&self, number: Number) -> FsResult<Target> {
        if let Some(node) = self.table.get(number) {
            return Ok(Target::Node(node));
        }
        if let (Some((_, image)), Some(ino)) = (self.lowers.image(), number.image_ino())
            && image.index().inode(ino).is_some()
        {
            return Ok(Target::Image(ino));
        }
        Err(Errno::STALE.into())
    }

    /// Attributes of an image inode that nothing was done to.
    fn image_attr(&self, ino: Ino) -> FsResult<Attr> {
        let (_, image) = self
            .lowers
            .image()
            .ok_or_else(|| FsError::from(Errno::STALE))?;
        Ok(self.present(image.attr(ino)?))
    }

    /// Attributes of a lower object as users see them.
    fn present(&self, attr: Attr) -> Attr {
        let mut attr = attr;
        if attr.uid == 0 {
            attr.uid = self.root_ids.0;
        }
        if attr.gid == 0 {
            attr.gid = self.root_ids.1;
        }
        attr
    }

    /// Whom an object belongs to in an image: to root what is an ordinary user's own.
    pub fn owner_in_image(&self, attr: &Attr) -> (u32, u32) {
        let back = |id, own| if id == own { 0 } else { id };
        (
            back(attr.uid, self.root_ids.0),
            back(attr.gid, self.root_ids.1),
        )
    }

    /// The kernel gave back `count` lookups of a node.
    pub fn forget(&self, number: Number, count: u64) {
        for dropped in self.table.forget(number, count) {
            self.fds.remove(&FdKey::dir(dropped));
            self.fds.remove(&FdKey::file(dropped));
        }
    }

    /// The root directory's descriptor in the upper.
    fn upper_root(&self) -> FsResult<Arc<OwnedFd>> {
        let upper = self.upper()?;
        self.fds.get_or_open(FdKey::dir(Number::ROOT), || {
            crate::sys::open_dir_at(upper.root(), b".").map_err(FsError::from)
        })
    }
}

fn open_layers(
    config: &Config,
    descriptors: usize,
    stats: &Arc<Stats>,
) -> Result<Vec<Layer>, OpenError> {
    let mut layers = Vec::with_capacity(config.lowers.len() + 1);
    let count = config.lowers.len();
    if count > 65_000 {
        return Err(OpenError::TooManyLowers(count));
    }
    let each = (descriptors / 3 / count.max(1)).max(16);
    for (at, path) in config.lowers.iter().enumerate() {
        let space = Number::SPACE_DIRS + (count - 1 - at) as u16;
        let dialect = Dialect {
            shared: config.upper_options.shared,
            ..Dialect::own(reading_namespace())
        };
        let layer = DirLayer::open(path, space, dialect, (each, stats));
        let layer = layer.map_err(|source| OpenError::Lower {
            path: path.clone(),
            source,
        })?;
        layers.push(Layer::Dir(layer));
    }
    if let Some(image) = &config.image {
        let index = image.store.merged_index(&image.layers)?;
        let layer = ImageLayer::new(index, Arc::clone(&image.store), (descriptors / 3, stats));
        layers.push(Layer::Image(layer));
    }
    if layers.is_empty() {
        return Err(OpenError::NoLower);
    }
    Ok(layers)
}

/// The image's chain ID, shortened, or a word for plain directories alone.
fn tag_of(config: &Config) -> String {
    let chain = config
        .image
        .as_ref()
        .and_then(|image| ChainId::of(&image.layers));
    let mut tag = match chain {
        Some(chain) => chain.0.hex(),
        None => "dirs".to_owned(),
    };
    // With the mark of a file without contents, it just fits into an inode of ext4: an xattr block
    // for each file would cost more than all the rest.
    tag.truncate(12);
    tag
}
