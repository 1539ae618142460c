//! What a sync costs: a volume of 10 and of 10,000 files, one of them changed, beside one fsync on the same disk.
//! `cargo bench -p scone-run --bench volume [-- DIRECTORY]`; the directory's disk is the one that is measured.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use scone_protocol::{Secret, VolumeGrant, hex};
use scone_run::volume::Volume;

const ROUNDS: usize = 101;

const INSIDE: &str = "--inside";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // As in use: alone in a PID namespace, where every process can be asked what it has mapped.
    if !std::env::args().any(|argument| argument == INSIDE) {
        let mut unshare = Command::new("unshare");
        unshare.args(["--map-root-user", "--pid", "--fork", "--mount-proc"]).arg(std::env::current_exe()?);
        let status = unshare.args(std::env::args().skip(1)).arg(INSIDE).status()?;
        return if status.success() { Ok(()) } else { Err("it did not run".into()) };
    }
    let disk = std::env::args().nth(1).filter(|argument| !argument.starts_with('-'));
    let disk = disk.map_or_else(std::env::temp_dir, Into::into);
    // In use, a volume's plain files are in memory.
    let memory = Path::new("/dev/shm");

    println!("{:<44} {:>10} {:>10}", "ms", "p50", "p90");
    let directory = tempfile::tempdir_in(&disk)?;
    let path = directory.path().join("f");
    report("one file written, one fsync", |round| {
        let mut file = File::create(&path)?;
        file.write_all(&[round as u8; 100])?;
        Ok(file.sync_all()?)
    })?;
    // Kept to the end: ext4 is slow to create files where many were deleted a moment ago.
    let mut volumes = Vec::new();
    for files in [10, 10_000] {
        for replaced in [false, true] {
            let (sealed, plain) = (tempfile::tempdir_in(&disk)?, tempfile::tempdir_in(memory)?);
            let grant = VolumeGrant {
                session: "s".into(),
                name: "v".into(),
                path: "/v".into(),
                key: Secret::new(hex(&[7; 32])),
                ..VolumeGrant::default()
            };
            let mut volume = Volume::open(sealed.path(), plain.path(), &grant)?;
            let mut seal = || volume.seal(&mut |_, _| Ok(()));
            for file in 0..files {
                fs::write(plain.path().join(file.to_string()), file.to_string())?;
            }
            seal()?;
            std::thread::sleep(Duration::from_millis(50));
            seal()?;
            let file = plain.path().join("5");
            let draft = plain.path().join("5.new");
            let what = if replaced { "replaced" } else { "overwritten" };
            report(&format!("sync, one of {files} files {what}"), |round| {
                let to = if replaced { &draft } else { &file };
                fs::write(to, format!("round {round}"))?;
                if replaced {
                    fs::rename(&draft, &file)?;
                }
                Ok(seal()?)
            })?;
            report(&format!("sync, none of {files} files changed"), |_| Ok(seal()?))?;
            volumes.push((sealed, plain));
        }
    }
    Ok(())
}

fn report(
    what: &str,
    mut act: impl FnMut(usize) -> Result<(), Box<dyn std::error::Error>>,
) -> Result<(), Box<dyn std::error::Error>> {
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        let start = Instant::now();
        act(round)?;
        times.push(start.elapsed().as_secs_f64() * 1000.0);
    }
    times.sort_by(f64::total_cmp);
    println!("{what:<44} {:>10.2} {:>10.2}", times[ROUNDS / 2], times[ROUNDS * 9 / 10]);
    Ok(())
}
