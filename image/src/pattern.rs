//! Path patterns of recipes: `*` within one part of a path, `**` across parts.

/// Says whether `path` matches `pattern`.
///
/// `*` stands for any run of characters but `/`, `**` for any run at all, and
/// every other character for itself. A pattern that names a directory does
/// not match what lies below it: write `dir/**` too.
pub fn matches(pattern: &str, path: &str) -> bool {
    fn go(pattern: &[u8], path: &[u8]) -> bool {
        match pattern {
            [] => path.is_empty(),
            [b'*', b'*', rest @ ..] => (0..=path.len()).any(|skip| go(rest, &path[skip..])),
            [b'*', rest @ ..] => {
                let end = path.iter().position(|b| *b == b'/').unwrap_or(path.len());
                (0..=end).any(|skip| go(rest, &path[skip..]))
            }
            [first, rest @ ..] => path.first() == Some(first) && go(rest, &path[1..]),
        }
    }
    go(pattern.as_bytes(), path.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_star_stays_within_a_part_and_two_do_not() {
        assert!(matches("usr/share/man/**", "usr/share/man/man1/ls.1"));
        assert!(matches("usr/lib/*.so", "usr/lib/a.so"));
        assert!(!matches("usr/lib/*.so", "usr/lib/x/a.so"));
        assert!(matches("**/virtio*", "kernel/drivers/net/virtio_net"));
        assert!(matches("usr/**/x", "usr/a/b/x"));
        assert!(!matches("usr/share/doc", "usr/share/doc/x"));
    }
}
