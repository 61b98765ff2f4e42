// SPDX-License-Identifier: Apache-2.0
use super::*;
use crate::rtnetlink::parse_addresses;

#[test]
fn messages_are_laid_out_as_the_kernel_reads_them() {
    let bytes = address_message(libc::RTM_NEWADDR, 7, "10.1.2.3".parse().unwrap(), 24).finish();
    assert_eq!(bytes.len() as u32, u32::from_ne_bytes(bytes[..4].try_into().unwrap()));
    assert_eq!(bytes.len(), 16 + 8 + 8 * 3);
    assert_eq!(bytes[16..24], [2, 24, 0, 0, 7, 0, 0, 0]);
    assert_eq!(bytes[24..32], [8, 0, 2, 0, 10, 1, 2, 3]);
    assert_eq!(bytes[40..48], [8, 0, 4, 0, 10, 1, 2, 255]);
}

#[test]
fn addresses_macs_and_gateways_are_checked() {
    assert!(parse_cidr("fd00::2/64").is_ok());
    for bad in ["10.0.0.1", "10.0.0.1/33", "x/8", "fd00::/129", "/", ""] {
        assert!(parse_cidr(bad).is_err(), "{bad}");
    }
    assert_eq!(parse_mac("52:54:00:AA:bb:0c").unwrap(), [0x52, 0x54, 0, 0xaa, 0xbb, 0x0c]);
    for bad in ["", "52:54", "52:54:00:aa:bb:zz", "525400aabb0c", "52:54:00:aa:bb:+1", "52:54:00:aa:bb:0c:0d"] {
        assert!(parse_mac(bad).is_err(), "{bad}");
    }
    let route = |destination: &str, gateway: &str| {
        route_message(libc::RTM_NEWROUTE, 1, &Route { destination: destination.into(), gateway: gateway.into() })
    };
    assert!(route("0.0.0.0/0", "10.0.0.1").is_ok());
    assert!(route("::/0", "10.0.0.1").is_err());
    assert!(route("0.0.0.0/0", "gw").is_err());
}

#[test]
fn a_link_that_another_is_to_be_is_not_taken_for_a_clones() {
    let link = |mac: &str| Link { mac: mac.into(), ..Link::default() };
    let asked = parse_macs(&[link("0a:48:00:00:00:01"), link("0a:48:00:00:00:02")]).unwrap();
    assert!(!is_foreign([0x0a, 0x48, 0, 0, 0, 2], &asked));
    assert!(is_foreign([0x0a, 0x48, 0, 0, 0, 9], &asked));
    assert!(parse_macs(&[link("nonsense")]).is_err());
}

#[test]
fn a_dump_of_addresses_is_read_for_one_link_up_to_its_end() {
    let mine = |index, ip: &str| {
        let ip = ip.parse().unwrap();
        address_message(libc::RTM_NEWADDR, index, ip, if ip.is_ipv4() { 24 } else { 64 }).finish()
    };
    let mut dump = [mine(2, "10.0.0.1"), mine(3, "10.0.0.2"), mine(2, "fd00::1")].concat();
    let mut found = Vec::new();
    assert_eq!(parse_addresses(&dump, 2, &mut found), Ok(false));
    assert_eq!(found, [("10.0.0.1".parse().unwrap(), 24), ("fd00::1".parse().unwrap(), 64)]);
    dump.extend(Message::new(libc::NLMSG_DONE as u16, 0, &[0; 4]).finish());
    assert_eq!(parse_addresses(&dump, 2, &mut found), Ok(true));
    for torn in 1..dump.len() {
        let _ = parse_addresses(&dump[..torn], 2, &mut found);
    }
}
