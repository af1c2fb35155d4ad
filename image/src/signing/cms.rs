//! Signed data as in PKCS #7 1.5 (RFC 2315) and CMS (RFC 5652), with one signer.

use model::Digest;

use super::Signer;
use super::der::{self, OCTET_STRING, SEQUENCE, SET, context};

const SIGNED_DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 7, 2];
const DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 7, 1];
const CONTENT_TYPE: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 3];
const MESSAGE_DIGEST: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 4];
const SHA256: &[u8] = &[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1];
const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1];

/// `AlgorithmIdentifier` without parameters, which are written as NULL.
fn algorithm(object: &[u8]) -> Vec<u8> {
    der::list(SEQUENCE, &[&der::object(object), &[5, 0]])
}

/// `DigestInfo` of a SHA-256.
pub(super) fn digest_info(digest: &Digest) -> Vec<u8> {
    let value = der::value(OCTET_STRING, digest.as_bytes());
    der::list(SEQUENCE, &[&algorithm(SHA256), &value])
}

/// Signs content that stands inside the signature, as Authenticode does. `kind` is the
/// object identifier of the content's type, `content` its `SEQUENCE` without tag and
/// length. Returns a `ContentInfo`.
///
/// # Errors
/// The key cannot be used.
pub(super) fn around(signer: &Signer, kind: &[u8], content: &[u8]) -> anyhow::Result<Vec<u8>> {
    let attribute = |object: &[u8], value: &[u8]| {
        let values = der::value(SET, value);
        der::list(SEQUENCE, &[&der::object(object), &values])
    };
    let digest = Digest::of(content);
    let attributes = [
        attribute(CONTENT_TYPE, &der::object(kind)),
        attribute(MESSAGE_DIGEST, &der::value(OCTET_STRING, digest.as_bytes())),
    ];
    // What is signed is the set under its own tag; what is stored has a tag of its place.
    let signature = signer.sign(&der::set_of(SET, &attributes))?;
    let stored = der::set_of(context(0), &attributes);
    let inner = der::value(context(0), &der::value(SEQUENCE, content));
    let content = der::list(SEQUENCE, &[&der::object(kind), &inner]);
    let data = signed_data(signer, &content, &stored, &signature);
    let data = der::value(context(0), &data);
    Ok(der::list(SEQUENCE, &[&der::object(SIGNED_DATA), &data]))
}

/// Signs content that lies elsewhere, without attributes, as firmware variables want it.
/// Returns the bare `SignedData`: firmware older than UEFI 2.8 takes no `ContentInfo`.
///
/// # Errors
/// The key cannot be used.
pub(super) fn beside(signer: &Signer, content: &[u8]) -> anyhow::Result<Vec<u8>> {
    let signature = signer.sign(content)?;
    let content = der::value(SEQUENCE, &der::object(DATA));
    Ok(signed_data(signer, &content, &[], &signature))
}

fn signed_data(signer: &Signer, content: &[u8], attributes: &[u8], signature: &[u8]) -> Vec<u8> {
    let certificate = signer.certificate();
    let name = der::list(SEQUENCE, &[certificate.issuer(), certificate.serial()]);
    let version = der::unsigned(&[1]);
    let info = der::list(
        SEQUENCE,
        &[
            &version,
            &name,
            &algorithm(SHA256),
            attributes,
            &algorithm(RSA),
            &der::value(OCTET_STRING, signature),
        ],
    );
    der::list(
        SEQUENCE,
        &[
            &version,
            &der::value(SET, &algorithm(SHA256)),
            content,
            &der::value(context(0), certificate.der()),
            &der::value(SET, &info),
        ],
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signing::tests::signer;
    use edge::runner::Tool;

    #[test]
    fn openssl_accepts_a_signature_beside_its_content_and_refuses_it_for_another() {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name);
        let signer = signer();
        let bare = beside(&signer, b"content").unwrap();
        // OpenSSL reads ContentInfo alone.
        let wrapped = der::list(
            SEQUENCE,
            &[&der::object(SIGNED_DATA), &der::value(context(0), &bare)],
        );
        std::fs::write(place("p7"), wrapped).unwrap();
        std::fs::write(place("pem"), signer.certificate().pem()).unwrap();
        let verify = |content: &[u8]| {
            std::fs::write(place("content"), content).unwrap();
            Tool::new("openssl")
                .args([
                    "cms", "-verify", "-binary", "-inform", "DER", "-purpose", "any",
                ])
                .arg("-in")
                .arg(place("p7"))
                .arg("-content")
                .arg(place("content"))
                .arg("-CAfile")
                .arg(place("pem"))
                .output()
        };
        assert_eq!(verify(b"content").unwrap(), b"content");
        assert!(verify(b"contents").is_err());
    }
}
