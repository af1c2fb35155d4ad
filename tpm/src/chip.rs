//! The chip itself: what we ask of it.

use std::path::Path;

use ring::rand::{SecureRandom as _, SystemRandom};
use tpm2_protocol::TpmUnmarshal as _;
use tpm2_protocol::basic::{TpmHandle, TpmInt32, TpmUint16};
use tpm2_protocol::data::{
    Tpm2bAuth, Tpm2bData, Tpm2bDigest, Tpm2bEncryptedSecret, Tpm2bIdObject, Tpm2bNonce,
    Tpm2bPrivate, Tpm2bPublic, Tpm2bSensitiveCreate, Tpm2bSensitiveData, TpmAlgId, TpmRc,
    TpmRcBase, TpmRh, TpmSe, TpmSt, TpmaSession, TpmlPcrSelection, TpmsAuthCommand,
    TpmsSensitiveCreate, TpmtPublic, TpmtSigScheme, TpmtSymDefObject, TpmtTkHashcheck,
    TpmuSignature,
};
use tpm2_protocol::frame::{
    TpmActivateCredentialCommand, TpmActivateCredentialResponse, TpmCreateCommand,
    TpmCreatePrimaryCommand, TpmCreatePrimaryResponse, TpmCreateResponse, TpmFlushContextCommand,
    TpmFlushContextResponse, TpmFrame, TpmLoadCommand, TpmLoadResponse, TpmNvReadCommand,
    TpmNvReadPublicCommand, TpmNvReadPublicResponse, TpmNvReadResponse, TpmPolicySecretCommand,
    TpmPolicySecretResponse, TpmResponse, TpmSignCommand, TpmSignResponse,
    TpmStartAuthSessionCommand, TpmStartAuthSessionResponse, TpmUnmarshalBody, TpmUnsealCommand,
    TpmUnsealResponse, tpm_marshal_command,
};
use zeroize::Zeroizing;

use crate::channel::{Channel, LARGEST};
use crate::keyfile::{Blob, Kind};
use crate::public::{Public, marshalled};
use crate::{Credential, TpmError, template};

/// Bytes that are read of a non-volatile index at once.
const CHUNK: u16 = 512;
/// A certificate is one or two KiB.
const LARGEST_CERTIFICATE: u16 = 8192;

/// A chip, or an emulator of one.
///
/// Objects are loaded for one question and leave the chip with its answer: chips
/// have room for three, and the kernel's resource manager is not always there.
#[derive(Debug)]
pub struct Tpm {
    channel: Channel,
}

/// What a chip's maker has given it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endorsement {
    /// The endorsement key.
    pub key: Public,
    /// Its certificate (X.509, DER), where the maker has put one in.
    pub certificate: Option<Vec<u8>>,
}

impl Tpm {
    /// Opens a chip: the kernel's resource manager (`/dev/tpmrm0`), or an emulator's
    /// socket.
    ///
    /// # Errors
    /// There is none.
    pub fn open(path: &Path) -> Result<Self, TpmError> {
        let channel = Channel::open(path).map_err(|source| TpmError::Open {
            path: path.display().to_string(),
            source,
        })?;
        Ok(Self { channel })
    }

    /// Tells which chip this is.
    ///
    /// # Errors
    /// The chip refuses: it knows no P-256.
    pub fn endorsement(&mut self) -> Result<Endorsement, TpmError> {
        let key = self.with_endorsement_key(|_, _, key| Ok(key))?;
        let certificate = self.endorsement_certificate()?;
        Ok(Endorsement { key, certificate })
    }

    /// Makes a device key. It is in the chip only while it is used; between its uses
    /// it is in the blob, which only this chip can read.
    ///
    /// # Errors
    /// The chip refuses.
    pub fn create_key(&mut self) -> Result<(Blob, Public), TpmError> {
        let blob = self.create(Kind::Key, template::device(), &[])?;
        let public = Public::parse(&blob.public)?;
        Ok((blob, public))
    }

    /// Wraps a secret of at most 128 bytes so that only this chip unwraps it.
    ///
    /// # Errors
    /// The chip refuses: the secret is too long.
    pub fn seal(&mut self, secret: &[u8]) -> Result<Blob, TpmError> {
        self.create(Kind::Secret, template::sealed(), secret)
    }

    /// Unwraps a secret.
    ///
    /// # Errors
    /// It is another chip's, or altered.
    pub fn unseal(&mut self, blob: &Blob) -> Result<Zeroizing<Vec<u8>>, TpmError> {
        self.with_object(blob, |tpm, handle| {
            let command = TpmUnsealCommand { handles: [handle] };
            let response: TpmUnsealResponse = tpm.ask("unseal", &command, &[password()])?;
            Ok(Zeroizing::new(response.out_data.to_vec()))
        })
    }

    /// Signs a SHA-256 with a device key. Returns the signature as X.509 and TLS have
    /// it (`Ecdsa-Sig-Value`, RFC 3279, 2.2.3, DER).
    ///
    /// # Errors
    /// The key is another chip's, or altered.
    pub fn sign(&mut self, key: &Blob, digest: &[u8; 32]) -> Result<Vec<u8>, TpmError> {
        self.with_object(key, |tpm, handle| {
            let command = TpmSignCommand {
                handles: [handle],
                digest: buffer::<Tpm2bDigest>(digest)?,
                in_scheme: TpmtSigScheme::default(),
                // The digest was made outside of the chip.
                validation: TpmtTkHashcheck {
                    tag: TpmSt::HashCheck,
                    hierarchy: TpmRh::Null,
                    digest: Tpm2bDigest::default(),
                },
            };
            let response: TpmSignResponse = tpm.ask("sign", &command, &[password()])?;
            let TpmuSignature::Ecdsa(signature) = response.signature.signature else {
                return Err(TpmError::malformed("signature", "expected ECDSA"));
            };
            Ok(yasna::construct_der(|writer| {
                writer.write_sequence(|writer| {
                    for number in [&*signature.signature_r, &*signature.signature_s] {
                        writer.next().write_bigint_bytes(number, true);
                    }
                });
            }))
        })
    }

    /// Unwraps the secret of a credential: the proof that this chip has the
    /// credential's endorsement key and `key`.
    ///
    /// # Errors
    /// It has not.
    pub fn activate(
        &mut self,
        key: &Blob,
        credential: &Credential,
    ) -> Result<Zeroizing<Vec<u8>>, TpmError> {
        self.with_object(key, |tpm, object| {
            tpm.with_endorsement_key(|tpm, endorsement, _| {
                tpm.with_endorsement_policy(|tpm, session| {
                    let command = TpmActivateCredentialCommand {
                        handles: [object, endorsement],
                        credential_blob: buffer::<Tpm2bIdObject>(&credential.blob)?,
                        secret: buffer::<Tpm2bEncryptedSecret>(&credential.secret)?,
                    };
                    let policy = TpmsAuthCommand {
                        session_handle: session,
                        session_attributes: TpmaSession::CONTINUE_SESSION,
                        ..TpmsAuthCommand::default()
                    };
                    let sessions = [password(), policy];
                    let response: TpmActivateCredentialResponse =
                        tpm.ask("activate credential", &command, &sessions)?;
                    Ok(Zeroizing::new(response.cert_info.to_vec()))
                })
            })
        })
    }

    fn create(
        &mut self,
        kind: Kind,
        template: TpmtPublic,
        secret: &[u8],
    ) -> Result<Blob, TpmError> {
        let in_sensitive = Tpm2bSensitiveCreate {
            inner: TpmsSensitiveCreate {
                user_auth: Tpm2bAuth::default(),
                data: buffer::<Tpm2bSensitiveData>(secret)?,
            },
        };
        self.with_primary(TpmRh::Owner, template::storage(), |tpm, parent, _| {
            let command = TpmCreateCommand {
                handles: [parent],
                in_sensitive,
                in_public: Tpm2bPublic { inner: template },
                outside_info: Tpm2bData::default(),
                creation_pcr: TpmlPcrSelection::default(),
            };
            let response: TpmCreateResponse = tpm.ask("create", &command, &[password()])?;
            Ok(Blob {
                kind,
                public: marshalled(&response.out_public.inner)?,
                private: response.out_private.to_vec(),
            })
        })
    }

    fn with_object<T>(
        &mut self,
        blob: &Blob,
        work: impl FnOnce(&mut Self, TpmHandle) -> Result<T, TpmError>,
    ) -> Result<T, TpmError> {
        let (inner, rest) = TpmtPublic::unmarshal(&blob.public)
            .map_err(|error| TpmError::malformed("key file", error))?;
        if !rest.is_empty() {
            return Err(TpmError::malformed("key file", "bytes behind its end"));
        }
        let in_private = buffer::<Tpm2bPrivate>(&blob.private)?;
        let handle = self.with_primary(TpmRh::Owner, template::storage(), |tpm, parent, _| {
            let command = TpmLoadCommand {
                handles: [parent],
                in_private,
                in_public: Tpm2bPublic { inner },
            };
            let response: TpmLoadResponse = tpm.ask("load", &command, &[password()])?;
            Ok(response.handles[0])
        })?;
        self.then_flush(handle, |tpm| work(tpm, handle))
    }

    fn with_endorsement_key<T>(
        &mut self,
        work: impl FnOnce(&mut Self, TpmHandle, Public) -> Result<T, TpmError>,
    ) -> Result<T, TpmError> {
        let hierarchy = TpmRh::Endorsement;
        self.with_primary(hierarchy, template::endorsement(), |tpm, handle, area| {
            work(tpm, handle, Public::of(&area)?)
        })
    }

    fn with_primary<T>(
        &mut self,
        hierarchy: TpmRh,
        template: TpmtPublic,
        work: impl FnOnce(&mut Self, TpmHandle, TpmtPublic) -> Result<T, TpmError>,
    ) -> Result<T, TpmError> {
        let command = TpmCreatePrimaryCommand {
            handles: [handle_of(hierarchy)],
            in_public: Tpm2bPublic { inner: template },
            ..TpmCreatePrimaryCommand::default()
        };
        let response: TpmCreatePrimaryResponse =
            self.ask("create primary", &command, &[password()])?;
        let handle = response.handles[0];
        self.then_flush(handle, |tpm| work(tpm, handle, response.out_public.inner))
    }

    /// A session that may use the endorsement key: by the (empty) password of the
    /// endorsement hierarchy.
    fn with_endorsement_policy<T>(
        &mut self,
        work: impl FnOnce(&mut Self, TpmHandle) -> Result<T, TpmError>,
    ) -> Result<T, TpmError> {
        let mut nonce = [0; 32];
        SystemRandom::new()
            .fill(&mut nonce)
            .map_err(|_| TpmError::malformed("nonce", "no randomness"))?;
        let command = TpmStartAuthSessionCommand {
            handles: [handle_of(TpmRh::Null), handle_of(TpmRh::Null)],
            nonce_caller: buffer::<Tpm2bNonce>(&nonce)?,
            encrypted_salt: Tpm2bEncryptedSecret::default(),
            session_type: TpmSe::Policy,
            symmetric: TpmtSymDefObject::default(),
            auth_hash: TpmAlgId::Sha256,
        };
        let response: TpmStartAuthSessionResponse = self.ask("start session", &command, &[])?;
        let session = response.handles[0];
        self.then_flush(session, |tpm| {
            let command = TpmPolicySecretCommand {
                handles: [handle_of(TpmRh::Endorsement), session],
                nonce_tpm: Tpm2bNonce::default(),
                cp_hash_a: Tpm2bDigest::default(),
                policy_ref: Tpm2bNonce::default(),
                expiration: TpmInt32::new(0),
            };
            let _: TpmPolicySecretResponse = tpm.ask("policy secret", &command, &[password()])?;
            work(tpm, session)
        })
    }

    fn endorsement_certificate(&mut self) -> Result<Option<Vec<u8>>, TpmError> {
        let index = TpmHandle::new(template::ENDORSEMENT_CERTIFICATE);
        let command = TpmNvReadPublicCommand { handles: [index] };
        let public: TpmNvReadPublicResponse = match self.ask("read public of index", &command, &[])
        {
            // Many a chip has no certificate for this kind of key.
            Err(TpmError::Refused { .. }) => return Ok(None),
            answer => answer?,
        };
        let size = public.nv_public.inner.data_size.value();
        let mut bytes = Vec::new();
        for offset in (0..size.min(LARGEST_CERTIFICATE)).step_by(usize::from(CHUNK)) {
            let command = TpmNvReadCommand {
                handles: [index, index],
                size: TpmUint16::new(CHUNK.min(size - offset)),
                offset: TpmUint16::new(offset),
            };
            match self.ask::<TpmNvReadResponse>("read index", &command, &[password()]) {
                Ok(part) => bytes.extend_from_slice(&part.data),
                Err(TpmError::Refused { .. }) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Ok(Some(bytes))
    }

    fn then_flush<T>(
        &mut self,
        handle: TpmHandle,
        work: impl FnOnce(&mut Self) -> Result<T, TpmError>,
    ) -> Result<T, TpmError> {
        let result = work(self);
        let command = TpmFlushContextCommand {
            flush_handle: handle,
            handles: [],
        };
        let flushed = self.ask::<TpmFlushContextResponse>("flush", &command, &[]);
        let value = result?;
        flushed?;
        Ok(value)
    }

    fn ask<R: TpmUnmarshalBody>(
        &mut self,
        name: &'static str,
        command: &impl TpmFrame,
        sessions: &[TpmsAuthCommand],
    ) -> Result<R, TpmError> {
        let malformed = |error| TpmError::malformed(name, error);
        let tag = if sessions.is_empty() {
            TpmSt::NoSessions
        } else {
            TpmSt::Sessions
        };
        let mut buffer = Zeroizing::new([0; LARGEST]);
        let mut writer = tpm2_protocol::TpmWriter::new(&mut *buffer);
        tpm_marshal_command(command, tag, sessions, &mut writer).map_err(malformed)?;
        let answer = self.channel.transact(writer.as_bytes());
        let answer = Zeroizing::new(answer.map_err(|source| TpmError::Io {
            command: name,
            source,
        })?);
        let response = TpmResponse::cast(&answer).map_err(malformed)?;
        let code = response.rc().map_err(malformed)?;
        if code != TpmRc::Fmt0(TpmRcBase::Success) {
            return Err(TpmError::Refused {
                command: name,
                code: code.to_string(),
            });
        }
        response.unmarshal().map_err(malformed)
    }
}

/// Our objects and the hierarchies have empty passwords: who may use the chip is a
/// question of the device's permissions.
fn password() -> TpmsAuthCommand {
    TpmsAuthCommand {
        session_handle: handle_of(TpmRh::Pw),
        ..TpmsAuthCommand::default()
    }
}

fn handle_of(permanent: TpmRh) -> TpmHandle {
    TpmHandle::new(permanent.value())
}

fn buffer<'a, B>(bytes: &'a [u8]) -> Result<B, TpmError>
where
    B: TryFrom<&'a [u8], Error = tpm2_protocol::TpmError>,
{
    B::try_from(bytes).map_err(|error| TpmError::malformed("own message", error))
}
