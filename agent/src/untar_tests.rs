// SPDX-License-Identifier: Apache-2.0
use super::*;

#[test]
fn numbers_come_in_octal_and_in_base_256() {
    assert_eq!(number(b"0000755\0").unwrap(), 0o755);
    assert_eq!(number(b" 755 \0\0\0").unwrap(), 0o755);
    assert_eq!(number(&[0; 8]).unwrap(), 0);
    assert_eq!(number(&[0x80, 0, 0, 0, 0, 1, 0, 0]).unwrap(), 65536);
    assert_eq!(number(&[0xff; 12]).unwrap(), -1);
    for bad in [&b"00x"[..], b"-1", b"999"] {
        assert!(number(bad).is_err(), "{bad:?}");
    }
    assert!(number(&[0x8f; 12]).is_err());
}

#[test]
fn times_have_signs_and_fractions() {
    assert_eq!(parse_time("12.5"), Some((12, 500_000_000)));
    assert_eq!(parse_time("-12.5"), Some((-13, 500_000_000)));
    assert_eq!(parse_time("1.1234567899"), Some((1, 123_456_789)));
    for bad in ["", ".5", "1e3", "1.x", "--1"] {
        assert_eq!(parse_time(bad), None, "{bad}");
    }
}

#[test]
fn many_extended_headers_take_no_more_memory_than_one() {
    let value = vec![b'v'; 300_000];
    let xattrs = [(b"user.a".to_vec(), value)];
    let one = crate::pax::Entry { path: b"f", kind: b'0', xattrs: &xattrs, ..crate::pax::Entry::default() }.render();
    let (extended, plain) = one.split_at(one.len() - BLOCK);
    let archive = [&extended.repeat(3)[..], plain].concat();
    assert_eq!(Untar::new(&archive[..]).next().unwrap().unwrap().xattrs.len(), 3);
    let archive = [&extended.repeat(4)[..], plain].concat();
    assert_eq!(Untar::new(&archive[..]).next().unwrap_err().kind, Kind::Invalid);
    // The bound is that of one entry.
    let archive = one.repeat(8);
    let mut read = Untar::new(&archive[..]);
    for _ in 0..8 {
        assert_eq!(read.next().unwrap().unwrap().xattrs.len(), 1);
    }
}

#[test]
fn what_others_write_is_read_and_nonsense_is_refused() {
    let mut builder = tar::Builder::new(Vec::new());
    let long = "x/".repeat(120) + "file";
    let mut header = tar::Header::new_gnu();
    header.set_size(3);
    header.set_mode(0o600);
    builder.append_data(&mut header, &long, &b"abc"[..]).unwrap();
    let bytes = builder.into_inner().unwrap();
    let mut archive = Untar::new(&bytes[..]);
    assert_eq!(archive.next().unwrap().unwrap().path, long.as_bytes());
    assert_eq!(archive.next().unwrap(), None);
    let mut flipped = bytes.clone();
    flipped[0] ^= 1;
    assert!(Untar::new(&flipped[..]).next().is_err());
    assert_eq!(Untar::new(&b""[..]).next().unwrap(), None);
    for records in ["6 a=\n", "4 a\n", "99 path=x\n", "x", "13 path=abc", "21 GNU.sparse.name=x\n"] {
        assert!(Records::default().read(records.as_bytes()).is_err(), "{records}");
    }
}
