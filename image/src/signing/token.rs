//! Keys on PKCS #11 tokens, named by a URI (RFC 7512).
//!
//! The PIN comes from a file or the environment. A URI that holds it is refused: command
//! lines are read by every user of the machine and end up in histories and logs.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

use anyhow::Context as _;
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error as TokenError, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::{Slot, TokenInfo};
use cryptoki::types::AuthPin;
use edge::exit::{self, Kind};
use model::Digest;
use zeroize::Zeroizing;

use super::cms;
use super::der::{self, SEQUENCE};
use super::key::Key;

/// How a URI of a token begins.
pub const SCHEME: &str = "pkcs11:";
/// The environment's variable with the PIN.
pub const PIN: &str = "LEAP_PKCS11_PIN";
/// The environment's variable with the module's path.
pub const MODULE: &str = "LEAP_PKCS11_MODULE";

/// Which key on which token.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenUri {
    token: Option<String>,
    serial: Option<String>,
    manufacturer: Option<String>,
    model: Option<String>,
    object: Option<String>,
    id: Option<Vec<u8>>,
    module: Option<PathBuf>,
    pin_source: Option<PathBuf>,
}

/// Why a text is no URI of a key on a token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadUri {
    /// It does not have the form.
    #[error("{0}: expected pkcs11:token=…;object=…?module-path=…&pin-source=…")]
    Form(String),
    /// An attribute that is not known, or cannot be used here.
    #[error(
        "attribute {0}: expected token, serial, manufacturer, model, object, id, type, module-path or pin-source"
    )]
    Attribute(String),
    /// It holds the PIN.
    #[error(
        "attribute pin-value: a PIN on the command line is everyone's; name a file with pin-source, or set {PIN}"
    )]
    PinValue,
    /// It names no key.
    #[error("expected object=… or id=…, which name the key")]
    NoKey,
}

impl FromStr for TokenUri {
    type Err = BadUri;

    fn from_str(text: &str) -> Result<Self, BadUri> {
        let rest = text
            .strip_prefix(SCHEME)
            .ok_or_else(|| BadUri::Form(text.to_owned()))?;
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut uri = Self::default();
        let attributes = path.split(';').chain(query.split('&'));
        for attribute in attributes.filter(|part| !part.is_empty()) {
            let bad = || BadUri::Form(attribute.to_owned());
            let (name, encoded) = attribute.split_once('=').ok_or_else(bad)?;
            if name == "pin-value" {
                return Err(BadUri::PinValue);
            }
            let bytes = unescape(encoded).ok_or_else(bad)?;
            if name == "id" {
                uri.id = Some(bytes);
                continue;
            }
            let value = String::from_utf8(bytes).map_err(|_| bad())?;
            match name {
                "token" => uri.token = Some(value),
                "serial" => uri.serial = Some(value),
                "manufacturer" => uri.manufacturer = Some(value),
                "model" => uri.model = Some(value),
                "object" => uri.object = Some(value),
                "type" if value == "private" => {}
                "module-path" => uri.module = Some(value.into()),
                "pin-source" => {
                    let path = value.strip_prefix("file://").map(str::to_owned);
                    let path = path.or_else(|| value.strip_prefix("file:").map(str::to_owned));
                    uri.pin_source = Some(path.unwrap_or(value).into());
                }
                _ => return Err(BadUri::Attribute(name.to_owned())),
            }
        }
        if uri.object.is_none() && uri.id.is_none() {
            return Err(BadUri::NoKey);
        }
        Ok(uri)
    }
}

/// Undoes the percent signs.
fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut value = [0];
        hex::decode_to_slice([rest.next()?, rest.next()?], &mut value).ok()?;
        bytes.extend(value);
    }
    Some(bytes)
}

impl fmt::Display for TokenUri {
    /// For people: no module, no PIN.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let token = self.token.as_ref().or(self.serial.as_ref());
        match &self.object {
            Some(object) => write!(f, "key {object:?}")?,
            None => write!(
                f,
                "key {}",
                hex::encode(self.id.as_deref().unwrap_or_default())
            )?,
        }
        match token {
            Some(token) => write!(f, " on token {token:?}"),
            None => f.write_str(" on the token"),
        }
    }
}

impl TokenUri {
    fn matches(&self, info: &TokenInfo) -> bool {
        let same =
            |wanted: &Option<String>, found: &str| wanted.as_ref().is_none_or(|w| w == found);
        same(&self.token, info.label())
            && same(&self.serial, info.serial_number())
            && same(&self.manufacturer, info.manufacturer_id())
            && same(&self.model, info.model())
    }

    fn module(&self) -> anyhow::Result<PathBuf> {
        let named = self.module.clone();
        named
            .or_else(|| std::env::var_os(MODULE).map(PathBuf::from))
            .ok_or_else(|| {
                exit::hint(
                    exit::marked(
                        Kind::Environment,
                        format!("{self}: no PKCS #11 module named"),
                    ),
                    format!("add ?module-path=/path/to/module.so to the URI, or set {MODULE}"),
                )
            })
    }

    fn pin(&self) -> anyhow::Result<Option<AuthPin>> {
        let text = match &self.pin_source {
            Some(path) => {
                let read = std::fs::read_to_string(path).map_err(|error| {
                    let place = path.display();
                    exit::marked(Kind::InvalidInput, format!("PIN file {place}: {error}"))
                })?;
                Some(Zeroizing::new(read))
            }
            None => std::env::var(PIN).ok().map(Zeroizing::new),
        };
        Ok(text.map(|text| AuthPin::new(text.trim_end_matches(['\r', '\n']).into())))
    }
}

/// A private key on a token, after the login.
#[derive(Debug)]
pub struct Token {
    name: String,
    public: Vec<u8>,
    key: ObjectHandle,
    session: Mutex<Session>,
}

impl Token {
    /// Finds the one token and the one key that a URI names, and logs in.
    ///
    /// # Errors
    /// Kind `Environment` where the module or the token is missing; else what the token says.
    pub fn open(uri: &TokenUri) -> anyhow::Result<Self> {
        let name = uri.to_string();
        let module = uri.module()?;
        let context = Pkcs11::new(&module).map_err(|error| {
            let place = module.display();
            exit::marked(
                Kind::Environment,
                format!("PKCS #11 module {place}: {error}"),
            )
        })?;
        let arguments = CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK);
        match context.initialize(arguments) {
            // Another key of this process lies on the same kind of token.
            Ok(()) | Err(TokenError::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {}
            Err(error) => {
                let place = module.display();
                return Err(error).with_context(|| format!("start PKCS #11 module {place}"));
            }
        }
        let (slot, info) = find(&context, uri)?;
        let session = context
            .open_ro_session(slot)
            .with_context(|| format!("{name}: open a session"))?;
        if info.login_required() {
            let pin = uri.pin()?;
            if pin.is_none() && !info.protected_authentication_path() {
                return Err(exit::hint(
                    exit::marked(
                        Kind::Environment,
                        format!("{name}: the token asks for a PIN"),
                    ),
                    format!("add pin-source=file:/path to the URI, or set {PIN}"),
                ));
            }
            match session.login(UserType::User, pin.as_ref()) {
                Ok(()) | Err(TokenError::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => {}
                Err(error) => return Err(error).with_context(|| format!("{name}: log in")),
            }
        }
        let mut wanted = vec![
            Attribute::Class(ObjectClass::PRIVATE_KEY),
            Attribute::KeyType(KeyType::RSA),
        ];
        wanted.extend(
            uri.object
                .iter()
                .map(|o| Attribute::Label(o.clone().into())),
        );
        wanted.extend(uri.id.iter().map(|id| Attribute::Id(id.clone())));
        let found = session
            .find_objects(&wanted)
            .with_context(|| format!("{name}: look for it"))?;
        let [key] = found[..] else {
            return Err(exit::marked(
                Kind::InvalidInput,
                format!("{name}: found {} RSA keys, expected one", found.len()),
            ));
        };
        let public = public(&session, key).with_context(|| format!("{name}: its public half"))?;
        Ok(Self {
            name,
            public,
            key,
            session: Mutex::new(session),
        })
    }
}

fn find(context: &Pkcs11, uri: &TokenUri) -> anyhow::Result<(Slot, TokenInfo)> {
    let slots = context
        .get_slots_with_initialized_token()
        .context("list the tokens")?;
    let mut fitting = Vec::new();
    for slot in slots {
        let info = context.get_token_info(slot).context("look at a token")?;
        if uri.matches(&info) {
            fitting.push((slot, info));
        }
    }
    let count = fitting.len();
    match (fitting.pop(), count) {
        (Some(found), 1) => Ok(found),
        _ => Err(exit::marked(
            Kind::Environment,
            format!("{uri}: found {count} such tokens, expected one"),
        )),
    }
}

fn public(session: &Session, key: ObjectHandle) -> anyhow::Result<Vec<u8>> {
    let wanted = [AttributeType::Modulus, AttributeType::PublicExponent];
    let (mut modulus, mut exponent) = (None, None);
    for attribute in session.get_attributes(key, &wanted)? {
        match attribute {
            Attribute::Modulus(bytes) => modulus = Some(bytes),
            Attribute::PublicExponent(bytes) => exponent = Some(bytes),
            _ => {}
        }
    }
    let modulus = modulus.context("the token does not tell the modulus")?;
    let exponent = exponent.context("the token does not tell the exponent")?;
    Ok(der::list(
        SEQUENCE,
        &[&der::unsigned(&modulus), &der::unsigned(&exponent)],
    ))
}

impl Key for Token {
    fn public(&self) -> &[u8] {
        &self.public
    }

    fn sign(&self, message: &[u8]) -> anyhow::Result<Vec<u8>> {
        // The digest is made here: every token signs one, and not every token hashes.
        let digest = cms::digest_info(&Digest::of(message));
        let session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        session
            .sign(&Mechanism::RsaPkcs, self.key, &digest)
            .with_context(|| format!("{}: sign", self.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signing::certificate::Certificate;
    use crate::signing::tests::{key, named};
    use crate::signing::{Signer, authenticode};
    use edge::runner::Tool;

    #[test]
    fn a_uri_names_token_key_module_and_where_the_pin_is() {
        let uri: TokenUri = "pkcs11:token=Leap%20Serv;object=db;id=%01%aB;type=private\
                             ?module-path=/m.so&pin-source=file:/run/pin"
            .parse()
            .unwrap();
        assert_eq!(uri.token.as_deref(), Some("Leap Serv"));
        assert_eq!(uri.id.as_deref(), Some(&[1, 0xab][..]));
        assert_eq!(uri.module, Some("/m.so".into()));
        assert_eq!(uri.pin_source, Some("/run/pin".into()));
        assert_eq!(uri.to_string(), "key \"db\" on token \"Leap Serv\"");
    }

    #[test]
    fn a_pin_in_the_uri_and_a_uri_without_a_key_are_refused() {
        let parse = |text: &str| text.parse::<TokenUri>().unwrap_err();
        assert_eq!(parse("pkcs11:object=db?pin-value=1234"), BadUri::PinValue);
        assert_eq!(parse("pkcs11:token=x"), BadUri::NoKey);
        assert_eq!(parse("pkcs11:objet=db"), BadUri::Attribute("objet".into()));
        assert_eq!(parse("pkcs11:object=%4"), BadUri::Form("object=%4".into()));
        assert_eq!(
            parse("pkcs11:object=%ff"),
            BadUri::Form("object=%ff".into())
        );
        assert_eq!(parse("db.key"), BadUri::Form("db.key".into()));
    }

    const SOFTHSM: &str = "/usr/lib/softhsm/libsofthsm2.so";

    /// Runs in a process of its own: SoftHSM finds its tokens by the environment.
    #[test]
    fn a_token_signs_as_the_file_of_the_same_key_does() {
        const STAGE: &str = "LEAP_TEST_TOKEN";
        if let Some(stage) = std::env::var_os(STAGE) {
            return on_a_token(std::path::Path::new(&stage));
        }
        let stage = tempfile::tempdir().unwrap();
        let place = |name: &str| stage.path().join(name);
        std::fs::create_dir(place("tokens")).unwrap();
        let conf = format!("directories.tokendir = {}\n", place("tokens").display());
        std::fs::write(place("softhsm2.conf"), conf).unwrap();
        let softhsm = |arguments: &[&str]| {
            let tool = Tool::new("softhsm2-util").args(arguments);
            tool.env("SOFTHSM2_CONF", place("softhsm2.conf"))
                .run()
                .unwrap();
        };
        let pem = crate::signing::key::generate().unwrap();
        std::fs::write(place("key.pem"), pem.as_bytes()).unwrap();
        std::fs::write(place("pin"), "4321\n").unwrap();
        softhsm(&[
            "--init-token",
            "--free",
            "--label",
            "Leap",
            "--so-pin",
            "8765",
            "--pin",
            "4321",
        ]);
        let file = place("key.pem").display().to_string();
        softhsm(&[
            "--import", &file, "--token", "Leap", "--label", "db", "--id", "01", "--pin", "4321",
        ]);
        let this = "signing::token::tests::a_token_signs_as_the_file_of_the_same_key_does";
        let told = Tool::new(std::env::current_exe().unwrap())
            .args(["--exact", this, "--nocapture"])
            .env(STAGE, stage.path())
            .env("SOFTHSM2_CONF", place("softhsm2.conf"))
            .text()
            .unwrap();
        assert!(told.contains("1 passed"), "{told}");
    }

    fn on_a_token(stage: &std::path::Path) {
        let pem = std::fs::read_to_string(stage.join("key.pem")).unwrap();
        let file = crate::signing::key::FileKey::from_pem(&pem).unwrap();
        let pin = stage.join("pin");
        let uri = |token: &str, object: &str, pin: &std::path::Path| {
            format!(
                "pkcs11:token={token};object={object}?module-path={SOFTHSM}&pin-source=file:{}",
                pin.display()
            )
            .parse::<TokenUri>()
            .unwrap()
        };
        let error = |uri: TokenUri| exit::render(&Token::open(&uri).unwrap_err());
        let wrong = stage.join("wrong");
        std::fs::write(&wrong, "9999").unwrap();
        let refused = error(uri("Leap", "db", &wrong));
        assert!(
            refused.contains("log in") && !refused.contains("9999"),
            "{refused}"
        );
        assert!(error(uri("Other", "db", &pin)).contains("found 0 such tokens"));
        assert!(error(uri("Leap", "kek", &pin)).contains("found 0 RSA keys"));
        assert!(error("pkcs11:object=db".parse().unwrap()).contains("module-path"));

        let token = Token::open(&uri("Leap", "db", &pin)).unwrap();
        assert_eq!(token.public(), file.public());
        assert_eq!(token.sign(b"x").unwrap(), file.sign(b"x").unwrap());
        // So a token's certificate and program are those of the file, to the byte.
        let of_token = Certificate::self_signed(&token, &named("db")).unwrap();
        let of_file = Certificate::self_signed(&file, &named("db")).unwrap();
        assert_eq!(of_token.der(), of_file.der());
        let program = authenticode::tests::program();
        let token = Signer::new(Box::new(token), of_token).unwrap();
        let file = Signer::new(Box::new(file), of_file).unwrap();
        assert_eq!(
            authenticode::sign(&token, &program).unwrap(),
            authenticode::sign(&file, &program).unwrap()
        );
        assert_ne!(file.certificate().public(), key().public());
    }
}
