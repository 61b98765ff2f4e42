// SPDX-License-Identifier: Apache-2.0
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

use super::*;
use crate::path::tests::Scratch;
use crate::untar::{self, Untar};

#[derive(Default)]
pub struct Collected(pub Vec<u8>);

impl Outlet for Collected {
    fn piece(&mut self, data: Vec<u8>) -> Result<()> {
        assert!(data.len() <= PIECE);
        self.0.extend_from_slice(&data);
        Ok(())
    }
    fn wanted(&self) -> Result<()> {
        Ok(())
    }
}

/// Entries with their content, as our own reader has them; as the tar crate reads the same names, it is a tar to others too.
pub fn entries(bytes: &[u8]) -> Vec<(untar::Entry, Vec<u8>)> {
    let mut archive = Untar::new(bytes);
    let mut found = Vec::new();
    while let Some(entry) = archive.next().unwrap() {
        let mut content = Vec::new();
        archive
            .copy(&mut |piece| {
                content.extend_from_slice(piece);
                Ok(())
            })
            .unwrap();
        found.push((entry, content));
    }
    let mut other = tar::Archive::new(bytes);
    let names: Vec<Vec<u8>> = other.entries().unwrap().map(|entry| entry.unwrap().path_bytes().into_owned()).collect();
    assert_eq!(names, found.iter().map(|(entry, _)| entry.path.clone()).collect::<Vec<_>>());
    found
}

#[test]
fn headers_say_all_and_short_ones_need_no_extension() {
    let plain =
        Entry { path: b"a", kind: b'0', mode: 0o4755, uid: 1, gid: 2, size: 0, mtime: (7, 0), ..Entry::default() };
    assert_eq!(plain.render().len(), BLOCK);
    let long = [b'x'; 300];
    let mut odd = long.to_vec();
    odd[0] = 0xff;
    let xattrs = [(b"security.capability".to_vec(), b"a\n\0=b".to_vec()), (b"user.x".to_vec(), Vec::new())];
    let all = [
        plain,
        Entry { path: &long, link: &odd, kind: b'2', mtime: (-2, 500_000_000), ..Entry::default() },
        Entry { path: b"\xff\xfe", kind: b'0', uid: u32::MAX, gid: 2_097_152, xattrs: &xattrs, ..Entry::default() },
        Entry { path: b"d", kind: b'3', device: (254, 1_048_575), mtime: (1, 1), ..Entry::default() },
    ];
    let mut bytes: Vec<u8> = all.iter().flat_map(Entry::render).collect();
    bytes.resize(bytes.len() + 1024, 0);
    let mut archive = Untar::new(&bytes[..]);
    for asked in &all {
        let read = archive.next().unwrap().unwrap();
        assert_eq!(
            (&read.path[..], &read.link[..], read.kind, read.mode, read.uid, read.gid, read.mtime, read.device),
            (asked.path, asked.link, asked.kind, asked.mode, asked.uid, asked.gid, asked.mtime, asked.device)
        );
        // An empty value would mean that the attribute is not there.
        assert_eq!(read.xattrs, asked.xattrs);
    }
    assert_eq!(archive.next().unwrap(), None);
}

#[test]
fn a_part_of_a_second_has_all_its_digits() {
    for (mtime, told) in [
        ((5, 37_406_670), &b" mtime=5.037406670\n"[..]),
        ((5, 500_000_000), b" mtime=5.500000000\n"),
        ((-10, 0), b" mtime=-10\n"),
    ] {
        let entry = Entry { path: b"a", kind: b'0', mtime, ..Entry::default() };
        assert!(entry.render().windows(told.len()).any(|seen| seen == told));
    }
}

#[test]
fn a_file_of_more_than_eight_gibibytes_has_its_size() {
    let size = (8 << 30) + 1;
    let header = Entry { path: b"big", kind: b'0', size, ..Entry::default() }.render();
    assert_eq!(Untar::new(&header[..]).next().unwrap().unwrap().size, size);
}

#[test]
fn the_length_of_a_record_counts_its_own_digits() {
    for length in 0..1200 {
        let mut records = Vec::new();
        record(&mut records, b"path", &vec![b'x'; length]);
        let told: usize = std::str::from_utf8(records.split(|&b| b == b' ').next().unwrap()).unwrap().parse().unwrap();
        assert_eq!(told, records.len());
    }
}

fn node(scratch: &Scratch, name: &[u8]) -> Node {
    let directory = std::fs::File::open(&scratch.0).unwrap();
    Node::find(directory.as_fd(), name).unwrap().unwrap()
}

#[test]
fn a_file_that_shrinks_is_told_and_one_that_grows_is_cut() {
    let scratch = Scratch::new();
    std::fs::write(scratch.0.join("f"), vec![b'x'; 1000]).unwrap();
    let node = node(&scratch, b"f");
    std::fs::write(scratch.0.join("f"), vec![b'y'; 3000]).unwrap();
    let mut grown = Collected::default();
    let mut tar = Tar::new(&mut grown);
    tar.add(&node, b"f").unwrap();
    tar.finish().unwrap();
    assert_eq!(entries(&grown.0)[0].1, vec![b'y'; 1000]);

    std::fs::write(scratch.0.join("f"), vec![b'z'; 10]).unwrap();
    let error = Tar::new(&mut Collected::default()).add(&node, b"dir/f").unwrap_err();
    assert_eq!((error.kind, &error.message[..]), (Kind::Aborted, "/dir/f: shrank by 990 bytes while it was read"));
}

#[test]
fn holes_are_read_as_zeros_and_names_may_be_anything() {
    let scratch = Scratch::new();
    let name = std::ffi::OsStr::from_bytes(b"\xff sparse");
    std::fs::File::create(scratch.0.join(name)).unwrap().set_len(600_000).unwrap();
    let mut out = Collected::default();
    let mut tar = Tar::new(&mut out);
    tar.add(&node(&scratch, name.as_bytes()), name.as_bytes()).unwrap();
    tar.finish().unwrap();
    let found = entries(&out.0);
    assert_eq!((&found[0].0.path[..], &found[0].1), (name.as_bytes(), &vec![0; 600_000]));
    assert_eq!(out.0.len() % BLOCK, 0);
}

/// Not a test of a time: run with --ignored --nocapture for a number.
#[test]
#[ignore = "a measurement"]
fn measure_a_large_tree() {
    let scratch = Scratch::new();
    for n in 0..300 {
        std::fs::write(scratch.0.join(format!("{n}")), vec![7; 1 << 20]).unwrap();
    }
    struct Count(u64);
    impl Outlet for Count {
        fn piece(&mut self, data: Vec<u8>) -> Result<()> {
            self.0 += data.len() as u64;
            Ok(())
        }
        fn wanted(&self) -> Result<()> {
            Ok(())
        }
    }
    let directory = std::fs::File::open(&scratch.0).unwrap();
    for _ in 0..3 {
        let (mut count, begun) = (Count(0), std::time::Instant::now());
        crate::layer::write_layer(Some(directory.as_fd()), None, &mut count).unwrap();
        let seconds = begun.elapsed().as_secs_f64();
        println!("{} MB, {:.0} MB/s", count.0 / 1_000_000, count.0 as f64 / seconds / 1e6);
    }
}
