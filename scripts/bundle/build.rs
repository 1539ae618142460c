//! Records what the library is compiled from; `fresh` compares it with what is there when a script starts.

use std::env;
use std::path::Path;

#[path = "src/fresh/digest.rs"]
mod digest;

fn main() {
    for source in ["src", "Cargo.toml", "build.rs"] {
        println!("cargo:rerun-if-changed={source}");
    }
    // Times do not show every change: a script that finds one sets this.
    println!("cargo:rerun-if-env-changed=OTPQR_SOURCE_DIGEST");
    let library = env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it");
    match digest::digest(Path::new(&library)) {
        Ok(digest) => println!("cargo:rustc-env=BUNDLE_DIGEST={digest}"),
        Err((path, cause)) => panic!("{}: {cause}", path.display()),
    }
}
