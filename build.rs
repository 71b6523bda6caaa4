//! One switch for the linker, where the machine's C library knows what it makes.

use std::env;
use std::process::Command;

/// The first glibc whose loader reads packed relocations.
const GLIBC: (u32, u32) = (2, 36);

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let target = |name: &str| env::var(format!("CARGO_CFG_TARGET_{name}")).unwrap_or_default();
    let is_native = env::var("HOST") == env::var("TARGET");
    if is_native && target("OS") == "linux" && target("ENV") == "gnu" && glibc().is_some_and(|version| version >= GLIBC)
    {
        // 95,000 relative relocations as bitmaps instead of 2.3 MB that every process would read and keep.
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// What `getconf` says, `glibc 2.36`; nothing where there is none.
fn glibc() -> Option<(u32, u32)> {
    let output = Command::new("getconf").arg("GNU_LIBC_VERSION").output().ok()?;
    let said = String::from_utf8(output.stdout).ok()?;
    let (major, minor) = said.trim().strip_prefix("glibc ")?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
