//! The runtime's side of the enclave API: one attested TLS 1.3 connection to CAS, renewed when it breaks.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::{Arc, OnceLock};
use std::thread::sleep;
use std::time::Duration;

use ring::digest::{SHA256, digest};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring as provider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};

use crate::signature::SignerIdentity;
use crate::{
    Configuration, EXPORTER_LABEL, End, Evidence, Hello, MAX_FRAME, ReadTag, Request, Response, Secret, SetTag,
    VolumeGrant, access_proof, hex, proves_access, unhex,
};

/// The enclave API's port (`reference/scone.md` section 5.4).
pub const DEFAULT_PORT: u16 = 18765;

const TIMEOUT: Duration = Duration::from_secs(20);

/// How long to wait before each further attempt to reach a CAS that broke off: it may be restarting.
const RETRIES: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_millis(200),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
];

/// Where CAS is: `host[:port]`, as `SCONE_CAS_ADDR` has it.
#[derive(Debug, Clone, PartialEq)]
pub struct Address {
    /// A name or a number; an IPv6 address without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl Address {
    /// Reads `host`, `host:port`, `[v6]` or `[v6]:port`; `None` if it is none of them.
    pub fn parse(text: &str) -> Option<Address> {
        let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, "")) => (host, None),
            Some((host, rest)) => (host, Some(rest.strip_prefix(':')?)),
            None => match text.split_once(':') {
                Some((host, port)) if !port.contains(':') => (host, Some(port)),
                _ => (text, None),
            },
        };
        let port = port.map_or(Some(DEFAULT_PORT), |port| port.parse().ok())?;
        (!host.is_empty()).then(|| Address { host: host.to_owned(), port })
    }
}

/// Service and code of a `SCONE_CONFIG_ID`, `session/service[@code]`. No name holds an `@`.
pub fn config_id_parts(text: &str) -> (&str, Option<&str>) {
    text.split_once('@').map_or((text, None), |(service, code)| (service, Some(code)))
}

/// What stopped the talk with CAS.
#[derive(Debug)]
pub enum Error {
    /// No connection, or not to the right CAS.
    Channel(io::Error),
    /// CAS said no: SCONE's `Caused by:` lines.
    Refused(Vec<String>),
}

impl Error {
    /// The `Caused by:` lines.
    pub fn causes(self) -> Vec<String> {
        match self {
            Error::Refused(causes) => causes,
            Error::Channel(error) => {
                let tls = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
                let detail = match tls {
                    // SCONE's words for a CAS that is not the one expected; rustls has changed its own since.
                    Some(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {
                        "invalid certificate: UnknownIssuer".to_owned()
                    }
                    _ if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                        format!("no answer within {} seconds", TIMEOUT.as_secs())
                    }
                    _ => error.to_string(),
                };
                vec!["Failed to establish an encrypted channel to CAS".to_owned(), "I/O error".to_owned(), detail]
            }
        }
    }
}

/// A CAS, and the connection to it.
pub struct Connection {
    addresses: Vec<SocketAddr>,
    tls: Arc<ClientConfig>,
    stream: StreamOwned<ClientConnection, TcpStream>,
    nonce: String,
    evidence_key: Secret,
    access_token: Option<String>,
}

impl Connection {
    /// Connects. `key`: the SHA-256 of the SubjectPublicKeyInfo that CAS must have, 64 lower-case hex digits; `None`
    /// takes any - but then the same throughout the run. `evidence_key`: what evidence is made with.
    pub fn connect(address: &Address, key: Option<String>, evidence_key: Secret) -> Result<Connection, Error> {
        // Resolved once: the program's root may know no names.
        let resolved = (address.host.as_str(), address.port).to_socket_addrs().map_err(Error::Channel)?;
        let addresses: Vec<_> = resolved.collect();
        let provider = Arc::new(provider::default_provider());
        let check = CasKey { expected: key.map_or_else(OnceLock::new, OnceLock::from), provider: provider.clone() };
        let mut tls = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| Error::Channel(io::Error::other(error)))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(check))
            .with_no_client_auth();
        tls.resumption = Resumption::disabled();
        let tls = Arc::new(tls);
        let (stream, nonce) = dial(&addresses, &tls).map_err(Error::Channel)?;
        Ok(Connection { addresses, tls, stream, nonce, evidence_key, access_token: None })
    }

    /// Demands that both ends know the service access token. Neither end tells it to the other.
    pub fn with_access_token(self, access_token: Option<String>) -> Connection {
        Connection { access_token, ..self }
    }

    /// Asks for the configuration of `service`, with evidence for measurement and signer bound to this very connection. Asked
    /// once: CAS takes a code only once.
    pub fn configure(
        &mut self,
        service: &str,
        code: Option<&str>,
        mrenclave: &str,
        signer: Option<&SignerIdentity>,
    ) -> Result<Configuration, Error> {
        let exporter = self.exporter().map_err(Error::Channel)?;
        let evidence = Evidence::new(mrenclave, signer, &exporter, &self.nonce, &self.evidence_key);
        let access_proof =
            self.access_token.as_ref().map(|token| access_proof(End::Runtime, token, &exporter, &self.nonce));
        let (service, code) = (service.to_owned(), code.map(str::to_owned));
        let request = Request::Configure { service, code, access_proof, evidence };
        match ask(&mut self.stream, &request).map_err(Error::Channel)? {
            Response::Configuration(configuration) => {
                let proof = configuration.access_proof.as_deref().unwrap_or_default();
                let proven = |token| proves_access(proof, End::Cas, token, &exporter, &self.nonce);
                if self.access_token.as_deref().is_none_or(proven) {
                    Ok(configuration)
                } else {
                    // Own wording: SCONE's is not documented.
                    Err(Error::Refused(vec!["CAS does not know the service access token".to_owned()]))
                }
            }
            Response::Refused { causes } => Err(Error::Refused(causes)),
            _ => Err(Error::Channel(unexpected("something else than a configuration"))),
        }
    }

    /// Moves a volume's tag. A CAS that breaks off may or may not have taken it, so it is asked again on a new connection:
    /// setting the tag it already holds succeeds.
    pub fn set_tag(&mut self, request: SetTag) -> Result<(), Error> {
        match self.ask_until_answered(|_| Ok(Request::SetTag(request.clone())))? {
            Response::TagSet => Ok(()),
            _ => Err(Error::Channel(unexpected("something else than a tag's receipt"))),
        }
    }

    /// Asks for the tag that the volume of this grant has now; `None`: none yet. The request is made anew for each connection.
    pub fn read_tag(&mut self, grant: &VolumeGrant) -> Result<Option<String>, Error> {
        let key = unhex(grant.key.expose()).unwrap_or_default();
        let request = |connection: &Connection| {
            let exporter = connection.exporter()?;
            Ok(Request::ReadTag(ReadTag::new(&grant.session, &grant.name, &exporter, &connection.nonce, &key)))
        };
        match self.ask_until_answered(request)? {
            Response::Tag { tag } => Ok(tag),
            _ => Err(Error::Channel(unexpected("something else than a tag"))),
        }
    }

    /// Asks, and asks again on a new connection when CAS breaks off.
    fn ask_until_answered(&mut self, request: impl Fn(&Connection) -> io::Result<Request>) -> Result<Response, Error> {
        let ask_once = |connection: &mut Connection| {
            let request = request(connection)?;
            ask(&mut connection.stream, &request)
        };
        let mut answer = ask_once(self);
        for pause in RETRIES {
            if answer.is_ok() {
                break;
            }
            sleep(pause);
            answer = dial(&self.addresses, &self.tls).and_then(|(stream, nonce)| {
                (self.stream, self.nonce) = (stream, nonce);
                ask_once(self)
            });
        }
        match answer.map_err(Error::Channel)? {
            Response::Refused { causes } => Err(Error::Refused(causes)),
            answer => Ok(answer),
        }
    }

    fn exporter(&self) -> io::Result<[u8; 32]> {
        self.stream.conn.export_keying_material([0; 32], EXPORTER_LABEL, None).map_err(io::Error::other)
    }
}

fn dial(
    addresses: &[SocketAddr],
    tls: &Arc<ClientConfig>,
) -> io::Result<(StreamOwned<ClientConnection, TcpStream>, String)> {
    let mut result = Err(io::Error::new(io::ErrorKind::NotFound, "the name of CAS has no address"));
    for address in addresses {
        result = TcpStream::connect_timeout(address, TIMEOUT);
        if result.is_ok() {
            break;
        }
    }
    let socket = result?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    socket.set_write_timeout(Some(TIMEOUT))?;
    socket.set_nodelay(true)?;
    // CAS is known by its key, not by a name.
    let name = ServerName::try_from("cas").map_err(io::Error::other)?;
    let connection = ClientConnection::new(tls.clone(), name).map_err(io::Error::other)?;
    let mut stream = StreamOwned::new(connection, socket);
    let hello: Hello = read_frame(&mut stream)?;
    Ok((stream, hello.nonce))
}

fn ask(stream: &mut StreamOwned<ClientConnection, TcpStream>, request: &Request) -> io::Result<Response> {
    let body = serde_json::to_vec(request)?;
    let length = u32::try_from(body.len()).ok().filter(|&length| length as usize <= MAX_FRAME);
    let length = length.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the request is too long"))?;
    stream.write_all(&[&length.to_be_bytes(), &body[..]].concat())?;
    stream.flush()?;
    read_frame(stream)
}

fn read_frame<T: serde::de::DeserializeOwned>(stream: &mut impl Read) -> io::Result<T> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length) as usize;
    if length > MAX_FRAME {
        return Err(unexpected("an oversized frame"));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    // serde's own text could quote a secret out of the frame.
    serde_json::from_slice(&body).map_err(|_| unexpected("a frame it should not have sent"))
}

fn unexpected(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("CAS sent {what}"))
}

/// Knows CAS by its public key alone: names, dates and issuers in its certificate do not matter.
#[derive(Debug)]
struct CasKey {
    /// Given by the caller, or else learnt from the first connection.
    expected: OnceLock<String>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for CasKey {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let key = hex(digest(&SHA256, &certificate.subject_public_key_info()).as_ref());
        if *self.expected.get_or_init(|| key.clone()) == key {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::UnknownIssuer.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 only".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_the_first_at_sign_is_the_code() {
        assert_eq!(config_id_parts("ns/s/v"), ("ns/s/v", None));
        assert_eq!(config_id_parts("ns/s/v@1@2"), ("ns/s/v", Some("1@2")));
        assert_eq!(config_id_parts("ns/s/v@"), ("ns/s/v", Some("")));
    }

    #[test]
    fn a_cas_that_says_nothing_is_told_as_such() {
        let causes = Error::Channel(io::ErrorKind::WouldBlock.into()).causes();
        assert_eq!(causes.last().map(String::as_str), Some("no answer within 20 seconds"));
    }

    #[test]
    fn an_address_is_a_host_and_perhaps_a_port() {
        for bad in ["", ":18765", "cas:", "cas:port", "cas:70000", "[::1]18765"] {
            assert_eq!(Address::parse(bad), None, "{bad}");
        }
        let address = |host: &str, port| Some(Address { host: host.to_owned(), port });
        assert_eq!(Address::parse("cas"), address("cas", 18765));
        assert_eq!(Address::parse("127.0.0.1:1"), address("127.0.0.1", 1));
        assert_eq!(Address::parse("::1"), address("::1", 18765));
        assert_eq!(Address::parse("[::1]:2"), address("::1", 2));
    }
}
