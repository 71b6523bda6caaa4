//! Types of keys, each with values that are hard to carry as text.

/// A type that can be part of a key.
#[derive(Debug)]
pub struct KeyType {
    /// In SQL; `TYPES.` stands for a schema of the shape's own.
    pub sql: &'static str,
    /// At least [`ROWS`](super::rows::ROWS) and one more, of which no two are equal.
    pub values: &'static [&'static str],
}

const fn of(sql: &'static str, values: &'static [&'static str]) -> KeyType {
    KeyType { sql, values }
}

const TEXTS: &[&str] = &[
    "it's \"quoted\"",
    "",
    "back\\slash",
    "  spaces  ",
    "Größe 日本 😀",
    "{\"a\"}",
    "[\"x\"]",
    "%s $1 ${X}",
    "two\nlines\tand a tab",
    "null",
    "NULL",
    "a,b",
    "\u{200b}",
    LONG,
];

/// Close to what an index of the application holds.
const LONG: &str = "Lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod tempor incididunt ut labore et dolore magna aliqua. \
    Ut enim ad minim veniam, quis nostrud exercitation ullamco laboris nisi ut aliquip ex ea commodo consequat. Duis aute irure dolor in \
    reprehenderit in voluptate velit esse cillum dolore eu fugiat nulla pariatur. Excepteur sint occaecat cupidatat non proident, sunt in \
    culpa qui officia deserunt mollit anim id est laborum. Sed ut perspiciatis unde omnis iste natus error sit voluptatem accusantium.";

pub const TYPES: &[KeyType] = &[
    of("text", TEXTS),
    of("varchar(700)", TEXTS),
    of("TYPES.note", TEXTS),
    of("char(9)", &["a", "ab ", " b", "", "it's", "ÄÖ ß", "A"]),
    of(
        "uuid",
        &[
            "00000000-0000-0000-0000-000000000000",
            "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF",
            "{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}",
            "a0eebc999c0b4ef8bb6d6bb9bd380a12",
            "00000000-0000-0000-0000-00000000000a",
            "00000000-0000-0000-0000-00000000000b",
        ],
    ),
    of("bigint", &["-9223372036854775808", "9223372036854775807", "0", "-1", "7", "10"]),
    of("int", &["-2147483648", "2147483647", "0", "-1", "7", "10"]),
    of("smallint", &["-32768", "32767", "0", "-1", "7", "10"]),
    of("TYPES.count", &["1", "2", "3", "9", "10", "9223372036854775807"]),
    of("numeric", &["1.00", "-0.000000000000000001", "123456789012345678901234567890.5", "NaN", "0", "-1e30", "10"]),
    of("numeric(12,3)", &["1", "-0.001", "123456789.123", "0", "-7", "10"]),
    of("float8", &["0.1", "1e-300", "-Infinity", "1e15", "NaN", "-0.1", "123456.789012345"]),
    of("real", &["0.1", "16777216", "3.4e38", "-1e-30", "Infinity", "7"]),
    of("date", &["2026-01-31", "0044-03-15 BC", "infinity", "-infinity", "1999-12-31", "2000-01-01"]),
    of(
        "timestamptz",
        &[
            "2026-01-31 12:00:00.123456+02",
            "0001-01-01 00:00:00+00",
            "infinity",
            "294276-12-31 23:59:59.999999+00",
            "1970-01-01 00:00:00.000001+00",
            "2026-01-31 12:00:00.123457+02",
        ],
    ),
    of(
        "timestamp",
        &[
            "2026-01-31 12:00:00.123456",
            "0044-03-15 00:00 BC",
            "-infinity",
            "2026-02-01",
            "2026-02-02",
            "2026-02-03 04:05:06.7",
        ],
    ),
    of("time", &["00:00", "23:59:59.999999", "24:00", "12:00", "12:00:00.1", "01:02:03"]),
    of("timetz", &["00:00+00", "23:59:59.999999+05:30", "12:00-08", "12:00+08", "12:00:00.1+00", "01:02:03+01"]),
    of("interval", &["1 mon", "-1 day 00:00:01", "00:00:00.000001", "1 year 2 mons", "0", "-00:00:01"]),
    of("bytea", &["\\x", "\\x00ff", "\\xdeadbeef", "\\x5c27", "\\x22", "\\x7b7d"]),
    of("TYPES.mood", &["it's", "UPPER", "ümlaut", "with space", "a\"b", "{x}"]),
    of("oid", &["0", "4294967295", "1", "2147483648", "7", "10"]),
    of("inet", &["10.0.0.1", "10.0.0.0/8", "::1", "fe80::/64", "10.0.0.2", "0.0.0.0/0"]),
    of("cidr", &["10.0.0.0/8", "::1/128", "fe80::/64", "10.1.0.0/16", "0.0.0.0/0", "192.168.0.0/24"]),
    of(
        "macaddr",
        &[
            "08:00:2b:01:02:03",
            "08-00-2b-01-02-04",
            "08002b010205",
            "00:00:00:00:00:00",
            "ff:ff:ff:ff:ff:ff",
            "08:00:2b:01:02:06",
        ],
    ),
    of("bit(5)", &["00000", "11111", "10101", "01010", "00001", "10000"]),
    of("varbit", &["", "0", "1", "10101", "000001", "11"]),
    of("\"char\"", &["a", "b", "'", "\"", "\\", "{"]),
    of("name", &["a", "it's", "Größe", "\"q\"", "x y", "\\"]),
    of("jsonb", &["{\"a\": [1, \"it's\"]}", "[]", "\"x\"", "null", "1.0", "{}"]),
    of("text[]", &["{a,\"b c\"}", "{}", "{NULL}", "{\"NULL\"}", "{it's,\"\\\"\"}", "{\"\"}"]),
    of("int4range", &["[1,5)", "empty", "(,)", "[1,)", "(,5)", "[2,3]"]),
    of("money", &["1.00", "-1.00", "0", "1234567.89", "7", "0.01"]),
    of("TYPES.pair", &["(1,a)", "(2,\"b \"\"q\"\"\")", "(3,)", "(,x)", "(4,\"it's\")", "(5,\"a,b\")"]),
];

/// Too few values to find a row alone.
pub const SWITCH: KeyType = of("boolean", &["t", "f"]);
