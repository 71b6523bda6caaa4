use std::process::ExitCode;

fn main() -> ExitCode {
    // A parser child closes itself off before any runtime or thread exists.
    if std::env::args().nth(1).as_deref() == Some("parser-child") {
        gristmill::extract::child::main();
    }
    gristmill::cli::main()
}
