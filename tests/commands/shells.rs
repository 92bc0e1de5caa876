//! What shells and manuals are told of the commands.
#![cfg(feature = "cli")]

use crate::common::cli::{mixlora, output};
use std::collections::BTreeSet;

/// The commands that a help page lists, `help` aside.
fn listed(command: &[&str]) -> Vec<String> {
    let (out, _) = output(mixlora(&[command, &["--help"]].concat()), 0);
    let Some(list) = out.split("Commands:\n").nth(1) else { return Vec::new() };
    let lines = list.lines().take_while(|line| line.starts_with("  "));
    let names =
        lines.filter(|line| !line.starts_with("   ")).filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").map(String::from).collect()
}

#[test]
fn every_shell_has_a_script_of_all_commands() {
    let commands = listed(&[]);
    assert!(commands.len() > 8 && commands.contains(&"plot".to_string()), "{commands:?}");
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let (out, err) = output(mixlora(&["completions", shell]), 0);
        assert!(err.is_empty() && out.contains("smooth"), "{shell}: {err}");
        let missing: Vec<&String> = commands.iter().filter(|name| !out.contains(*name)).collect();
        assert!(missing.is_empty(), "{shell}: {missing:?}");
    }
    let (_, err) = output(mixlora(&["completions", "tcsh"]), 2);
    assert!(err.contains("bash"), "{err}");
}

/// Bash itself completes with it.
#[cfg(target_os = "linux")]
#[test]
fn bash_completes_a_command() {
    let script = output(mixlora(&["completions", "bash"]), 0).0;
    let ask = "\nCOMP_WORDS=(mixlora plo); COMP_CWORD=1; _mixlora mixlora plo mixlora; echo \"found:${COMPREPLY[*]}\"";
    let done = std::process::Command::new("bash").args(["-c", &(script + ask)]).output();
    let Ok(done) = done else { return };
    let out = String::from_utf8_lossy(&done.stdout);
    assert_eq!(out.trim(), "found:plot", "{}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn every_command_has_a_manual_page() {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("man/man1");
    let (out, _) = output(mixlora(&["man", "--out", &to.to_string_lossy()]), 0);
    let mut expected = BTreeSet::from(["mixlora.1".to_string()]);
    let mut open: Vec<Vec<String>> = vec![Vec::new()];
    while let Some(path) = open.pop() {
        let words: Vec<&str> = path.iter().map(String::as_str).collect();
        for name in listed(&words) {
            let inner: Vec<String> = path.iter().cloned().chain([name]).collect();
            expected.insert(format!("mixlora-{}.1", inner.join("-")));
            open.push(inner);
        }
    }
    let names = std::fs::read_dir(&to)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    assert_eq!(names.collect::<BTreeSet<_>>(), expected);
    assert!(expected.contains("mixlora-ops-test.1"), "{expected:?}");
    assert!(out.starts_with(&format!("{} pages in", expected.len())), "{out}");
    let page = std::fs::read_to_string(to.join("mixlora-plot.1")).unwrap();
    assert!(page.contains(".TH mixlora-plot") && page.contains("Example: mixlora plot"), "{page}");
    std::fs::write(dir.path().join("file"), "").unwrap();
    let (_, err) = output(mixlora(&["man", "--out", &dir.path().join("file/man").to_string_lossy()]), 3);
    assert!(err.contains("cannot be created"), "{err}");
}
