//! The programs of SCONE's tutorials, one for each `--cfg program="…"`; standard library only, since rustc alone compiles them.

#[cfg(program = "print-arg-env")]
fn main() {
    println!("argv: {}", std::env::args().collect::<Vec<_>>().join(" "));
    println!("environ:");
    std::env::vars().for_each(|(name, value)| println!("{name}={value}"));
    std::process::exit(42);
}

/// Says what its author likes, and shows that it was given the secrets.
#[cfg(program = "malicious-print-arg-env")]
fn main() {
    println!("argv: forged {}", std::env::args().count());
    println!("stolen: {}", std::env::var("CONF_ACCESS_TOKEN").unwrap_or_default());
}

#[cfg(program = "print-access-token")]
fn main() {
    match std::env::var("ACCESS_TOKEN") {
        Ok(token) => print!("{token}"),
        Err(_) => std::process::exit(1),
    }
}

#[cfg(program = "fprint-arg-env")]
fn main() {
    let arguments = std::env::args().collect::<Vec<_>>().join(" ");
    std::fs::write("/volume/output.txt", format!("arguments: {arguments}\n")).unwrap();
}

#[cfg(program = "print-file")]
fn main() {
    let path = std::env::args().nth(1).unwrap_or("/volume/output.txt".into());
    print!("{}", std::fs::read_to_string(path).unwrap());
}
