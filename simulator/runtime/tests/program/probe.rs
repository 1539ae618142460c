//! What the tests of the runtime run: a static program that does as its arguments say and tells what came of it. Each
//! argument is `verb` or `verb=operand[,operand]`; standard library only, since rustc alone compiles it.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::process::{Command, exit};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

unsafe extern "C" {
    fn _exit(status: i32) -> !;
    fn getppid() -> i32;
    fn kill(pid: i32, signal: i32) -> i32;
    fn syscall(number: i64, ...) -> i64;
    fn setitimer(which: i32, new: *const i64, old: *mut i64) -> i32;
    fn sync();
    fn signal(number: i32, handler: usize) -> usize;
    fn mmap(at: *mut u8, length: usize, protection: i32, flags: i32, fd: i32, offset: i64) -> *mut u8;
    fn msync(at: *mut u8, length: usize, flags: i32) -> i32;
    fn munmap(at: *mut u8, length: usize) -> i32;
    fn madvise(at: *mut u8, length: usize, advice: i32) -> i32;
    fn posix_fadvise(fd: i32, offset: i64, length: i64, advice: i32) -> i32;
}

fn say(text: impl std::fmt::Display) {
    println!("{text}");
}

fn main() {
    for step in std::env::args().skip(1) {
        let (verb, operands) = step.split_once('=').unwrap_or((&step, ""));
        let operands: Vec<&str> = operands.split(',').collect();
        act(verb, &operands);
    }
}

fn act(verb: &str, operands: &[&str]) {
    let path = operands[0];
    match verb {
        "environment" => std::env::vars().for_each(|(name, value)| say(format!("{name}={value}"))),
        "arguments" => std::env::args().for_each(say),
        "directory" => say(std::env::current_dir().unwrap().display()),
        "descriptors" => fs::read_dir("/proc/self/fd").unwrap().for_each(|fd| {
            if let Ok(target) = fs::read_link(fd.unwrap().path()) {
                say(target.display())
            }
        }),
        "capabilities" => {
            let status = fs::read_to_string("/proc/self/status").unwrap();
            status.lines().filter(|line| line.starts_with("Cap")).for_each(say);
        }
        "read" => match fs::read_to_string(path) {
            Ok(text) => say(text),
            Err(error) => say(format!("no {path}: {:?}", error.kind())),
        },
        "write" => fs::write(path, operands[1]).unwrap(),
        "fill" => fs::write(path, vec![b'x'; operands[1].parse().unwrap()]).unwrap(),
        "try-write" => say(format!("{:?}", fs::write(path, "x").map_err(|error| error.raw_os_error()))),
        "mode" => {
            let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(path).unwrap().permissions());
            say(format!("{:o}", mode & 0o7777));
        }
        "mkdir" => fs::create_dir(path).unwrap(),
        "link" => std::os::unix::fs::symlink(operands[1], path).unwrap(),
        "remove" => fs::remove_file(path).unwrap(),
        "fsync" => {
            let result = File::open(path).unwrap().sync_all();
            say(format!("fsync returned {:?}", result.map_err(|error| error.raw_os_error())));
        }
        "sync" => {
            unsafe { sync() };
            say("sync returned");
        }
        // Stores through a mapping, each synced, and one more that is synced when the mapping is gone. Only the first moves
        // timestamps, and it is synced when they have long stood still.
        "map" => {
            let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
            let changed = || {
                let now = file.metadata().unwrap();
                let changed = Duration::new(now.ctime().try_into().unwrap(), now.ctime_nsec().try_into().unwrap());
                (now.modified().unwrap(), UNIX_EPOCH + changed)
            };
            let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
            let at = unsafe { mmap(std::ptr::null_mut(), 1, 3, 1, fd, 0) };
            let mut stores = operands[1].bytes();
            unsafe { at.write_volatile(stores.next().unwrap()) };
            let first = changed();
            // Several times what the runtime takes for recent.
            while SystemTime::now() < first.1 + Duration::from_millis(100) {
                std::thread::yield_now();
            }
            for store in stores {
                say(format!("msync returned {}", unsafe { msync(at, 1, 4) }));
                unsafe { at.write_volatile(store) };
            }
            unsafe { munmap(at, 1) };
            say(format!("fsync returned {:?}", file.sync_all().map_err(|error| error.raw_os_error())));
            assert_eq!(changed(), first, "a timestamp told");
        }
        // One write that takes long, since what it writes comes from a disk page by page; meanwhile, a sync.
        "write-slowly" => {
            let [from, other] = operands[1..] else { panic!("write-slowly=FILE,FROM,OTHER") };
            let mut file = OpenOptions::new().write(true).open(path).unwrap();
            let source = File::open(from).unwrap();
            source.sync_all().unwrap();
            let (fd, length) = (std::os::fd::AsRawFd::as_raw_fd(&source), source.metadata().unwrap().len() as usize);
            let source = unsafe {
                posix_fadvise(fd, 0, 0, 4);
                let at = mmap(std::ptr::null_mut(), length, 1, 1, fd, 0);
                madvise(at, length, 1);
                std::slice::from_raw_parts(at, length)
            };
            let changed = || fs::metadata(path).unwrap().modified().unwrap();
            let before = changed();
            std::thread::scope(|scope| {
                scope.spawn(|| assert_eq!(file.write(source).unwrap(), length));
                while changed() == before || SystemTime::now() < changed() + Duration::from_millis(100) {
                    std::thread::yield_now();
                }
                act("fsync", &[other]);
            });
            act("fsync", &[path]);
        }
        "all" => {
            let all = fs::read(path).unwrap();
            let first = all[0];
            say(format!("all {}: {}", first as char, all.iter().all(|byte| *byte == first)));
        }
        // Counts on, as often as asked: the number in one file, and one file named after it. Acknowledged once it is safe.
        "count" => {
            let [acknowledged, rounds] = operands[1..] else { panic!("count=DIRECTORY,FILE,ROUNDS") };
            for _ in 0..rounds.parse().unwrap() {
                let number = fs::read_to_string(format!("{path}/number")).map_or(0, |text| text.parse::<u32>().unwrap());
                fs::write(format!("{path}/number"), (number + 1).to_string()).unwrap();
                fs::write(format!("{path}/is-{}", number + 1), "").unwrap();
                let _ = fs::remove_file(format!("{path}/is-{number}"));
                File::open(path).unwrap().sync_all().unwrap();
                let mut file = OpenOptions::new().create(true).append(true).open(acknowledged).unwrap();
                file.write_all(format!("{}\n", number + 1).as_bytes()).unwrap();
            }
        }
        "counted" => {
            let mut names: Vec<_> =
                fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            say(format!("{} {}", fs::read_to_string(format!("{path}/number")).unwrap_or_default(), names.join(" ")));
        }
        // Ways around the barrier.
        "open-synchronous" => {
            let flags = operands[1].parse().unwrap();
            let opened = OpenOptions::new().write(true).create(true).custom_flags(flags).open(path);
            say(format!("{:?}", opened.map(drop).map_err(|error| error.raw_os_error())));
        }
        "syscall" => {
            let number: i64 = path.parse().unwrap();
            let flags: i64 = operands.get(1).map_or(0, |flags| flags.parse().unwrap());
            // The last argument is where pwritev2 has its flags.
            unsafe { syscall(number, -1i64, 0i64, 0i64, 0i64, 0i64, flags) };
            say(format!("{:?}", std::io::Error::last_os_error().raw_os_error()));
        }
        // fsync by its number for 32-bit programs, and by that for x32 programs.
        "foreign-call" => unsafe { std::arch::asm!("int 0x80", inout("eax") 118 => _) },
        "x32-call" => {
            unsafe { syscall(0x4000_0000 + 74, 0i64) };
        }
        // Threads that replace files atomically, one that moves a file to and fro, and a timer that interrupts them all.
        "storm" => {
            extern "C" fn ignore(_: i32) {}
            let each = [0i64, 1000, 0, 1000];
            unsafe {
                signal(14, ignore as *const () as usize);
                setitimer(0, each.as_ptr(), std::ptr::null_mut());
            }
            let rounds: u32 = operands[1].parse().unwrap();
            fs::create_dir(format!("{path}/a")).unwrap();
            fs::create_dir(format!("{path}/z")).unwrap();
            fs::write(format!("{path}/a/moved"), "here").unwrap();
            let done = std::sync::atomic::AtomicBool::new(false);
            std::thread::scope(|scope| {
                let writers: Vec<_> = (0..3)
                    .map(|writer| {
                        scope.spawn(move || {
                            for round in 0..rounds {
                                let (draft, file) = (format!("{path}/{writer}.new"), format!("{path}/{writer}"));
                                let mut new = File::create(&draft).unwrap();
                                write!(new, "{writer}:{round}").unwrap();
                                new.sync_all().unwrap();
                                fs::rename(draft, file).unwrap();
                                File::open(path).unwrap().sync_all().unwrap();
                            }
                        })
                    })
                    .collect();
                scope.spawn(|| {
                    while !done.load(std::sync::atomic::Ordering::Relaxed) {
                        fs::rename(format!("{path}/a/moved"), format!("{path}/z/moved")).unwrap();
                        fs::rename(format!("{path}/z/moved"), format!("{path}/a/moved")).unwrap();
                        std::thread::yield_now();
                    }
                });
                writers.into_iter().for_each(|writer| writer.join().unwrap());
                done.store(true, std::sync::atomic::Ordering::Relaxed);
            });
        }
        // Another step, in a process and a program of its own, or in a thread.
        "child" => {
            let step = operands.join(",");
            assert!(Command::new("/proc/self/exe").arg(step).status().unwrap().success());
        }
        "thread" => {
            let step = operands.join(",");
            let (verb, operands) = step.split_once('=').unwrap();
            std::thread::scope(|scope| scope.spawn(|| act(verb, &[operands])).join().unwrap());
        }
        "exit" => exit(path.parse().unwrap()),
        "abort" => std::process::abort(),
        "die" => {
            unsafe { kill(std::process::id() as i32, 15) };
        }
        // A grandchild that would outlive its parents, and tells so for as long as it lives.
        "orphan" => {
            let own = "/proc/self/exe";
            Command::new(own).arg("linger=".to_owned() + path).spawn().unwrap();
            while fs::metadata(path).is_err() {}
        }
        "linger" => {
            while unsafe { getppid() } != 1 {
                fs::write(path, "here").unwrap();
            }
            loop {
                fs::write(path, "still here").unwrap();
            }
        }
        "wait-for-signal" => {
            extern "C" fn handler(_: i32) {
                unsafe { _exit(42) }
            }
            unsafe { signal(15, handler as *const () as usize) };
            say("ready");
            std::io::stdout().flush().unwrap();
            let _ = std::io::stdin().read(&mut [0]);
            loop {
                std::thread::park();
            }
        }
        _ => panic!("unknown verb {verb}"),
    }
    std::io::stdout().flush().unwrap();
}
