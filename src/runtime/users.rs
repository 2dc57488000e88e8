//! Users and groups by the `/etc/passwd` and `/etc/group` of an image.

use serde::{Deserialize, Serialize};

/// Why a name means nobody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// There is no such user.
    #[error(
        "there is no user '{0}' in the image's /etc/passwd: give a number, or make the user first"
    )]
    NoUser(String),
    /// There is no such group.
    #[error(
        "there is no group '{0}' in the image's /etc/group: give a number, or make the group first"
    )]
    NoGroup(String),
}

/// The users and groups of an image.
#[derive(Clone, Debug, Default)]
pub struct Accounts {
    passwd: Vec<User>,
    groups: Vec<Group>,
}

#[derive(Clone, Debug)]
struct User {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

#[derive(Clone, Debug)]
struct Group {
    name: String,
    gid: u32,
    members: Vec<String>,
}

/// Who a process is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Further groups.
    pub groups: Vec<u32>,
    /// Home directory, if the image has one for the user.
    pub home: Option<String>,
}

impl Accounts {
    /// Reads the two files; lines that are malformed mean nothing.
    pub fn new(passwd: &[u8], group: &[u8]) -> Self {
        let user = |line: &str| {
            let mut fields = line.split(':');
            let (name, _) = (fields.next()?, fields.next()?);
            let (uid, gid) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
            let home = fields.nth(1).unwrap_or_default();
            Some(User {
                name: name.to_owned(),
                uid,
                gid,
                home: home.to_owned(),
            })
        };
        let group_of = |line: &str| {
            let mut fields = line.split(':');
            let (name, _) = (fields.next()?, fields.next()?);
            let gid = fields.next()?.parse().ok()?;
            let members = fields.next().unwrap_or_default().trim().split(',');
            Some(Group {
                name: name.to_owned(),
                gid,
                members: members.map(str::to_owned).collect(),
            })
        };
        Self {
            passwd: String::from_utf8_lossy(passwd)
                .lines()
                .filter_map(user)
                .collect(),
            groups: String::from_utf8_lossy(group)
                .lines()
                .filter_map(group_of)
                .collect(),
        }
    }

    /// Who a process of `user[:group]`, names or numbers, is. Nobody said: root.
    ///
    /// # Errors
    /// When a name is not there.
    pub fn identity(&self, wanted: &str) -> Result<Identity, UserError> {
        let (user, group) = match wanted.split_once(':') {
            Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
            None => (wanted, None),
        };
        let user = if user.is_empty() { "0" } else { user };
        let known = self.user(user);
        let uid = match (known, user.parse()) {
            (Some(known), _) => known.uid,
            (None, Ok(uid)) => uid,
            (None, Err(_)) => return Err(UserError::NoUser(user.to_owned())),
        };
        let gid = match group {
            Some(group) => self.gid(group)?,
            None => known.map_or(0, |known| known.gid),
        };
        let is_member = |other: &&Group| {
            group.is_none() && known.is_some_and(|known| other.members.contains(&known.name))
        };
        let mut groups: Vec<_> = self
            .groups
            .iter()
            .filter(is_member)
            .map(|group| group.gid)
            .collect();
        groups.sort_unstable();
        groups.dedup();
        let home = known.map(|known| known.home.clone());
        Ok(Identity {
            uid,
            gid,
            groups,
            home: home.filter(|home| !home.is_empty()),
        })
    }

    /// User and group of `user[:group]` as COPY's `--chown` has it: without a group it is the user's, or
    /// that of the same number.
    ///
    /// # Errors
    /// When a name is not there.
    pub fn owner(&self, wanted: &str) -> Result<(u32, u32), UserError> {
        let (user, group) = wanted.split_once(':').unwrap_or((wanted, ""));
        let (uid, default) = match (user.parse(), self.user(user)) {
            (Ok(uid), _) => (uid, uid),
            (_, Some(known)) => (known.uid, known.gid),
            _ if user.is_empty() => (0, 0),
            _ => return Err(UserError::NoUser(user.to_owned())),
        };
        match group {
            "" => Ok((uid, default)),
            group => Ok((uid, self.gid(group)?)),
        }
    }

    /// A name counts before a number that looks the same.
    fn user(&self, wanted: &str) -> Option<&User> {
        let by_name = self.passwd.iter().find(|user| user.name == wanted);
        let number = wanted.parse::<u32>().ok();
        by_name.or_else(|| self.passwd.iter().find(|user| Some(user.uid) == number))
    }

    fn gid(&self, wanted: &str) -> Result<u32, UserError> {
        let known = self.groups.iter().find(|group| group.name == wanted);
        match (known, wanted.parse()) {
            (Some(known), _) => Ok(known.gid),
            (None, Ok(gid)) => Ok(gid),
            (None, Err(_)) => Err(UserError::NoGroup(wanted.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts() -> Accounts {
        Accounts::new(
            b"root:x:0:0:root:/root:/bin/sh\nbad line\nann:x:1000:100::/home/ann:/bin/sh\nbob:x:7:8::\n",
            b"root:x:0:\nusers:x:100:\nwheel:x:10:bob,ann\nadm:x:4:ann\nbroken\n",
        )
    }

    #[test]
    fn who_a_process_is() {
        let identity = |wanted| accounts().identity(wanted).unwrap();
        let ann = Identity {
            uid: 1000,
            gid: 100,
            groups: vec![4, 10],
            home: Some("/home/ann".into()),
        };
        assert_eq!(identity("ann"), ann);
        assert_eq!(identity("1000"), ann);
        let only = |wanted, uid, gid| {
            let found = identity(wanted);
            assert_eq!(
                (found.uid, found.gid, found.groups),
                (uid, gid, vec![]),
                "{wanted}"
            );
        };
        only("ann:wheel", 1000, 10);
        only("5000", 5000, 0);
        only("5000:6000", 5000, 6000);
        only("", 0, 0);
        assert_eq!(identity("bob").home, None);
        let accounts = accounts();
        assert!(accounts.identity("nobody").is_err());
        assert!(accounts.identity("ann:nobody").is_err());
    }

    #[test]
    fn whom_a_file_belongs_to() {
        let accounts = accounts();
        assert_eq!(accounts.owner("ann"), Ok((1000, 100)));
        assert_eq!(accounts.owner("9"), Ok((9, 9)));
        assert_eq!(accounts.owner("ann:users"), Ok((1000, 100)));
        assert_eq!(accounts.owner("5:6"), Ok((5, 6)));
        assert_eq!(
            accounts.owner("nobody"),
            Err(UserError::NoUser("nobody".into()))
        );
    }
}
