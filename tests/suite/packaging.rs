//! The Debian package: what is on a machine after each step of its life.

use std::path::Path;
use std::process::{Command, Output};

fn run(command: &mut Command) -> Output {
    let ran = command.output().unwrap();
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{command:?}: {said}{}", String::from_utf8_lossy(&ran.stdout));
    ran
}

/// Of the program as it was built for the tests.
#[test]
fn the_package_is_installed_upgraded_removed_and_purged() {
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/debian");
    let built = run(Command::new(scripts.join("build.sh")).arg("--no-build").env("PROFILE", "dev"));
    let package = String::from_utf8(built.stdout).unwrap();
    let package = Path::new(env!("CARGO_MANIFEST_DIR")).join(package.trim());
    let checked = run(Command::new(scripts.join("check.sh")).arg(package));
    assert!(String::from_utf8(checked.stdout).unwrap().contains("installed, upgraded, removed and purged"));
}
