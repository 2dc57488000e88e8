//! The union against a model of a filesystem, without FUSE: random operations must give the same
//! results and leave the same tree, also after a remount.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use lamina::attr::Kind;
use lamina::error::FsResult;
use lamina::lower::Number;
use lamina::union::{Caller, Config, Cookie, Listed, NewNode, RenameMode, SetAttr, Union};
use lamina::upper::UpperDirs;
use proptest::prelude::*;
use rustix::io::Errno;
use tempfile::TempDir;

const ME: Caller = Caller {
    uid: 0,
    gid: 0,
    tid: 0,
};

/// What the model knows of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Object {
    Dir(BTreeMap<String, usize>),
    File { data: Vec<u8>, mode: u32 },
    Symlink(String),
}

/// A filesystem as simple as can be.
struct Model {
    objects: Vec<Object>,
}

type Answer<T> = Result<T, Errno>;

impl Model {
    fn dir(&self, at: usize) -> Answer<&BTreeMap<String, usize>> {
        match &self.objects[at] {
            Object::Dir(entries) => Ok(entries),
            _ => Err(Errno::NOTDIR),
        }
    }

    fn dir_mut(&mut self, at: usize) -> &mut BTreeMap<String, usize> {
        match &mut self.objects[at] {
            Object::Dir(entries) => entries,
            _ => panic!("not a directory"),
        }
    }

    fn find(&self, path: &str) -> Answer<usize> {
        let mut at = 0;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            at = *self.dir(at)?.get(name).ok_or(Errno::NOENT)?;
        }
        Ok(at)
    }

    fn parent<'a>(&self, path: &'a str) -> Answer<(usize, &'a str)> {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        let dir = self.find(dir)?;
        self.dir(dir)?;
        Ok((dir, name))
    }

    fn create(&mut self, path: &str, object: Object) -> Answer<()> {
        let (dir, name) = self.parent(path)?;
        if self.dir(dir)?.contains_key(name) {
            return Err(Errno::EXIST);
        }
        self.objects.push(object);
        let new = self.objects.len() - 1;
        self.dir_mut(dir).insert(name.to_owned(), new);
        Ok(())
    }

    fn link(&mut self, from: &str, to: &str) -> Answer<()> {
        let object = self.find(from)?;
        if matches!(self.objects[object], Object::Dir(_)) {
            return Err(Errno::PERM);
        }
        let (dir, name) = self.parent(to)?;
        if self.dir(dir)?.contains_key(name) {
            return Err(Errno::EXIST);
        }
        self.dir_mut(dir).insert(name.to_owned(), object);
        Ok(())
    }

    fn remove(&mut self, path: &str, want_dir: bool) -> Answer<()> {
        let (dir, name) = self.parent(path)?;
        let object = *self.dir(dir)?.get(name).ok_or(Errno::NOENT)?;
        match (&self.objects[object], want_dir) {
            (Object::Dir(_), false) => return Err(Errno::ISDIR),
            (Object::Dir(entries), true) if !entries.is_empty() => return Err(Errno::NOTEMPTY),
            (Object::File { .. } | Object::Symlink(_), true) => return Err(Errno::NOTDIR),
            _ => {}
        }
        self.dir_mut(dir).remove(name);
        Ok(())
    }

    fn below(&self, dir: usize, wanted: usize) -> bool {
        dir == wanted
            || matches!(&self.objects[dir], Object::Dir(entries)
                if entries.values().any(|&child| self.below(child, wanted)))
    }

    fn rename(&mut self, from: &str, to: &str, mode: RenameMode) -> Answer<()> {
        let (dir, name) = self.parent(from)?;
        let (new_dir, new_name) = self.parent(to)?;
        let source = *self.dir(dir)?.get(name).ok_or(Errno::NOENT)?;
        let target = self.dir(new_dir)?.get(new_name).copied();
        let is_dir = |at: usize| matches!(self.objects[at], Object::Dir(_));
        match (mode, target) {
            (RenameMode::NoReplace, Some(_)) => return Err(Errno::EXIST),
            (RenameMode::Exchange, None) => return Err(Errno::NOENT),
            _ => {}
        }
        if target == Some(source) {
            return Ok(());
        }
        if let Some(target) = target
            && mode != RenameMode::Exchange
        {
            match (is_dir(source), is_dir(target)) {
                (true, false) => return Err(Errno::NOTDIR),
                (false, true) => return Err(Errno::ISDIR),
                _ => {}
            }
        }
        if is_dir(source) && self.below(source, new_dir) {
            return Err(Errno::INVAL);
        }
        if let Some(target) = target {
            if mode == RenameMode::Exchange {
                if is_dir(target) && self.below(target, dir) {
                    return Err(Errno::INVAL);
                }
                self.dir_mut(dir).insert(name.to_owned(), target);
                self.dir_mut(new_dir).insert(new_name.to_owned(), source);
                return Ok(());
            }
            if matches!(&self.objects[target], Object::Dir(entries) if !entries.is_empty()) {
                return Err(Errno::NOTEMPTY);
            }
        }
        self.dir_mut(dir).remove(name);
        self.dir_mut(new_dir).insert(new_name.to_owned(), source);
        Ok(())
    }

    fn file(&mut self, path: &str) -> Answer<(&mut Vec<u8>, &mut u32)> {
        let at = self.find(path)?;
        match &mut self.objects[at] {
            Object::File { data, mode } => Ok((data, mode)),
            Object::Dir(_) => Err(Errno::ISDIR),
            Object::Symlink(_) => Err(Errno::INVAL),
        }
    }

    fn links(&self, wanted: usize) -> usize {
        let reachable = |entries: &BTreeMap<String, usize>| {
            entries.values().filter(|&&at| at == wanted).count()
        };
        let mut pending = vec![0];
        let mut count = 0;
        while let Some(at) = pending.pop() {
            if let Object::Dir(entries) = &self.objects[at] {
                count += reachable(entries);
                pending.extend(
                    entries
                        .values()
                        .filter(|&&at| matches!(self.objects[at], Object::Dir(_))),
                );
            }
        }
        count
    }

    /// All paths with what is there; files by number of names, contents and mode.
    fn tree(&self) -> BTreeMap<String, String> {
        let mut tree = BTreeMap::new();
        let mut pending = vec![(String::new(), 0)];
        while let Some((path, at)) = pending.pop() {
            match &self.objects[at] {
                Object::Dir(entries) => {
                    for (name, &child) in entries {
                        pending.push((format!("{path}/{name}"), child));
                    }
                    let subdirs = entries
                        .values()
                        .filter(|&&child| matches!(self.objects[child], Object::Dir(_)));
                    tree.insert(path, format!("dir {}", 2 + subdirs.count()));
                }
                Object::File { data, mode } => {
                    let text = String::from_utf8_lossy(data);
                    tree.insert(path, format!("file {} {mode:o} {text}", self.links(at)));
                }
                Object::Symlink(target) => {
                    tree.insert(path, format!("link {} {target}", self.links(at)));
                }
            }
        }
        tree
    }
}

/// The union under test.
struct Subject {
    _dir: TempDir,
    config: Config,
    union: Option<Union>,
}

impl Subject {
    fn union(&self) -> &Union {
        self.union.as_ref().unwrap()
    }

    fn remount(&mut self) {
        self.union = None;
        self.union = Some(Union::open(&self.config).unwrap());
    }

    /// The upper becomes the topmost lower.
    fn rotate(&mut self) {
        self.union = None;
        let dirs = self.config.upper.as_mut().unwrap();
        let old = dirs.upper.clone();
        let count = self.config.lowers.len();
        dirs.upper = old.with_file_name(format!("upper{count}"));
        dirs.work = old.with_file_name(format!("work{count}"));
        fs::create_dir(&dirs.upper).unwrap();
        fs::create_dir(&dirs.work).unwrap();
        self.config.lowers.insert(0, old);
        self.union = Some(Union::open(&self.config).unwrap());
    }

    fn find(&self, path: &str) -> Answer<Number> {
        let mut number = Number::ROOT;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            if self.kind(number)? != Kind::Dir {
                return Err(Errno::NOTDIR);
            }
            let found = answer(self.union().lookup(number, name.as_bytes()))?;
            number = Number(found.ok_or(Errno::NOENT)?.ino);
        }
        Ok(number)
    }

    fn kind(&self, number: Number) -> Answer<Kind> {
        Ok(answer(self.union().getattr(number))?.kind())
    }

    fn parent<'a>(&self, path: &'a str) -> Answer<(Number, &'a [u8])> {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        let dir = self.find(dir)?;
        if self.kind(dir)? != Kind::Dir {
            return Err(Errno::NOTDIR);
        }
        Ok((dir, name.as_bytes()))
    }

    fn tree(&self) -> BTreeMap<String, String> {
        let mut tree = BTreeMap::new();
        let mut pending = vec![(String::new(), Number::ROOT)];
        while let Some((path, number)) = pending.pop() {
            let attr = self.union().getattr(number).unwrap();
            let line = match attr.kind() {
                Kind::Dir => {
                    let emit = &mut |item: lamina::union::DirItem<'_>| {
                        let name = String::from_utf8(item.name.to_vec()).unwrap();
                        let found = self.union().lookup(number, item.name).unwrap().unwrap();
                        assert_eq!(found.ino, item.number.0, "d_ino of {path}/{name}");
                        pending.push((format!("{path}/{name}"), item.number));
                        Listed::Taken
                    };
                    self.union().readdir(number, Cookie::DOTDOT, emit).unwrap();
                    format!("dir {}", attr.nlink)
                }
                Kind::Symlink => {
                    let target = self.union().readlink(number).unwrap();
                    format!("link {} {}", attr.nlink, String::from_utf8_lossy(&target))
                }
                _ => {
                    let mut data = vec![0; 1 << 16];
                    let size = self.union().read(number, 0, &mut data).unwrap();
                    let text = String::from_utf8_lossy(&data[..size]);
                    format!("file {} {:o} {text}", attr.nlink, attr.mode & 0o7777)
                }
            };
            tree.insert(path, line);
        }
        tree
    }
}

fn answer<T>(result: FsResult<T>) -> Answer<T> {
    result.map_err(|error| error.errno())
}

#[derive(Clone, Debug)]
enum Op {
    Mkdir(String),
    Create(String),
    Symlink(String),
    Write(String, u8, u8),
    Truncate(String, u8),
    Chmod(String, u32),
    Link(String, String),
    Unlink(String),
    Rmdir(String),
    Rename(String, String, RenameMode),
    Remount,
    Rotate,
}

impl Op {
    fn on_model(&self, model: &mut Model) -> Answer<()> {
        match self {
            Self::Mkdir(path) => model.create(path, Object::Dir(BTreeMap::new())),
            Self::Create(path) => model.create(
                path,
                Object::File {
                    data: Vec::new(),
                    mode: 0o644,
                },
            ),
            Self::Symlink(path) => model.create(path, Object::Symlink("target".into())),
            Self::Write(path, at, byte) => model.file(path).map(|(data, _)| {
                let at = usize::from(*at);
                data.resize(data.len().max(at + 1), 0);
                data[at] = *byte;
            }),
            Self::Truncate(path, size) => model
                .file(path)
                .map(|(data, _)| data.resize(usize::from(*size), 0)),
            Self::Chmod(path, new) => model.file(path).map(|(_, mode)| *mode = *new),
            Self::Link(from, to) => model.link(from, to),
            Self::Unlink(path) => model.remove(path, false),
            Self::Rmdir(path) => model.remove(path, true),
            Self::Rename(from, to, mode) => model.rename(from, to, *mode),
            Self::Remount | Self::Rotate => Ok(()),
        }
    }

    fn on_union(&self, subject: &mut Subject) -> Answer<()> {
        match self {
            Self::Remount => {
                subject.remount();
                return Ok(());
            }
            Self::Rotate => {
                subject.rotate();
                return Ok(());
            }
            _ => {}
        }
        let subject = &*subject;
        let union = subject.union();
        let create = |path: &str, kind, mode, target: &[u8]| {
            let (dir, name) = subject.parent(path)?;
            let new = NewNode {
                kind,
                mode,
                umask: 0,
                rdev: 0,
                target,
            };
            answer(union.create(dir, name, &new, ME)).map(|_| ())
        };
        let file = |path: &str| {
            let number = subject.find(path)?;
            match subject.kind(number)? {
                Kind::Dir => Err(Errno::ISDIR),
                Kind::Symlink => Err(Errno::INVAL),
                _ => Ok(number),
            }
        };
        let set = |number, set: SetAttr| answer(union.setattr(number, &set)).map(|_| ());
        match self {
            Self::Mkdir(path) => create(path, Kind::Dir, 0o755, b""),
            Self::Create(path) => create(path, Kind::File, 0o644, b""),
            Self::Symlink(path) => create(path, Kind::Symlink, 0o777, b"target"),
            Self::Write(path, at, byte) => {
                let number = file(path)?;
                answer(union.write(number, u64::from(*at), &[*byte], None)).map(|_| ())
            }
            Self::Truncate(path, size) => {
                let size = Some(u64::from(*size));
                set(
                    file(path)?,
                    SetAttr {
                        size,
                        ..SetAttr::default()
                    },
                )
            }
            Self::Chmod(path, mode) => set(
                file(path)?,
                SetAttr {
                    mode: Some(*mode),
                    ..SetAttr::default()
                },
            ),
            Self::Link(from, to) => {
                let number = subject.find(from)?;
                if subject.kind(number)? == Kind::Dir {
                    return Err(Errno::PERM);
                }
                let (dir, name) = subject.parent(to)?;
                answer(union.link(number, dir, name)).map(|_| ())
            }
            Self::Unlink(path) => {
                let (dir, name) = subject.parent(path)?;
                answer(union.unlink(dir, name))
            }
            Self::Rmdir(path) => {
                let (dir, name) = subject.parent(path)?;
                answer(union.rmdir(dir, name))
            }
            Self::Rename(from, to, mode) => {
                let (dir, name) = subject.parent(from)?;
                let (new_dir, new_name) = subject.parent(to)?;
                answer(union.rename(dir, name, new_dir, new_name, *mode))
            }
            Self::Remount | Self::Rotate => Ok(()),
        }
    }
}

fn paths() -> impl Strategy<Value = String> {
    let name = || prop::sample::select(vec!["a", "b", "c"]);
    prop::collection::vec(name(), 1..=3).prop_map(|names| names.join("/"))
}

fn ops() -> impl Strategy<Value = Op> {
    let mode = prop::sample::select(vec![
        RenameMode::Replace,
        RenameMode::Replace,
        RenameMode::NoReplace,
        RenameMode::Exchange,
    ]);
    prop_oneof![
        2 => paths().prop_map(Op::Mkdir),
        2 => paths().prop_map(Op::Create),
        1 => paths().prop_map(Op::Symlink),
        2 => (paths(), 0..20u8, b'a'..=b'z').prop_map(|(path, at, byte)| Op::Write(path, at, byte)),
        1 => (paths(), 0..20u8).prop_map(|(path, size)| Op::Truncate(path, size)),
        3 => (paths(), prop::sample::select(vec![0o600, 0o755, 0o4711])).prop_map(|(path, mode)| Op::Chmod(path, mode)),
        2 => (paths(), paths()).prop_map(|(from, to)| Op::Link(from, to)),
        3 => paths().prop_map(Op::Unlink),
        2 => paths().prop_map(Op::Rmdir),
        6 => (paths(), paths(), mode).prop_map(|(from, to, mode)| Op::Rename(from, to, mode)),
        1 => Just(Op::Remount),
        1 => Just(Op::Rotate),
    ]
}

/// A lower of two layers with the same start as the model's.
fn start(metacopy: bool) -> (Model, Subject) {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| -> PathBuf { dir.path().join(name) };
    for name in [
        "bottom/a/b/c",
        "bottom/b/a",
        "bottom/c/a",
        "top/a/b",
        "top/c",
        "upper",
        "work",
    ] {
        fs::create_dir_all(path(name)).unwrap();
    }
    let mut model = Model {
        objects: vec![Object::Dir(BTreeMap::new())],
    };
    for name in ["a", "a/b", "a/b/c", "b", "b/a", "c", "c/a"] {
        model.create(name, Object::Dir(BTreeMap::new())).unwrap();
    }
    let mut add = |layer: &str, name: &str| {
        fs::write(path(&format!("{layer}/{name}")), name).unwrap();
        let _ = model.remove(name, false);
        model
            .create(
                name,
                Object::File {
                    data: name.into(),
                    mode: 0o644,
                },
            )
            .unwrap();
    };
    for name in ["a/a", "a/b/a", "b/b", "b/a/c", "c/b"] {
        add("bottom", name);
    }
    for name in ["a/c", "a/b/b"] {
        add("top", name);
    }
    fs::hard_link(path("bottom/a/a"), path("bottom/b/c")).unwrap();
    model.link("a/a", "b/c").unwrap();
    fs::hard_link(path("top/a/c"), path("top/c/c")).unwrap();
    model.link("a/c", "c/c").unwrap();
    let config = Config {
        lowers: vec![path("top"), path("bottom")],
        upper: Some(UpperDirs {
            upper: path("upper"),
            work: path("work"),
        }),
        metacopy,
        ..Config::default()
    };
    let union = Some(Union::open(&config).unwrap());
    (
        model,
        Subject {
            _dir: dir,
            config,
            union,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn the_union_behaves_as_the_model(
        ops in prop::collection::vec(ops(), 1..60),
        metacopy in any::<bool>(),
    ) {
        let (mut model, mut subject) = start(metacopy);
        prop_assert_eq!(model.tree(), subject.tree());
        for (at, op) in ops.iter().enumerate() {
            let expected = op.on_model(&mut model);
            let found = op.on_union(&mut subject);
            prop_assert_eq!(expected, found, "step {} {:?}", at, op);
            prop_assert_eq!(model.tree(), subject.tree(), "after step {} {:?}", at, op);
        }
        subject.remount();
        prop_assert_eq!(model.tree(), subject.tree());
    }
}
