//! HTTP to a CAS, over TLS held to the key it was attested with.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::handshake;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::config::Address;
use super::{CliError, Result};
use crate::tls::{self, Identity};

/// The longest answer read, in bytes.
const MAX_ANSWER: usize = 4 << 20;

/// For connecting, and again for the answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// A CAS, and who talks to it.
pub struct Peer {
    /// Where it is.
    pub address: Address,
    /// The key hash it must have; `None`: any.
    pub key: Option<String>,
    /// Who talks to it.
    pub identity: Identity,
    /// How often to try to connect.
    pub retries: u32,
}

/// An answer.
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// Its name.
    pub reason: &'static str,
    /// The JSON body; null if it is none.
    pub body: Value,
}

impl Peer {
    /// `GET path`.
    pub fn get(&self, path: &str) -> Result<Reply> {
        self.request(Method::GET, path, String::new())
    }

    /// `POST path` with a text.
    pub fn post(&self, path: &str, text: String) -> Result<Reply> {
        self.request(Method::POST, path, text)
    }

    /// The key hash of the CAS's certificate.
    pub fn key_hash(&self) -> Result<String> {
        let stream = block_on(self.connect())?;
        let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        certificate.and_then(tls::key_hash).ok_or_else(|| self.failed("its certificate is not understood"))
    }

    /// The CAS's certificate, PEM.
    pub fn certificate(&self) -> Result<String> {
        let stream = block_on(self.connect())?;
        let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        certificate
            .map(|certificate| tls::pem(tls::CERTIFICATE, certificate))
            .ok_or_else(|| self.failed("it shows no certificate"))
    }

    fn failed(&self, cause: impl std::fmt::Display) -> CliError {
        CliError::new(format!("Cannot talk to CAS at '{}'", self.address.url()), cause.to_string())
    }

    async fn connect(&self) -> Result<TlsStream<TcpStream>> {
        let Address { host, port } = &self.address;
        let config = tls::client(&self.identity, self.key.as_deref()).map_err(|error| self.failed(error))?;
        let name = ServerName::try_from(host.clone()).map_err(|error| self.failed(error))?;
        let mut retries = 0;
        // Only connecting is tried again: a request that was sent may have been served.
        let stream = loop {
            match timeout(PATIENCE, TcpStream::connect((host.as_str(), *port))).await {
                Ok(Ok(stream)) => break stream,
                Err(_) => return Err(self.failed("no answer")),
                Ok(Err(error)) if retries >= self.retries => {
                    return Err(self.failed(format!("{error} (retries: {retries})")));
                }
                Ok(Err(_)) => {
                    retries += 1;
                    sleep(Duration::from_millis(100)).await;
                }
            }
        };
        match timeout(PATIENCE, TlsConnector::from(Arc::new(config)).connect(name, stream)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) if is_other_key(&error) => Err(self.failed(
                "the CAS has another key than when it was attested: it was set up anew, or it is not the CAS (see scone cas attest -c)",
            )),
            Ok(Err(error)) => Err(self.failed(error)),
            Err(_) => Err(self.failed("no answer")),
        }
    }

    fn request(&self, method: Method, path: &str, text: String) -> Result<Reply> {
        block_on(async {
            let stream = self.connect().await?;
            let (mut sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|error| self.failed(error))?;
            let request = Request::builder()
                .method(method)
                .uri(path)
                .header("host", format!("{}:{}", self.address.host, self.address.port))
                .header("content-type", "text/plain; charset=utf-8")
                .body(Full::new(Bytes::from(text)))
                .map_err(|error| self.failed(error))?;
            let exchange = async {
                let response = sender.send_request(request).await.map_err(|error| self.failed(error))?;
                let status = response.status();
                let body = Limited::new(response.into_body(), MAX_ANSWER)
                    .collect()
                    .await
                    .map_err(|error| self.failed(error))?;
                let body = serde_json::from_slice(&body.to_bytes()).unwrap_or(Value::Null);
                Ok(Reply { status: status.as_u16(), reason: status.canonical_reason().unwrap_or(""), body })
            };
            let answer = async {
                tokio::select! {
                    reply = exchange => reply,
                    // Driving the connection ends first only if it broke; then the exchange cannot be completed.
                    Err(error) = connection => Err(self.failed(error)),
                }
            };
            timeout(PATIENCE, answer).await.map_err(|_| self.failed("no answer"))?
        })
    }
}

/// The answer's body, or SCONE's error text.
pub fn accepted(peer: &Peer, reply: Reply) -> Result<Value> {
    let Reply { status, reason, body } = reply;
    if (200..300).contains(&status) {
        return Ok(body);
    }
    let what = format!("CAS at '{}' returned HTTP error status code {status} {reason}", peer.address.url());
    let causes = body["msg"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
    Err(CliError { what, causes, exit_code: 1 })
}

/// The pinned key was refused by our own verifier.
fn is_other_key(error: &std::io::Error) -> bool {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(tls, Some(rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer)))
}

fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::new("Cannot start", error.to_string()))?
        .block_on(future)
}
