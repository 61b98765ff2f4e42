// SPDX-License-Identifier: Apache-2.0
//! Who a process runs as: Docker's rules over the image's own passwd and group, which are hostile input.

use crate::error::{Error, Result};

/// More than any real passwd; what lies beyond is not read.
pub const DATABASE_LIMIT: usize = 4 * 1024 * 1024;
const MAX_ID: u32 = i32::MAX as u32;
const MAX_GROUPS: usize = 1024;

#[derive(Debug, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups, the primary one first.
    pub groups: Vec<u32>,
    pub home: String,
}

struct Passwd<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

/// `wanted` is `name|uid[:group|gid]`, "" for root. A number is always an id, whether or not it is listed.
pub fn resolve(wanted: &str, additional: &[String], passwd: &[u8], group: &[u8]) -> Result<User> {
    let (passwd, group) = (String::from_utf8_lossy(passwd), String::from_utf8_lossy(group));
    let (user_part, group_part) = wanted.split_once(':').unwrap_or((wanted, ""));
    let user_part = if user_part.is_empty() { "0" } else { user_part };

    let number = parse_id(user_part)?;
    let listed = passwd.lines().filter_map(parse_passwd).find(|entry| match number {
        Some(uid) => entry.uid == uid,
        None => entry.name == user_part,
    });
    let (uid, mut gid, home) = match (&listed, number) {
        (Some(entry), _) => (entry.uid, entry.gid, entry.home),
        (None, Some(uid)) => (uid, 0, ""),
        (None, None) => {
            return Err(Error::invalid(format!("unable to find user {user_part}: no matching entries in passwd file")));
        }
    };

    let mut supplementary = Vec::new();
    if !group_part.is_empty() {
        gid = find_group(group_part, &group)?;
    } else if let Some(entry) = &listed {
        let member_of = |g: &Group<'_>| g.members.split(',').any(|member| member == entry.name);
        supplementary.extend(group.lines().filter_map(parse_group).filter(member_of).map(|g| g.gid));
    }
    for name in additional {
        supplementary.push(find_group(name, &group)?);
    }
    let mut groups = vec![gid];
    for gid in supplementary {
        if !groups.contains(&gid) && groups.len() < MAX_GROUPS {
            groups.push(gid);
        }
    }
    let home = if home.is_empty() { "/" } else { home };
    Ok(User { uid, gid, groups, home: home.to_owned() })
}

fn find_group(wanted: &str, group: &str) -> Result<u32> {
    if let Some(gid) = parse_id(wanted)? {
        return Ok(gid);
    }
    let found = group.lines().filter_map(parse_group).find(|entry| entry.name == wanted);
    found
        .map(|entry| entry.gid)
        .ok_or_else(|| Error::invalid(format!("unable to find group {wanted}: no matching entries in group file")))
}

fn parse_id(text: &str) -> Result<Option<u32>> {
    if !text.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(None);
    }
    match text.parse::<u32>() {
        Ok(id) if id <= MAX_ID => Ok(Some(id)),
        _ => Err(Error::invalid(format!("uids and gids must be in range 0-{MAX_ID}: {text}"))),
    }
}

fn parse_passwd(line: &str) -> Option<Passwd<'_>> {
    let mut fields = line.trim().split(':');
    let name = fields.next().filter(|name| !name.is_empty() && !name.starts_with('#'))?;
    let uid = fields.nth(1)?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    let home = fields.nth(1).unwrap_or("");
    Some(Passwd { name, uid, gid, home })
}

fn parse_group(line: &str) -> Option<Group<'_>> {
    let mut fields = line.trim().split(':');
    let name = fields.next().filter(|name| !name.is_empty() && !name.starts_with('#'))?;
    let gid = fields.nth(1)?.parse().ok()?;
    Some(Group { name, gid, members: fields.next().unwrap_or("") })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n# comment\n\nbroken\nada:x:1000:1001:Ada:/home/ada:/bin/sh\nnohome:x:1002:1002\n7:x:70:70::/seven:\n";
    const GROUP: &[u8] = b"root:x:0:\nada:x:1001:\naudio:x:29:bob,ada\nvideo:x:44:adam\nwheel:x:10:root,ada\n";

    fn user(wanted: &str) -> User {
        resolve(wanted, &[], PASSWD, GROUP).unwrap()
    }

    #[test]
    fn nobody_named_is_root_with_roots_home_and_groups() {
        assert_eq!(user(""), User { uid: 0, gid: 0, groups: vec![0, 10], home: "/root".into() });
    }

    #[test]
    fn a_name_brings_group_home_and_memberships() {
        assert_eq!(user("ada"), User { uid: 1000, gid: 1001, groups: vec![1001, 29, 10], home: "/home/ada".into() });
        assert_eq!(user("1000"), user("ada"));
    }

    #[test]
    fn a_group_that_was_named_replaces_the_memberships() {
        assert_eq!(user("ada:audio"), User { uid: 1000, gid: 29, groups: vec![29], home: "/home/ada".into() });
        assert_eq!(user("ada:555").gid, 555);
    }

    #[test]
    fn a_number_needs_no_entry() {
        assert_eq!(user("4242"), User { uid: 4242, gid: 0, groups: vec![0], home: "/".into() });
        assert_eq!(resolve("12:34", &[], b"", b"").unwrap().gid, 34);
        assert_eq!(resolve("", &[], b"", b"").unwrap().home, "/");
    }

    #[test]
    fn digits_are_an_id_even_where_a_user_is_named_so() {
        assert_eq!(user("7").uid, 7);
    }

    #[test]
    fn unknown_names_are_told_in_dockers_words() {
        assert_eq!(
            resolve("eve", &[], PASSWD, GROUP).unwrap_err().message,
            "unable to find user eve: no matching entries in passwd file"
        );
        assert_eq!(
            resolve("ada:eve", &[], PASSWD, GROUP).unwrap_err().message,
            "unable to find group eve: no matching entries in group file"
        );
        assert!(resolve("4294967295", &[], PASSWD, GROUP).is_err());
        assert!(resolve("-1", &[], PASSWD, GROUP).is_err());
    }

    #[test]
    fn additional_groups_come_on_top_and_once() {
        let groups = ["video".to_owned(), "77".to_owned(), "audio".to_owned()];
        assert_eq!(resolve("ada", &groups, PASSWD, GROUP).unwrap().groups, [1001, 29, 10, 44, 77]);
    }

    #[test]
    fn hostile_databases_do_no_harm() {
        let garbage: Vec<u8> = (0..20_000_u32).map(|i| (i * 31 % 251) as u8).collect();
        assert!(resolve("ada", &[], &garbage, &garbage).is_err());
        assert_eq!(resolve("x", &[], b"x:x:1:2", b"").unwrap().home, "/");
        let many: String = (0..5000).map(|i| format!("g{i}:x:{i}:ada\n")).collect();
        assert_eq!(resolve("ada", &[], PASSWD, many.as_bytes()).unwrap().groups.len(), MAX_GROUPS);
    }
}
