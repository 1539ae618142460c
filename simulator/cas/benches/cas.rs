//! What CAS costs: durable acceptances beside one fsync on the same disk, and sessions when there are few and when there are
//! many. `make bench`, or `cargo bench -p scone-sim --bench cas [-- DIRECTORY]`; the directory's disk is the one measured.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use scone_protocol::Secret;
use scone_protocol::connection::{Address, Connection};
use scone_sim::cas::{Access, Cas, Claim};
use scone_sim::clock::Clock;
use scone_sim::daemon;
use scone_sim::session::decode_shared_secret;
use scone_sim::tls::{Client, Identity};
use totp_rs::{Algorithm, TOTP};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const MRENCLAVE: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const NOW: u64 = 1_800_000_000;
const STEP: u64 = 30;
const CLIENTS: usize = 64;
const FEW: usize = 1_000;
const MANY: usize = 100_000;

fn main() -> Result<()> {
    let disk = std::env::args().nth(1).filter(|argument| !argument.starts_with('-'));
    let home = tempfile::tempdir_in(disk.map_or_else(std::env::temp_dir, Into::into))?;
    let data = home.path().join("data");
    fs::create_dir(&data)?;
    let clock = home.path().join("clock");
    fs::write(&clock, NOW.to_string())?;
    let open = || Cas::open(&data, Clock::File(clock.clone()));
    let alice = Identity::generate("alice")?;
    let alice = Client { key_hash: alice.key_hash.clone(), certificate: alice.certificate_pem.clone() };

    println!("{:<52} {:>9} {:>9} {:>9}", "", "p50 ms", "p99 ms", "per s");
    let fsync = fsync(&home.path().join("fsync"))?;
    fsync.print("8 KiB written, one fsync");

    // Each session has a secret of its own, good for three codes: those of the window.
    let cas = open()?;
    cas.identity()?;
    upload(&cas, &alice, 0..FEW)?;
    let one = in_process(&cas, 1, 0..200)?;
    one.print("acceptance, 1 client, in process");
    let together = in_process(&cas, CLIENTS, 200..500)?;
    together.print(&format!("acceptance, {CLIENTS} clients, in process"));
    drop(cas);
    let server = Server::start(&data, &clock)?;
    server.accept(1, 500..600)?.print("acceptance, 1 client, over TLS");
    server.accept(CLIENTS, 600..1000)?.print(&format!("acceptance, {CLIENTS} clients, over TLS"));
    drop(server);
    println!(
        "{:<52} {:>9.1}",
        format!("acceptances in the time of one fsync, {CLIENTS} clients"),
        fsync.at(50).as_secs_f64() * together.per_second()
    );

    let cas = open()?;
    let few = sessions(&cas, &alice, FEW)?;
    // A thousand are there, and the thousand that were just created.
    upload(&cas, &alice, few.created..MANY)?;
    let many = sessions(&cas, &alice, MANY)?;
    println!();
    for ((what, few), (_, many)) in few.times.iter().zip(&many.times) {
        few.print(&format!("{what} one of {FEW} sessions"));
        many.print(&format!("{what} one of {MANY} sessions"));
        let ratio = many.at(50).as_secs_f64() / few.at(50).as_secs_f64();
        println!("{:<52} {ratio:>9.2}", format!("{what}: the one p50 to the other"));
    }
    drop(cas);

    println!();
    let server = Server::start(&data, &clock)?;
    server.accept(1, few.created..few.created + 100)?;
    let memory = server.resident()? as f64 / f64::from(1 << 20);
    println!("{:<52} {memory:>9.1} MiB", format!("resident memory of CAS, {MANY} sessions"));
    Ok(())
}

/// How long each of many took, and all together.
struct Times {
    sorted: Vec<Duration>,
    all: Duration,
}

impl Times {
    fn new(mut times: Vec<Duration>, all: Duration) -> Times {
        times.sort();
        Times { sorted: times, all }
    }

    fn of(count: usize, mut work: impl FnMut(usize) -> Result<()>) -> Result<Times> {
        let (start, mut times) = (Instant::now(), Vec::new());
        for turn in 0..count {
            let before = Instant::now();
            work(turn)?;
            times.push(before.elapsed());
        }
        Ok(Times::new(times, start.elapsed()))
    }

    fn at(&self, percent: usize) -> Duration {
        self.sorted[(self.sorted.len() - 1) * percent / 100]
    }

    fn per_second(&self) -> f64 {
        self.sorted.len() as f64 / self.all.as_secs_f64()
    }

    fn print(&self, what: &str) {
        let ms = |percent| self.at(percent).as_secs_f64() * 1e3;
        println!("{what:<52} {:>9.3} {:>9.3} {:>9.0}", ms(50), ms(99), self.per_second());
    }
}

fn fsync(path: &Path) -> Result<Times> {
    let mut file = File::create(path)?;
    Times::of(500, |_| {
        file.write_all(&[1; 8192])?;
        Ok(file.sync_data()?)
    })
}

fn secret(session: usize) -> String {
    // Base32 knows A-Z: 26 letters of the number's digits.
    format!("{session:032}").bytes().map(|digit| char::from(digit - b'0' + b'A')).collect()
}

/// The three codes that are good now.
fn codes(session: usize) -> Result<Vec<String>> {
    let secret = decode_shared_secret(&secret(session)).ok_or("not a secret")?;
    let totp = TOTP::new_unchecked(Algorithm::SHA1, 6, 0, STEP, secret);
    Ok([NOW - STEP, NOW, NOW + STEP].map(|time| totp.generate(time)).into())
}

fn policy(session: usize, variable: usize, predecessor: &str) -> String {
    format!(
        "name: s{session}\nversion: \"0.3.10\"\npredecessor: {predecessor}\nservices:\n  - name: s\n    command: /p\n    \
         attestation: [{{mrenclave: [{MRENCLAVE}]}}]\n    environment: {{V: \"{variable}\"}}\nsecurity:\n  attestation: \
         {{one_time_password_shared_secret: {}}}\n",
        secret(session)
    )
}

/// Creates sessions, many at a time.
fn upload(cas: &Cas, alice: &Client, sessions: std::ops::Range<usize>) -> Result<()> {
    spread(CLIENTS, sessions, |session| {
        cas.upload(&policy(session, 0, "~"), Some(alice))??;
        Ok(())
    })
    .map(drop)
}

/// Does something for each of a range, by so many threads at once.
fn spread(
    threads: usize,
    range: std::ops::Range<usize>,
    work: impl Fn(usize) -> Result<()> + Sync,
) -> Result<Vec<Duration>> {
    std::thread::scope(|scope| {
        let (work, range) = (&work, &range);
        let thread = |i| {
            scope.spawn(move || {
                let mine = range.clone().skip(i).step_by(threads);
                let timed = |item| {
                    let before = Instant::now();
                    work(item).map(|()| before.elapsed())
                };
                mine.map(timed).collect::<Result<Vec<_>>>()
            })
        };
        let threads: Vec<_> = (0..threads).map(thread).collect();
        let mut all = Vec::new();
        for thread in threads {
            all.extend(thread.join().map_err(|_| "a thread panicked")??);
        }
        Ok(all)
    })
}

fn in_process(cas: &Cas, clients: usize, sessions: std::ops::Range<usize>) -> Result<Times> {
    let codes: Vec<Vec<String>> = sessions.clone().map(codes).collect::<Result<_>>()?;
    let (mut times, start) = (Vec::new(), Instant::now());
    for turn in [0, 1, 2] {
        times.extend(spread(clients, sessions.clone(), |session| {
            let service = format!("s{session}/s");
            let access = Access { proof: None, exporter: [0; 32], nonce: "" };
            let code = Some(codes[session - sessions.start][turn].as_str());
            cas.configure(&Claim {
                service: &service,
                code,
                access,
                mrenclave: MRENCLAVE,
                signer: None,
                vouched: true,
            })?
            .map_err(|causes| causes.join(": "))?;
            Ok(())
        })?);
    }
    Ok(Times::new(times, start.elapsed()))
}

struct Sessions {
    times: Vec<(&'static str, Times)>,
    /// The first number that is free.
    created: usize,
}

fn sessions(cas: &Cas, alice: &Client, there: usize) -> Result<Sessions> {
    let count = 300;
    let mut hashes = Vec::new();
    let create = Times::of(count, |turn| {
        hashes.push(cas.upload(&policy(there + turn, 0, "~"), Some(alice))??.0);
        Ok(())
    })?;
    // Some of all, far apart.
    let some = |turn: usize| turn * (there / count);
    let read = Times::of(count, |turn| {
        cas.read(&format!("s{}", some(turn)), None, Some(alice))??;
        Ok(())
    })?;
    let update = Times::of(count, |turn| {
        cas.upload(&policy(there + turn, 1, &hashes[turn]), Some(alice))??;
        Ok(())
    })?;
    let verify = Times::of(count, |turn| {
        let session = some(turn);
        let answer = cas.read(&format!("s{session}"), None, Some(alice))??;
        let read_back = scone_sim::session::Session::parse(&answer.text)?;
        (read_back.hash() == answer.hash).then_some(()).ok_or_else(|| "another hash".into())
    })?;
    Ok(Sessions {
        times: vec![("create", create), ("read", read), ("update", update), ("verify", verify)],
        created: there + count,
    })
}

/// The real CAS.
struct Server {
    process: Child,
    address: Address,
    key: String,
    evidence_key: Secret,
}

impl Server {
    fn start(data: &Path, clock: &Path) -> Result<Server> {
        let mut process = Command::new(env!("CARGO_BIN_EXE_scone-sim"))
            .args(["cas", "--client-port", "0", "--enclave-port", "0", "--data"])
            .arg(data)
            .arg("--clock")
            .arg(clock)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let output = process.stdout.take().ok_or("no output")?;
        let lines: Vec<String> = BufReader::new(output).lines().take(3).collect::<std::io::Result<_>>()?;
        let evidence_key = daemon::evidence_key(data)?;
        let field = |name: &str| lines.iter().find_map(|line| line.strip_prefix(name)).ok_or("CAS did not start");
        let address = Address::parse(field("enclave: ")?).ok_or("no address")?;
        let key = field("key: ")?.to_owned();
        Ok(Server { process, address, key, evidence_key })
    }

    /// Each client on one connection; connecting is not timed.
    fn accept(&self, clients: usize, sessions: std::ops::Range<usize>) -> Result<Times> {
        let codes: Vec<Vec<String>> = sessions.clone().map(codes).collect::<Result<_>>()?;
        let ready = Barrier::new(clients + 1);
        std::thread::scope(|scope| {
            let (codes, sessions, ready) = (&codes, &sessions, &ready);
            let client = |i: usize| {
                scope.spawn(move || {
                    let runtime = Connection::connect(&self.address, Some(self.key.clone()), self.evidence_key.clone());
                    ready.wait();
                    let mut runtime = runtime.map_err(|error| error.causes().join(": "))?;
                    let mut times = Vec::new();
                    for turn in [0, 1, 2] {
                        for session in sessions.clone().skip(i).step_by(clients) {
                            let code = &codes[session - sessions.start][turn];
                            let before = Instant::now();
                            let answer = runtime.configure(&format!("s{session}/s"), Some(code), MRENCLAVE, None);
                            answer.map_err(|error| error.causes().join(": "))?;
                            times.push(before.elapsed());
                        }
                    }
                    Result::Ok(times)
                })
            };
            let threads: Vec<_> = (0..clients).map(client).collect();
            ready.wait();
            let (start, mut times) = (Instant::now(), Vec::new());
            for thread in threads {
                times.extend(thread.join().map_err(|_| "a client panicked")??);
            }
            Ok(Times::new(times, start.elapsed()))
        })
    }

    fn resident(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.process.kill().ok();
        self.process.wait().ok();
    }
}
