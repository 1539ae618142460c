//! CAS's two ports. Client API: HTTP/1.1 over TLS, for the CLI (`reference/scone.md` section 4.6). Enclave API:
//! `scone_protocol` over TLS, for runtimes. Every connection is its own task. A peer that says nothing is let go; and as
//! long as others wait for a place, one that has been idle for more than a moment is let go at once, so that nobody can keep
//! others out by holding connections open.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Extension, Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response as HttpResponse};
use axum::routing::{get, post};
use axum::{Json, Router};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};
use rustls::ServerConfig;
use scone_protocol::{EXPORTER_LABEL, Hello, MAX_FRAME, Request, Response, Secret, hex};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore};
use tokio::task::{AbortHandle, spawn_blocking};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::codec::{Framed, LengthDelimitedCodec};

use futures_util::{SinkExt, StreamExt};

use crate::cas::{Access, Cas, CasError, Claim, ClientRefusal, SessionAnswer};
use crate::signing::MAX_SIGNED;
use crate::tls::Client;

/// A handshake, a request's head, a runtime's first request: each must come within this.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection of the client API is closed after this. The CLI makes one for each command.
const CLIENT_LIFETIME: Duration = Duration::from_secs(60);

/// Connections served at once, on each port; more wait in the listener's queue.
const MAX_CONNECTIONS: usize = 512;

/// Connections that wait for a place, on each port; the kernel lets further ones try again after a second.
const QUEUE: u32 = 1024;

/// How long an idle connection keeps its place when others wait for one. The peers that matter do not mind: the CLI is done
/// much sooner, and a runtime that finds its connection gone makes another.
const GRACE: Duration = Duration::from_secs(1);

/// The largest request of a runtime, in bytes; what CAS answers may be as large as the protocol allows.
const MAX_REQUEST: usize = 16 << 10;

/// Told to a peer when CAS itself fails; the reason goes to CAS's standard error.
const FAILED: &str = "CAS failed, see its log";

/// Serves the client API; returns only if the listener breaks.
pub async fn serve_clients(listener: TcpListener, tls: ServerConfig, cas: Arc<Cas>) -> std::io::Result<()> {
    let router = Router::new()
        .route("/session", post(upload))
        .route("/v1/sessions", get(list))
        .route("/v1/sessions/{*name}", get(read))
        .route("/v1/values/{*secrets}", get(values))
        .route("/v1/audit-log/{sequence}", get(checkpoint))
        .route("/v1/version", get(version))
        .route("/v1/attest", get(measurement))
        .layer(DefaultBodyLimit::max(MAX_SIGNED))
        .with_state(cas);
    serve(listener, tls, move |stream, _| {
        let router = router.clone();
        async move {
            let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
            let client = certificate.and_then(Client::from_certificate);
            let service = TowerToHyperService::new(router.layer(Extension(client)));
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .serve_connection(TokioIo::new(stream), service);
            // How a connection ends concerns the peer only: what it asked for is decided and recorded.
            timeout(CLIENT_LIFETIME, connection).await.ok();
        }
    })
    .await
}

/// Serves the enclave API; returns only if the listener breaks. `evidence_key`: what runtimes make evidence with.
pub async fn serve_runtimes(
    listener: TcpListener,
    tls: ServerConfig,
    cas: Arc<Cas>,
    evidence_key: Secret,
) -> std::io::Result<()> {
    let evidence_key = Arc::new(evidence_key);
    serve(listener, tls, move |stream, busy| {
        let (cas, evidence_key) = (cas.clone(), evidence_key.clone());
        async move {
            // A peer that breaks off or talks nonsense is not answered; what it asked for before is decided and recorded.
            converse(stream, cas, evidence_key, &busy).await.ok();
        }
    })
    .await
}

async fn serve<F>(
    listener: TcpListener,
    tls: ServerConfig,
    answer: impl Fn(TlsStream<TcpStream>, Arc<AtomicBool>) -> F + Clone + Send + Sync + 'static,
) -> std::io::Result<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let mut guests = Guests { places: Arc::new(Semaphore::new(MAX_CONNECTIONS)), connected: VecDeque::new() };
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // One peer's failure, or a shortage of file descriptors: it passes, but must not spin.
                eprintln!("scone-sim: cannot accept a connection: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        // Otherwise an answer would wait until the peer has acknowledged what came before it.
        if let Err(error) = stream.set_nodelay(true) {
            eprintln!("scone-sim: cannot serve a connection: {error}");
            continue;
        }
        let place = guests.place().await;
        let (acceptor, answer, busy) = (acceptor.clone(), answer.clone(), Arc::new(AtomicBool::new(false)));
        let theirs = busy.clone();
        let task = tokio::spawn(async move {
            if let Ok(Ok(stream)) = timeout(PATIENCE, acceptor.accept(stream)).await {
                answer(stream, theirs).await;
            }
            drop(place);
        });
        guests.connected.push_back(Guest { since: Instant::now(), busy, task: task.abort_handle() });
    }
}

/// The connections of a port, in the order in which they came.
struct Guests {
    places: Arc<Semaphore>,
    connected: VecDeque<Guest>,
}

struct Guest {
    since: Instant,
    /// CAS works on its request: it is not let go before it has the answer.
    busy: Arc<AtomicBool>,
    task: AbortHandle,
}

impl Guests {
    /// A place for one more. If all are taken, the oldest idle connection makes room, once its [`GRACE`] is over.
    async fn place(&mut self) -> Option<OwnedSemaphorePermit> {
        self.connected.retain(|guest| !guest.task.is_finished());
        loop {
            if let Ok(place) = self.places.clone().try_acquire_owned() {
                return Some(place);
            }
            let idle = |guest: &&Guest| {
                !guest.task.is_finished() && !guest.busy.load(Ordering::SeqCst) && guest.since.elapsed() > GRACE
            };
            if let Some(guest) = self.connected.iter().find(idle) {
                guest.task.abort();
            }
            // The semaphore is never closed; the time limit is for a guest whose grace ends meanwhile.
            if let Ok(place) = timeout(GRACE / 20, self.places.clone().acquire_owned()).await {
                return place.ok();
            }
        }
    }
}

/// The port's listener. Loopback only: see the crate's purpose.
pub async fn listen(port: u16) -> std::io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::from(([127, 0, 0, 1], port)))?;
    socket.listen(QUEUE)
}

/// Runs a decision where it may block on the disk.
async fn decide<T: Send + 'static>(
    cas: Arc<Cas>,
    work: impl FnOnce(&Cas) -> Result<T, CasError> + Send + 'static,
) -> Result<T, ()> {
    match spawn_blocking(move || work(&cas)).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => {
            eprintln!("scone-sim: error: {error}");
            Err(())
        }
        Err(panic) => {
            eprintln!("scone-sim: error: a decision ended early: {panic}");
            Err(())
        }
    }
}

type Peer = Extension<Option<Client>>;

async fn upload(State(cas): State<Arc<Cas>>, Extension(client): Peer, text: String) -> HttpResponse {
    match decide(cas, move |cas| cas.upload(&text, client.as_ref())).await {
        Ok(Ok((hash, new))) => {
            let status = if new { StatusCode::CREATED } else { StatusCode::OK };
            (status, Json(json!({ "hash": hash }))).into_response()
        }
        Ok(Err(refusal)) => refused(&refusal),
        Err(()) => failed(),
    }
}

#[derive(Deserialize)]
struct Version {
    hash: Option<String>,
}

/// What `GET /v1/sessions/NAME` answers.
#[derive(Serialize, Deserialize)]
pub struct SessionReply {
    /// The session hash.
    pub hash: String,
    /// The policy's text in normal form.
    pub session: String,
}

async fn read(
    State(cas): State<Arc<Cas>>,
    Extension(client): Peer,
    Path(name): Path<String>,
    Query(version): Query<Version>,
) -> HttpResponse {
    match decide(cas, move |cas| cas.read(&name, version.hash.as_deref(), client.as_ref())).await {
        Ok(Ok(SessionAnswer { hash, text })) => Json(SessionReply { hash, session: text }).into_response(),
        Ok(Err(refusal)) => refused(&refusal),
        Err(()) => failed(),
    }
}

async fn list(State(cas): State<Arc<Cas>>, Extension(client): Peer) -> HttpResponse {
    match decide(cas, move |cas| cas.list(client.as_ref())).await {
        Ok(names) => Json(json!({ "sessions": names })).into_response(),
        Err(()) => failed(),
    }
}

/// `session=NAME`, or `session=NAME,secret=NAME`. Assumption: the status 404, and the answer if all of a session's are asked for and
/// there is none.
async fn values(State(cas): State<Arc<Cas>>, Path(secrets): Path<String>) -> HttpResponse {
    let (id, secret) = secrets.split_once(",secret=").map_or((&*secrets, None), |(id, secret)| (id, Some(secret)));
    // No session has the empty name.
    let (session, asked) = (id.strip_prefix("session=").unwrap_or_default().to_owned(), secret.map(str::to_owned));
    let Ok(values) = decide(cas, move |cas| cas.public_values(&session, asked.as_deref())).await else {
        return failed();
    };
    let shown = |value| json!({ "kind": "string", "value": value, "expires": null, "renew": null });
    let mut values: BTreeMap<_, _> = values.into_iter().map(|(name, value)| (name, shown(value))).collect();
    let found = match secret {
        Some(name) => values.remove(name),
        None => (!values.is_empty()).then(|| json!({ "values": values })),
    };
    found.map_or_else(
        || {
            let what = secret.map_or("values".to_owned(), |name| format!("value '{name}'"));
            let what = format!("Failed to read {what} of '/{id}' requested by a public client");
            let why = "Secret does not exist or is not visible for a public client";
            (StatusCode::NOT_FOUND, Json(json!({ "msg": [what, why] }))).into_response()
        },
        |found| Json(found).into_response(),
    )
}

async fn checkpoint(State(cas): State<Arc<Cas>>, Path(sequence): Path<i64>) -> HttpResponse {
    match decide(cas, move |cas| cas.checkpoint(sequence)).await {
        Ok(checkpoint) => Json(checkpoint).into_response(),
        Err(()) => failed(),
    }
}

async fn version() -> Json<serde_json::Value> {
    Json(json!({ "version": env!("CARGO_PKG_VERSION"), "name": env!("CARGO_PKG_NAME") }))
}

/// What CAS says of itself. In SGX a quote would be here.
async fn measurement() -> HttpResponse {
    static MEASURED: OnceCell<String> = OnceCell::const_new();
    // The file that this process was started from: while it runs it can be replaced, but not changed.
    let measure = || std::fs::read("/proc/self/exe").map(|program| hex(digest(&SHA256, &program).as_ref()));
    match MEASURED.get_or_try_init(|| async { spawn_blocking(measure).await? }).await {
        Ok(mrenclave) => Json(json!({ "mrenclave": mrenclave })).into_response(),
        Err(error) => {
            eprintln!("scone-sim: error: cannot read its own program: {error}");
            failed()
        }
    }
}

fn refused(refusal: &ClientRefusal) -> HttpResponse {
    let status = match refusal {
        ClientRefusal::Invalid(_)
        | ClientRefusal::Exists
        | ClientRefusal::NoParent(_)
        | ClientRefusal::WrongNamespace
        | ClientRefusal::WrongCreator => StatusCode::BAD_REQUEST,
        ClientRefusal::WrongPredecessor => StatusCode::CONFLICT,
        ClientRefusal::Anonymous => StatusCode::UNAUTHORIZED,
        ClientRefusal::Denied(_) => StatusCode::FORBIDDEN,
        ClientRefusal::Unknown(_) | ClientRefusal::NoPredecessor(_) => StatusCode::NOT_FOUND,
    };
    (status, Json(json!({ "msg": [refusal.to_string()] }))).into_response()
}

fn failed() -> HttpResponse {
    (StatusCode::INTERNAL_SERVER_ERROR, Json(json!({ "msg": [FAILED] }))).into_response()
}

/// One runtime. Until its first request is granted it must hurry; afterwards it may stay as long as its program runs.
async fn converse(
    stream: TlsStream<TcpStream>,
    cas: Arc<Cas>,
    evidence_key: Arc<Secret>,
    busy: &AtomicBool,
) -> std::io::Result<()> {
    let exporter =
        stream.get_ref().1.export_keying_material([0; 32], EXPORTER_LABEL, None).map_err(std::io::Error::other)?;
    let mut nonce = [0; 32];
    SystemRandom::new().fill(&mut nonce).map_err(|_| std::io::Error::other("no random bytes"))?;
    let nonce = hex(&nonce);

    let codec = LengthDelimitedCodec::builder().length_field_length(4).max_frame_length(MAX_FRAME).new_codec();
    let mut frames = Framed::new(stream, codec);
    frames.send(Bytes::from(serde_json::to_vec(&Hello { nonce: nonce.clone() })?)).await?;
    let mut trusted = false;
    loop {
        frames.codec_mut().set_max_frame_length(MAX_REQUEST);
        let frame = if trusted { frames.next().await } else { timeout(PATIENCE, frames.next()).await? };
        let Some(frame) = frame else { return Ok(()) };
        let request: Request = serde_json::from_slice(&frame?)?;
        busy.store(true, Ordering::SeqCst);
        let (nonce, evidence_key) = (nonce.clone(), evidence_key.clone());
        let response = decide(cas.clone(), move |cas| respond(cas, &evidence_key, request, &exporter, &nonce)).await;
        let response = response.unwrap_or_else(|()| Response::Refused { causes: vec![FAILED.to_owned()] });
        trusted |= !matches!(response, Response::Refused { .. });
        frames.codec_mut().set_max_frame_length(MAX_FRAME);
        timeout(PATIENCE, frames.send(Bytes::from(serde_json::to_vec(&response)?))).await??;
        busy.store(false, Ordering::SeqCst);
    }
}

fn respond(
    cas: &Cas,
    evidence_key: &Secret,
    request: Request,
    exporter: &[u8; 32],
    nonce: &str,
) -> Result<Response, CasError> {
    Ok(match request {
        Request::Configure { service, code, access_proof, evidence } => {
            let claim = Claim {
                service: &service,
                code: code.as_deref(),
                mrenclave: &evidence.mrenclave,
                signer: evidence.signer.as_ref(),
                vouched: evidence.is_made_with(evidence_key, exporter, nonce),
                access: Access { proof: access_proof.as_deref(), exporter: *exporter, nonce },
            };
            match cas.configure(&claim)? {
                Ok(configuration) => Response::Configuration(configuration),
                Err(causes) => Response::Refused { causes },
            }
        }
        Request::SetTag(request) => match cas.set_tag(&request)? {
            Ok(()) => Response::TagSet,
            Err(causes) => Response::Refused { causes },
        },
        Request::ReadTag(request) => match cas.read_tag(&request, exporter, nonce)? {
            Ok(tag) => Response::Tag { tag },
            Err(causes) => Response::Refused { causes },
        },
    })
}
