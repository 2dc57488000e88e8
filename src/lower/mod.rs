//! What a read-only layer is, and its two kinds: an image (merged index and objects) and a plain
//! directory.
//!
//! Lowers never change while mounted. An object in one is named by a [`LowerRef`], which can be
//! used at any time; nothing is kept open but what the caches hold.

use std::borrow::Cow;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use lamina_layers::index::Ino;

use crate::attr::{Attr, Kind};
use crate::error::{FsError, FsResult};

pub mod dir;
pub mod image;

use dir::{DataPlace, DirLayer, DirObject};
use image::ImageLayer;

/// `st_ino` and node id of an object: the high 16 bits say whose number the low 48 bits are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Number(pub u64);

impl Number {
    /// The root of every mount, also `FUSE_ROOT_ID`.
    pub const ROOT: Self = Self(1);
    /// Numbers of image inodes are index number + 1.
    pub const SPACE_IMAGE: u16 = 0;
    /// Numbers of objects that were created in the upper.
    pub const SPACE_UPPER: u16 = 1;
    /// Numbers of objects of the bottom plain directory; the ones above count up from here.
    pub const SPACE_DIRS: u16 = 2;

    /// Numbers of listed entries that could not be looked at; nothing can be done with them.
    pub const SPACE_UNKNOWN: u16 = u16::MAX;

    const BITS: u32 = 48;

    /// A number of `space`. Inode numbers of more than 48 bits are folded.
    pub fn new(space: u16, number: u64) -> Self {
        let low = (number ^ number >> Self::BITS) & ((1 << Self::BITS) - 1);
        Self(u64::from(space) << Self::BITS | low)
    }

    /// The number of an image inode.
    pub fn of_image(ino: Ino) -> Self {
        Self::new(Self::SPACE_IMAGE, u64::from(ino.0) + 1)
    }

    /// Whose number it is.
    pub fn space(self) -> u16 {
        (self.0 >> Self::BITS) as u16
    }

    /// The index number, if it is an image's.
    pub fn image_ino(self) -> Option<Ino> {
        if self.space() != Self::SPACE_IMAGE {
            return None;
        }
        self.0
            .checked_sub(1)
            .and_then(|ino| u32::try_from(ino).ok())
            .map(Ino)
    }
}

/// Position of a layer among the lowers, topmost first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LayerIx(pub u16);

/// One object in one lower layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LowerRef {
    /// The layer.
    pub layer: LayerIx,
    /// The object in it.
    pub object: LowerObject,
}

/// What names an object within its layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LowerObject {
    /// An inode of the image.
    Image(Ino),
    /// An object of a plain directory.
    Dir(DirObject),
}

impl LowerRef {
    /// The number this object has in the mount.
    pub fn number(&self) -> Number {
        match &self.object {
            LowerObject::Image(ino) => Number::of_image(*ino),
            LowerObject::Dir(object) => object.number,
        }
    }
}

/// What a layer has under a name.
pub enum Found {
    /// Nothing: look in the next layer.
    Nothing,
    /// The name is deleted here: look no further.
    Whiteout,
    /// An object.
    Object(LowerRef, Kind),
}

/// Where in the layers below the contents of a file are, if not under its own name.
pub type DataRedirect = Option<Vec<u8>>;

/// One entry of a directory in a layer.
pub struct LowerEntry<'a> {
    /// Its name.
    pub name: &'a [u8],
    /// Its kind; `None` for a whiteout.
    pub kind: Option<Kind>,
    /// The number the object has in the mount.
    pub number: Number,
}

/// The contents of a regular file.
pub enum Contents<'a> {
    /// Bytes in memory.
    Inline(&'a [u8]),
    /// An open file, and its size.
    File(Arc<OwnedFd>, u64),
}

/// A read-only layer.
pub enum Layer {
    /// An image of the store.
    Image(ImageLayer),
    /// A plain directory.
    Dir(DirLayer),
}

/// All read-only layers of a mount, topmost first.
pub struct Lowers {
    layers: Vec<Layer>,
}

/// A [`LowerRef`] that does not fit the layers: a mistake in this program.
fn misfit() -> FsError {
    FsError::damage("internal error: reference to a lower layer that does not exist")
}

macro_rules! dispatch {
    ($self:ident, $at:ident, |$layer:ident, $object:ident| $call:expr) => {
        match ($self.layers.get(usize::from($at.layer.0)), &$at.object) {
            (Some(Layer::Image($layer)), &LowerObject::Image($object)) => $call,
            (Some(Layer::Dir($layer)), LowerObject::Dir($object)) => $call,
            _ => Err(misfit()),
        }
    };
}

impl Lowers {
    /// The lowers of a mount, topmost first.
    pub fn new(layers: Vec<Layer>) -> Self {
        Self { layers }
    }

    /// The roots of all layers, topmost first.
    pub fn roots(&self) -> Vec<LowerRef> {
        let root = |(at, layer): (usize, &Layer)| LowerRef {
            layer: LayerIx(at as u16),
            object: match layer {
                Layer::Image(_) => LowerObject::Image(Ino::ROOT),
                Layer::Dir(layer) => LowerObject::Dir(layer.root()),
            },
        };
        self.layers.iter().enumerate().map(root).collect()
    }

    /// Whether no layer is below this one.
    pub fn is_bottom(&self, layer: LayerIx) -> bool {
        usize::from(layer.0) + 1 >= self.layers.len()
    }

    /// Whether there is but one layer.
    pub fn is_single(&self) -> bool {
        self.layers.len() == 1
    }

    /// The image among the lowers, if there is one: it is below everything else.
    pub fn image(&self) -> Option<(LayerIx, &ImageLayer)> {
        match self.layers.split_last() {
            Some((Layer::Image(image), above)) => Some((LayerIx(above.len() as u16), image)),
            _ => None,
        }
    }

    /// Attributes of an object; `ino` is its number in the mount.
    pub fn attr(&self, at: &LowerRef) -> FsResult<Attr> {
        dispatch!(self, at, |layer, object| layer.attr(object))
    }

    /// What the directory `at` of one layer has under `name`.
    pub fn child(&self, at: &LowerRef, name: &[u8]) -> FsResult<Found> {
        dispatch!(self, at, |layer, object| layer
            .child(at.layer, object, name))
    }

    /// Calls `each` for every entry of a directory of one layer, whiteouts included.
    pub fn for_each_entry(
        &self,
        at: &LowerRef,
        each: &mut dyn FnMut(LowerEntry<'_>) -> FsResult<()>,
    ) -> FsResult<()> {
        dispatch!(self, at, |layer, object| layer.for_each_entry(object, each))
    }

    /// Whether a directory hides those of the same name in the layers below it.
    pub fn is_opaque(&self, at: &LowerRef) -> FsResult<bool> {
        dispatch!(self, at, |layer, object| layer.is_opaque(object))
    }

    /// Where in the layers below it a directory's other parts are, if not under its own name.
    pub fn redirect(&self, at: &LowerRef) -> FsResult<Option<Vec<u8>>> {
        dispatch!(self, at, |layer, object| layer.redirect(object))
    }

    /// The target of a symbolic link.
    pub fn readlink(&self, at: &LowerRef) -> FsResult<Cow<'_, [u8]>> {
        dispatch!(self, at, |layer, object| layer.readlink(object))
    }

    /// The value of an extended attribute, `None` if there is none of that name.
    pub fn xattr(&self, at: &LowerRef, name: &[u8]) -> FsResult<Option<Cow<'_, [u8]>>> {
        dispatch!(self, at, |layer, object| layer.xattr(object, name))
    }

    /// The names of all extended attributes users may see.
    pub fn xattr_names(&self, at: &LowerRef) -> FsResult<Vec<Vec<u8>>> {
        dispatch!(self, at, |layer, object| layer.xattr_names(object))
    }

    /// The contents of a regular file.
    pub fn contents(&self, at: &LowerRef) -> FsResult<Contents<'_>> {
        let at = match &at.object {
            LowerObject::Dir(DirObject {
                data: DataPlace::At(data),
                ..
            }) => data,
            _ => at,
        };
        dispatch!(self, at, |layer, object| layer.contents(object))
    }

    /// Whether the contents of a file are in a layer below, and where they must be looked for.
    pub fn lacks_data(&self, at: &LowerRef) -> FsResult<Option<DataRedirect>> {
        match (self.layers.get(usize::from(at.layer.0)), &at.object) {
            (Some(Layer::Dir(layer)), LowerObject::Dir(object))
                if object.data == DataPlace::Below =>
            {
                layer.data_redirect(object).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// Whether the contents of a regular file are in the image's index.
    pub fn is_in_index(&self, at: &LowerRef) -> bool {
        match (self.layers.get(usize::from(at.layer.0)), &at.object) {
            (Some(Layer::Image(image)), &LowerObject::Image(ino)) => image.is_in_index(ino),
            _ => false,
        }
    }

    /// All names an object has in its layer: paths from the layer's root.
    pub fn names_of(&self, at: &LowerRef) -> FsResult<Vec<Vec<u8>>> {
        dispatch!(self, at, |layer, object| layer.names_of(object))
    }

    /// The path of an object from its layer's root.
    pub fn path_of(&self, at: &LowerRef) -> FsResult<Vec<u8>> {
        dispatch!(self, at, |layer, object| Ok(layer.path_of(object)))
    }
}
