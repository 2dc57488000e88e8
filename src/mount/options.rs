//! Options of `mount -o`.

use rustix::mount::MountFlags;

/// Options of a mount as the kernel takes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOptions {
    /// Flags of `mount(2)`.
    pub flags: MountFlags,
    /// Whether other users than the one who mounts may use it; his choice if he is not root.
    pub allow_other: Option<bool>,
    /// What is shown as the source of the mount.
    pub source: Option<String>,
    /// The file system type shown is `fuse.` and this.
    pub subtype: String,
    /// Options for security modules, as they are (`context=…`).
    pub security: Vec<String>,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            flags: MountFlags::empty(),
            allow_other: None,
            source: None,
            subtype: "lamina".to_owned(),
            security: Vec::new(),
        }
    }
}

/// An option that is not known, or has a wrong value.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum OptionError {
    /// The option is not known.
    #[error(
        "mount option '{0}' is not known (known: ro, rw, suid, nosuid, dev, nodev, exec, noexec, \
         atime, noatime, diratime, nodiratime, relatime, strictatime, sync, dirsync, allow_other, \
         default_permissions, fsname=, subtype=, context=, fscontext=, defcontext=, rootcontext=)"
    )]
    Unknown(String),
    /// The option needs a value.
    #[error("mount option '{0}' needs a value")]
    NoValue(String),
}

const FLAGS: [(&str, MountFlags, bool); 16] = [
    ("ro", MountFlags::RDONLY, true),
    ("rw", MountFlags::RDONLY, false),
    ("nosuid", MountFlags::NOSUID, true),
    ("suid", MountFlags::NOSUID, false),
    ("nodev", MountFlags::NODEV, true),
    ("dev", MountFlags::NODEV, false),
    ("noexec", MountFlags::NOEXEC, true),
    ("exec", MountFlags::NOEXEC, false),
    ("noatime", MountFlags::NOATIME, true),
    ("atime", MountFlags::NOATIME, false),
    ("nodiratime", MountFlags::NODIRATIME, true),
    ("diratime", MountFlags::NODIRATIME, false),
    ("relatime", MountFlags::RELATIME, true),
    ("strictatime", MountFlags::STRICTATIME, true),
    ("sync", MountFlags::SYNCHRONOUS, true),
    ("dirsync", MountFlags::DIRSYNC, true),
];

impl MountOptions {
    /// Parses comma-separated options; a comma inside double quotes or after a backslash is part
    /// of a value.
    pub fn add(&mut self, text: &str) -> Result<(), OptionError> {
        split(text)
            .iter()
            .filter(|option| !option.is_empty())
            .try_for_each(|one| self.add_word(one))
    }

    fn add_word(&mut self, option: &str) -> Result<(), OptionError> {
        let (key, value) = match option.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (option, None),
        };
        // Always so: the daemon does not check permissions itself.
        let is_known =
            matches!(option, "default_permissions" | "defaults") || self.add_one(key, value)?;
        is_known
            .then_some(())
            .ok_or_else(|| OptionError::Unknown(option.to_owned()))
    }

    /// Adds one option. Whether it is known.
    ///
    /// # Errors
    /// When it has no value and needs one.
    pub fn add_one(&mut self, key: &str, value: Option<&str>) -> Result<bool, OptionError> {
        let Some(value) = value else {
            if let Some((_, flag, on)) = FLAGS.iter().find(|(name, ..)| *name == key) {
                self.flags.set(*flag, *on);
                return Ok(true);
            }
            let is_known = key == "allow_other";
            if is_known {
                self.allow_other = Some(true);
            }
            return Ok(is_known);
        };
        match key {
            _ if value.is_empty() => return Err(OptionError::NoValue(key.to_owned())),
            "fsname" => self.source = Some(value.to_owned()),
            "subtype" => value.clone_into(&mut self.subtype),
            "context" | "fscontext" | "defcontext" | "rootcontext" => {
                self.security.push(format!("{key}={value}"));
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

fn split(text: &str) -> Vec<String> {
    let mut options = vec![String::new()];
    let mut quoted = false;
    let mut chars = text.chars();
    while let Some(next) = chars.next() {
        let part = match next {
            '"' => {
                quoted = !quoted;
                continue;
            }
            ',' if !quoted => {
                options.push(String::new());
                continue;
            }
            '\\' => chars.next().unwrap_or('\\'),
            other => other,
        };
        if let Some(last) = options.last_mut() {
            last.push(part);
        }
    }
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<MountOptions, OptionError> {
        let mut options = MountOptions::default();
        options.add(text).map(|()| options)
    }

    #[test]
    fn flags_and_values() {
        let options = parse("ro,nodev,rw,allow_other,fsname=my\\,image").unwrap();
        assert_eq!(options.flags, MountFlags::NODEV);
        assert_eq!(options.allow_other, Some(true));
        assert_eq!(options.source.as_deref(), Some("my,image"));
        let label = parse("context=\"system_u:object_r:x:s0:c1,c2\"").unwrap();
        assert_eq!(label.security, ["context=system_u:object_r:x:s0:c1,c2"]);
    }

    #[test]
    fn unknown_options_are_named() {
        assert_eq!(parse("ro,foo=1"), Err(OptionError::Unknown("foo=1".into())));
        assert_eq!(parse("fsname="), Err(OptionError::NoValue("fsname".into())));
    }
}
