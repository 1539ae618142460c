//! The QR code in terminals that people use: GNU screen and tmux, with and without an alternate screen. The test decodes what
//! they show and searches what they keep.

use std::fs;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::support::{Bundle, Outcome, Platform, User, phone, run, works};

/// So that a hang is seen as one; not an assertion about speed.
const PATIENCE: Duration = Duration::from_secs(60);

const GEN_QR: &str = "'../scripts/gen_qr' --terminal --no-confirm";
const ASKED: &str = "Scan it, then press Enter (Ctrl-C keeps it)";

/// A window of 120 by 50 in a tmux of its own, and in it a shell.
struct Window {
    bundle: Bundle,
    directory: PathBuf,
    /// How many commands have ended.
    ended: usize,
    /// Within it GNU screen shows the shell.
    is_screen: bool,
}

impl Window {
    /// With an account, whose QR code is not issued yet.
    fn new(alternate_screen: &str) -> Window {
        // Its socket's path must be short.
        let bundle = Bundle::new("bundle", Platform::SimNative, User::Caller, false);
        bundle.install(scripts!());
        bundle.script("create", &["--platform", "sim-native"]).expect(0);
        let window = Window { directory: bundle.root.join("window"), bundle, ended: 0, is_screen: false };
        fs::create_dir(&window.directory).expect("a directory");
        let settings = format!(
            "set -g alternate-screen {alternate_screen}\nset -g default-terminal tmux-256color\nset -g status off\n"
        );
        fs::write(window.directory.join("tmux.conf"), settings).expect("settings");
        window.tmux(&["-f", "tmux.conf", "new-session", "-d", "-x", "120", "-y", "50", "sh", "-i"]);
        window
    }

    /// In it, GNU screen.
    fn screen(alternate_screen: &str) -> Window {
        let mut window = Window::new("on");
        let settings = format!("startup_message off\naltscreen {alternate_screen}\ndefscrollback 1000\n");
        fs::write(window.directory.join("screenrc"), settings).expect("settings");
        window.type_line("exec screen -c screenrc -S screen sh -i");
        window.is_screen = true;
        window
    }

    fn run(&self, program: &str, args: &[&str]) -> Outcome {
        let mut command = self.bundle.command(program);
        command.args(args).current_dir(&self.directory);
        command
            .env("LC_ALL", "C.UTF-8")
            .env("PS1", "$ ")
            .env("ENV", "")
            .env("SCREENDIR", self.directory.join("screens"));
        run(command)
    }

    fn tmux(&self, args: &[&str]) -> String {
        self.run("tmux", &[&["-S", "tmux"], args].concat()).expect(0).stdout
    }

    fn press(&self, key: &str) {
        self.tmux(&["send-keys", key]);
    }

    fn type_line(&self, text: &str) {
        self.tmux(&["send-keys", "-l", text]);
        self.press("Enter");
    }

    /// What it shows.
    fn shown(&self) -> String {
        self.tmux(&["capture-pane", "-p"])
    }

    /// Waits until it shows this.
    #[track_caller]
    fn wait_for(&self, text: &str) {
        let started = Instant::now();
        while !self.shown().contains(text) {
            assert!(started.elapsed() < PATIENCE, "'{text}' does not come:\n{}", self.shown());
            sleep(Duration::from_millis(50));
        }
    }

    /// Waits until what runs in the shell ended with these words and this exit code.
    #[track_caller]
    fn ends(&mut self, said: &str, exit: i32) {
        self.wait_for(said);
        self.ended += 1;
        self.type_line(&format!("echo \"ended {}: $?\"", self.ended));
        self.wait_for(&format!("ended {}: {exit}", self.ended));
    }

    /// The account whose QR code it shows.
    #[track_caller]
    fn scan(&self) -> phone::Account {
        self.wait_for(ASKED);
        phone::scan(&as_svg(&self.tmux(&["capture-pane", "-p", "-e"]))).expect("a QR code that a phone can read")
    }

    /// Asserts that nothing of the QR code is left: on the screen, on the one behind it, in what was scrolled away.
    #[track_caller]
    fn is_clean(&self) {
        let mut kept = self.tmux(&["capture-pane", "-p", "-S", "-"]);
        if self.is_screen {
            let copy = self.directory.join("hardcopy");
            let _ = fs::remove_file(&copy);
            self.run("screen", &["-S", "screen", "-X", "hardcopy", "-h", "hardcopy"]).expect(0);
            let started = Instant::now();
            // Written by the other process, as a whole.
            while !fs::read(&copy).is_ok_and(|copy| copy.ends_with(b"\n")) {
                assert!(started.elapsed() < PATIENCE, "screen writes nothing");
                sleep(Duration::from_millis(50));
            }
            kept.push_str(&String::from_utf8_lossy(&fs::read(&copy).expect("the copy")));
        }
        assert!(!kept.contains(['▀', '▄', '█']), "something of the QR code is left:\n{kept}");
        assert!(!kept.contains(ASKED), "{kept}");
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        if self.is_screen {
            self.run("screen", &["-S", "screen", "-X", "quit"]);
        }
        self.run("tmux", &["-S", "tmux", "kill-server"]);
    }
}

/// The half blocks among what is shown, in their colours.
fn as_svg(shown: &str) -> String {
    let mut path = String::new();
    let (mut width, mut height) = (0, 0);
    let lines = shown.lines().skip_while(|line| !line.contains(['▀', '▄', '█']));
    // The quiet zone's lines above are blank like all others.
    for (row, line) in lines.enumerate() {
        let (mut colours, mut x) = ((true, false), 0);
        for (number, part) in line.split("\x1b[").enumerate() {
            let cells = match part.split_once('m') {
                Some((codes, cells)) if number > 0 => {
                    colours = after(codes, colours);
                    cells
                }
                _ => part,
            };
            let (ink, paper) = colours;
            for cell in cells.chars() {
                let halves = match cell {
                    '█' => [ink, ink],
                    '▀' => [ink, paper],
                    '▄' => [paper, ink],
                    _ => [paper, paper],
                };
                for (y, _) in (2 * row..).zip(halves).filter(|(_, dark)| *dark) {
                    path.push_str(&format!("M{} {}h1v1h-1z", x + 4, y + 4));
                }
                x += 1;
            }
        }
        width = width.max(x + 8);
        height = 2 * row + 10;
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{}\" viewBox=\"0 0 {width} {height}\">\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/><path d=\"{path}\"/></svg>",
        8 * width,
        8 * height,
    )
}

/// Whether ink and paper are dark after these codes.
fn after(codes: &str, (ink, paper): (bool, bool)) -> (bool, bool) {
    match codes.replace(':', ";").as_str() {
        "" | "0" => (true, false),
        "39" => (true, paper),
        "49" => (ink, false),
        "38;5;16" => (true, paper),
        "38;5;231" => (false, paper),
        "48;5;16" => (ink, true),
        "48;5;231" => (ink, false),
        "38;5;16;48;5;231" => (true, false),
        other => panic!("a colour that nobody asked for: {other}"),
    }
}

/// The QR code is shown, suspended, interrupted, shown in a window that is made smaller, and scanned.
fn shown_and_taken_away(mut window: Window) {
    window.type_line(GEN_QR);
    let account = window.scan();
    assert_eq!(account.login, "alice");
    window.press("C-z");
    window.wait_for("Stopped");
    window.is_clean();
    window.type_line("fg");
    assert!(window.scan().secret == account.secret, "another secret's");
    window.press("C-c");
    window.ends("interrupted; the QR code waits in", 130);
    window.is_clean();

    window.type_line(GEN_QR);
    assert!(window.scan().secret == account.secret, "another secret's");
    for rows in ["20", "50", "20"] {
        window.tmux(&["resize-window", "-x", "120", "-y", rows]);
    }
    window.press("Enter");
    window.ends("issued, not confirmed", 0);
    window.is_clean();
    window.bundle.gen_qr(&[]).expect(5).saying("issued already");
}

#[test]
fn nothing_of_the_qr_code_stays_in_tmux() {
    if works("tmux", &["-V"], "apt-get install tmux") {
        shown_and_taken_away(Window::new("on"));
    }
}

#[test]
fn nothing_of_the_qr_code_stays_in_tmux_without_an_alternate_screen() {
    if works("tmux", &["-V"], "apt-get install tmux") {
        shown_and_taken_away(Window::new("off"));
    }
}

#[test]
fn nothing_of_the_qr_code_stays_in_gnu_screen_as_it_is_set_up() {
    if works("tmux", &["-V"], "apt-get install tmux") && works("screen", &["-v"], "apt-get install screen") {
        shown_and_taken_away(Window::screen("off"));
    }
}

#[test]
fn nothing_of_the_qr_code_stays_in_gnu_screen_with_an_alternate_screen() {
    if works("tmux", &["-V"], "apt-get install tmux") && works("screen", &["-v"], "apt-get install screen") {
        shown_and_taken_away(Window::screen("on"));
    }
}

#[test]
fn where_a_multiplexer_shows_no_blocks_the_qr_code_is_kept() {
    if !works("tmux", &["-V"], "apt-get install tmux") {
        return;
    }
    let mut window = Window::new("on");
    window.type_line("env -u TMUX LC_ALL=C tmux -S inner -f /dev/null new-session sh -i");
    window.type_line(GEN_QR);
    window.ends("that takes a UTF-8 locale, and LC_ALL is 'C'", 2);
    // A user who insists sees that it cannot be scanned, and has lost nothing.
    window.type_line(&format!("LC_ALL=C.UTF-8 {GEN_QR}"));
    window.wait_for(ASKED);
    window.wait_for("________");
    window.press("C-c");
    window.ends("interrupted; the QR code waits in", 130);
    window.type_line("exit");
    window.wait_for("[exited]");
    window.type_line(GEN_QR);
    assert_eq!(window.scan().login, "alice");
    window.press("Enter");
    window.ends("issued, not confirmed", 0);
}

/// The usual size of a terminal is too small for it: that is found out before it is issued.
#[test]
fn in_80_columns_and_24_rows_the_qr_code_is_not_shown() {
    if !works("tmux", &["-V"], "apt-get install tmux") || !works("screen", &["-v"], "apt-get install screen") {
        return;
    }
    for mut window in [Window::new("on"), Window::screen("off")] {
        window.wait_for("$");
        window.tmux(&["resize-window", "-x", "80", "-y", "24"]);
        window.type_line("clear; until [ \"$(stty size)\" = '24 80' ]; do :; done; stty size");
        window.wait_for("24 80\n");
        window.type_line(GEN_QR);
        window.ends("and it reports 80 and 24", 2);
        window.type_line("LC_ALL=C; export LC_ALL");
        window.type_line(GEN_QR);
        window.ends("LC_ALL is 'C'", 2);
        window.bundle.gen_qr(&["--output", "file.svg"]).expect(0);
    }
}
