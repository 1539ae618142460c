//! Peers that are slow, half open, too loud, or only noise, and too many of them: CAS's memory stays bounded, and the next
//! honest peer is served.

mod world;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Barrier};
use std::time::Duration;

use rustls::{ClientConnection, StreamOwned};
use scone_protocol::{EXPORTER_LABEL, Evidence, Hello, Request, Response};
use scone_sim::tls::{self, Identity};
use world::{MRENCLAVE, World};

type Stream = StreamOwned<ClientConnection, TcpStream>;

/// A handshaken connection to one of the ports.
fn dial(world: &World, address: &str) -> Stream {
    let identity = Identity::generate("a peer").unwrap();
    let config = Arc::new(tls::client(&identity, Some(&world.key)).unwrap());
    let connection = ClientConnection::new(config, "cas".try_into().unwrap()).unwrap();
    let mut stream = StreamOwned::new(connection, TcpStream::connect(address).unwrap());
    stream.sock.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.conn.complete_io(&mut stream.sock).unwrap();
    stream
}

fn send(stream: &mut impl Write, body: &[u8]) {
    stream.write_all(&u32::try_from(body.len()).unwrap().to_be_bytes()).unwrap();
    stream.write_all(body).unwrap();
    stream.flush().unwrap();
}

fn receive(stream: &mut impl Read) -> Vec<u8> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).unwrap();
    let mut body = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut body).unwrap();
    body
}

/// Both APIs serve who asks properly.
fn assert_serves(world: &World) {
    world.scone(&["session", "read", "ns"]).succeeds();
    world.configure("ns/otpqr/check", None, MRENCLAVE).unwrap();
}

/// CAS ended the connection without an answer, now or when its patience was over.
fn assert_closed(stream: &mut impl Read) {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => {}
        Err(error) => assert!(
            matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
            "{error:?}"
        ),
    }
    assert!(rest.is_empty(), "{}", String::from_utf8_lossy(&rest));
}

/// The CAS process's resident memory, in bytes.
fn resident(world: &World) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/status", world.process.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

#[test]
fn noise_is_answered_by_nothing_and_disturbs_nobody() {
    let world = World::with_policies();
    for address in [&world.client, &world.enclave] {
        // Before TLS: an HTTP request, zeroes, a record that promises more than there is.
        for noise in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 100], &[0x16, 3, 1, 0xff, 0xff, 1, 2, 3], &[0xff; 70_000]] {
            let mut stream = TcpStream::connect(address).unwrap();
            // CAS may have hung up before it is all out.
            stream.write_all(noise).ok();
            stream.shutdown(std::net::Shutdown::Write).ok();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).ok();
            // An alert at the most: a record of type 21.
            assert!(answer.is_empty() || answer[0] == 21, "{answer:?}");
        }
    }
    // After the handshake: no frame, no JSON, JSON that is no request, JSON as deep as fits, a frame of no bytes.
    let deep = format!("{}{}", "[".repeat(8000), "]".repeat(8000));
    for noise in
        [&b"\xff\xff\xff\xff"[..], b"\0\0\0\x04none", b"\0\0\0\x02{}", b"\0\0\0\0", b"\0\x10\0\0 too large a promise"]
    {
        let mut stream = dial(&world, &world.enclave);
        receive(&mut stream);
        stream.write_all(noise).unwrap();
        stream.flush().unwrap();
        assert_closed(&mut stream);
    }
    let mut stream = dial(&world, &world.enclave);
    receive(&mut stream);
    send(&mut stream, deep.as_bytes());
    assert_closed(&mut stream);
    // A request in all but its size.
    let mut stream = dial(&world, &world.enclave);
    receive(&mut stream);
    let evidence = Evidence::new(MRENCLAVE, None, &[0; 32], "", &world.evidence_key());
    let code = Some("1".repeat(17_000));
    let request = Request::Configure { service: "ns/otpqr/check".into(), code, access_proof: None, evidence };
    send(&mut stream, &serde_json::to_vec(&request).unwrap());
    assert_closed(&mut stream);
    assert_serves(&world);
}

#[test]
fn requests_sent_all_at_once_are_answered_one_by_one_in_order() {
    let world = World::with_policies();
    let mut stream = dial(&world, &world.enclave);
    let hello: Hello = serde_json::from_slice(&receive(&mut stream)).unwrap();
    let exporter = stream.conn.export_keying_material([0; 32], EXPORTER_LABEL, None).unwrap();
    let evidence = Evidence::new(MRENCLAVE, None, &exporter, &hello.nonce, &world.evidence_key());
    let services = ["ns/otpqr/check", "ns/nobody/check"];
    for turn in 0..200 {
        let service = services[turn % 2].to_owned();
        let request = Request::Configure { service, code: None, access_proof: None, evidence: evidence.clone() };
        send(&mut stream, &serde_json::to_vec(&request).unwrap());
    }
    for turn in 0..200 {
        let answer: Response = serde_json::from_slice(&receive(&mut stream)).unwrap();
        assert_eq!(matches!(answer, Response::Configuration(_)), turn % 2 == 0, "answer {turn}");
    }
}

#[test]
fn a_body_that_never_ends_is_refused_at_its_limit() {
    let world = World::with_policies();
    let mut stream = dial(&world, &world.client);
    stream.write_all(b"POST /session HTTP/1.1\r\nhost: cas\r\ntransfer-encoding: chunked\r\n\r\n").unwrap();
    let chunk = [b"10000\r\n".as_slice(), &[b'x'; 0x10000], b"\r\n"].concat();
    // CAS answers, or hangs up, long before this is out.
    let mut sent = 0;
    while sent < 1000 && stream.write_all(&chunk).and_then(|()| stream.flush()).is_ok() {
        sent += 1;
    }
    assert!(sent < 1000, "all {sent} chunks were taken");
    assert_serves(&world);
}

#[test]
fn thousands_of_connections_that_never_finish_keep_nobody_out_and_cost_bounded_memory() {
    let world = World::with_policies();
    let before = resident(&world);
    let mut stuck: Vec<TcpStream> = Vec::new();
    let mut frames: Vec<Stream> = Vec::new();
    for address in [&world.client, &world.enclave] {
        // More than there are places: silent ones, and ones that stop in the middle of a handshake.
        for turn in 0..700 {
            let mut stream = TcpStream::connect(address).unwrap();
            if turn % 2 == 0 {
                stream.write_all(&[0x16, 3, 1, 0x40, 0, 1]).unwrap();
            }
            stuck.push(stream);
        }
        assert_serves(&world);
    }
    // And ones that promise a request and never send the rest of it.
    for _ in 0..100 {
        let mut stream = dial(&world, &world.enclave);
        receive(&mut stream);
        stream.write_all(&[0, 0, 0x40, 0, b'{']).unwrap();
        stream.flush().unwrap();
        frames.push(stream);
    }
    assert_serves(&world);
    let grown = resident(&world).saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes for 1500 connections");
}

/// As long as CAS's patience: ten seconds.
#[test]
fn who_stops_in_the_middle_is_not_waited_for() {
    let world = World::with_policies();
    let silent = |address: &str| TcpStream::connect(address).unwrap();
    let mut half_a_handshake = silent(&world.client);
    half_a_handshake.write_all(&[0x16, 3, 1, 0x40, 0, 1]).unwrap();
    let mut half_a_head = dial(&world, &world.client);
    half_a_head.write_all(b"GET /v1/version HTTP/1.1\r\nhost: ").unwrap();
    let no_request = dial(&world, &world.enclave);
    let mut half_a_request = dial(&world, &world.enclave);
    half_a_request.write_all(&[0, 0, 0x40, 0, b'{']).unwrap();
    let plain = [silent(&world.client), silent(&world.enclave), half_a_handshake];
    let secured = [half_a_head, no_request, half_a_request];
    for stream in plain.iter().chain(secured.iter().map(|stream| &stream.sock)) {
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    }
    let ends = |stream: &mut dyn Read| match std::io::copy(stream, &mut std::io::sink()) {
        Ok(_) => {}
        Err(error) => assert_ne!(error.kind(), ErrorKind::WouldBlock, "CAS still waits"),
    };
    std::thread::scope(|scope| {
        plain.into_iter().for_each(|mut stream| drop(scope.spawn(move || ends(&mut stream))));
        secured.into_iter().for_each(|mut stream| drop(scope.spawn(move || ends(&mut stream))));
    });
    // A trusted runtime's program may run for as long as it likes.
    assert_serves(&world);
}

#[test]
fn a_thousand_honest_runtimes_at_once_are_all_served() {
    let world = World::with_policies();
    let start = Barrier::new(50);
    std::thread::scope(|scope| {
        for _ in 0..50 {
            scope.spawn(|| {
                let mut open: Vec<_> = Vec::new();
                start.wait();
                for _ in 0..20 {
                    // Kept open, as by programs that run: more than there are places.
                    let mut cas = world.connect();
                    cas.configure("ns/otpqr/check", None, MRENCLAVE, None).unwrap();
                    open.push(cas);
                }
            });
        }
    });
    assert_serves(&world);
}
