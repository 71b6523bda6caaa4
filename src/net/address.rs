use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

/// Who can be behind an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Anyone's server on the internet.
    Public,
    /// This machine or its own network: only where the operator says so.
    Private,
    /// Nothing that a row may ever ask for: metadata services, link-local, multicast, reserved.
    Never,
}

const fn v4(octets: [u8; 4], length: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::from_octets(octets), length)
}

const fn v6(segments: [u16; 8], length: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::from_segments(segments), length)
}

/// Looked at before [`PRIVATE_V4`]: clouds keep metadata services inside otherwise private ranges.
const NEVER_V4: [Ipv4Net; 13] = [
    v4([0, 0, 0, 0], 8),
    v4([100, 100, 100, 200], 32), // Alibaba's metadata
    v4([168, 63, 129, 16], 32),   // Azure's wire server
    v4([169, 254, 0, 0], 16),     // link-local, and most clouds' metadata
    v4([192, 0, 0, 0], 24),       // protocol assignments, and Oracle's metadata
    v4([192, 0, 2, 0], 24),
    v4([192, 31, 196, 0], 24),
    v4([192, 88, 99, 0], 24), // 6to4 relays
    v4([198, 18, 0, 0], 15),
    v4([198, 51, 100, 0], 24),
    v4([203, 0, 113, 0], 24),
    v4([224, 0, 0, 0], 4),
    v4([240, 0, 0, 0], 4),
];

const PRIVATE_V4: [Ipv4Net; 5] = [
    v4([10, 0, 0, 0], 8),
    v4([100, 64, 0, 0], 10),
    v4([127, 0, 0, 0], 8),
    v4([172, 16, 0, 0], 12),
    v4([192, 168, 0, 0], 16),
];

const GLOBAL_V6: Ipv6Net = v6([0x2000, 0, 0, 0, 0, 0, 0, 0], 3);
const NEVER_V6: [Ipv6Net; 5] = [
    v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 23), // Teredo, ORCHID and other protocol assignments
    v6([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32),
    v6([0x2620, 0x4f, 0x8000, 0, 0, 0, 0, 0], 48),
    v6([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20),
    v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254], 128), // Amazon's metadata
];
const PRIVATE_V6: [Ipv6Net; 2] = [v6([0, 0, 0, 0, 0, 0, 0, 1], 128), v6([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7)];

const MAPPED: Ipv6Net = v6([0, 0, 0, 0, 0, 0xffff, 0, 0], 96);
const NAT64: Ipv6Net = v6([0x64, 0xff9b, 0, 0, 0, 0, 0, 0], 96);
const SIX_TO_FOUR: Ipv6Net = v6([0x2002, 0, 0, 0, 0, 0, 0, 0], 16);

/// Judges an address by what would be at its other end: IPv6 that carries IPv4 is judged by what it carries.
#[must_use]
pub fn reach(address: IpAddr) -> Reach {
    match address {
        IpAddr::V4(address) => reach_v4(address),
        IpAddr::V6(address) => reach_v6(address),
    }
}

fn reach_v4(address: Ipv4Addr) -> Reach {
    if NEVER_V4.iter().any(|net| net.contains(&address)) {
        Reach::Never
    } else if PRIVATE_V4.iter().any(|net| net.contains(&address)) {
        Reach::Private
    } else {
        Reach::Public
    }
}

fn reach_v6(address: Ipv6Addr) -> Reach {
    if let Some(carried) = carried(address) {
        reach_v4(carried)
    } else if NEVER_V6.iter().any(|net| net.contains(&address)) {
        Reach::Never
    } else if PRIVATE_V6.iter().any(|net| net.contains(&address)) {
        Reach::Private
    } else if GLOBAL_V6.contains(&address) {
        Reach::Public
    } else {
        Reach::Never
    }
}

/// The IPv4 address inside, where a gateway or this machine would unwrap it.
fn carried(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let octets = address.octets();
    let four = |at: usize| Some(Ipv4Addr::new(octets[at], octets[at + 1], octets[at + 2], octets[at + 3]));
    if MAPPED.contains(&address) || NAT64.contains(&address) {
        four(12)
    } else if SIX_TO_FOUR.contains(&address) {
        four(2)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(expected: Reach, addresses: &[&str]) {
        for text in addresses {
            let address: IpAddr = text.parse().expect("an address");
            assert_eq!(reach(address), expected, "{text}");
        }
    }

    #[test]
    fn public_addresses_are_public_in_every_form() {
        check(
            Reach::Public,
            &["1.1.1.1", "93.184.216.34", "172.15.255.255", "172.32.0.0", "100.63.255.255", "100.128.0.0"],
        );
        check(Reach::Public, &["2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::1.1.1.1", "2002:101:101::1", "2a00::1"]);
        check(Reach::Public, &["192.0.1.1", "198.17.255.255", "198.20.0.0", "223.255.255.255", "169.253.255.255"]);
    }

    #[test]
    fn this_machine_and_its_network_are_private_in_every_disguise() {
        check(
            Reach::Private,
            &["127.0.0.1", "127.255.255.254", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.0.1"],
        );
        check(Reach::Private, &["100.64.0.1", "100.127.255.255", "::1", "fc00::1", "fd12:3456::1"]);
        check(Reach::Private, &["::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::127.0.0.1", "64:ff9b::c0a8:1"]);
        check(Reach::Private, &["2002:7f00:1::", "2002:a00:1::1", "2002:c0a8:101::"]);
    }

    #[test]
    fn metadata_and_reserved_addresses_are_never_reached() {
        check(Reach::Never, &["169.254.169.254", "169.254.170.2", "100.100.100.200", "192.0.0.192", "168.63.129.16"]);
        check(Reach::Never, &["::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::", "fd00:ec2::254"]);
        check(Reach::Never, &["0.0.0.0", "0.1.2.3", "::", "::127.0.0.1", "::ffff:0.0.0.0", "::ffff:0:127.0.0.1"]);
        check(Reach::Never, &["224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255", "ff02::1", "ff0e::1"]);
        check(Reach::Never, &["192.0.2.1", "198.51.100.1", "203.0.113.1", "198.18.0.1", "2001:db8::1", "3fff::1"]);
        check(
            Reach::Never,
            &["fe80::1", "fec0::1", "2001::1", "2001:0:7f00:1::", "100::1", "64:ff9b:1::7f00:1", "5f00::1"],
        );
    }
}
