//! What the fuzz targets share: how one input becomes several datagrams.

/// Stands between two datagrams of one input. An input without it is one datagram, as it
/// was on the wire.
pub const BETWEEN: &[u8] = b"\n--\n";

/// Returns the datagrams of an input.
pub fn datagrams(mut input: &[u8]) -> Vec<&[u8]> {
    let mut all = Vec::new();
    while let Some(at) = input
        .windows(BETWEEN.len())
        .position(|part| part == BETWEEN)
    {
        all.push(&input[..at]);
        input = &input[at + BETWEEN.len()..];
    }
    all.push(input);
    all
}
