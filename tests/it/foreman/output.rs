//! Documents, colours, pipes, streams and the help.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use factoryline::line::Station;
use serde_json::json;

use super::{Bench, reads, recipe, said};

#[test]
fn every_reading_command_writes_one_document() {
    let bench = Bench::new();
    bench.finished("good");
    bench.failed("bad");
    let work = bench.layout.work_root().join("good");
    fs::create_dir_all(&work).unwrap();
    fs::write(work.join("worker.log"), "one\ntwo\n").unwrap();
    let commands: &[&[&str]] = &[
        &["status"],
        &["list"],
        &["list", "finished"],
        &["show", "bad"],
        &["explain", "good"],
        &["verify", "good"],
        &["wait", "bad"],
        &["logs", "good"],
        &["recover", "--dry-run"],
        &["stages"],
        &["families"],
        &["runners"],
        &["run", "--drain"],
    ];
    for words in commands {
        let words: Vec<&str> = words.iter().copied().chain(["--json"]).collect();
        let said = bench.foreman(&words);
        assert!(said.json().as_object().unwrap().len() > 1, "{words:?}");
        assert_eq!(said.err, "", "{words:?}");
    }
    assert_eq!(bench.foreman(&["logs", "good", "--json"]).json()["lines"], json!(["one", "two"]));
    assert_eq!(bench.foreman(&["logs", "good", "-n", "1"]).out, "two\n");
}

#[test]
fn colour_is_a_choice_and_a_closed_pipe_no_error() {
    let bench = Bench::new();
    bench.failed("bad");
    assert!(!bench.foreman(&["status"]).out.contains('\x1b'));
    assert!(bench.foreman(&["status", "--color", "always"]).out.contains('\x1b'));
    let quiet = said(bench.command(&["status"]).env("NO_COLOR", "1").output().unwrap());
    assert!(!quiet.out.contains('\x1b'));
    let log = factoryline::line::EventLog::new(&bench.layout, "here");
    for i in 0..3000 {
        log.append("line/test", None, json!({"i": i, "padding": "x".repeat(60)})).unwrap();
    }
    let mut child = bench.command(&["events"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let ended = child.wait_with_output().unwrap();
    assert_eq!((ended.status.code(), String::from_utf8(ended.stderr).unwrap()), (Some(0), String::new()));
}

#[test]
fn logs_follow_a_part_through_attempts_to_its_end() {
    let bench = Bench::new();
    bench.place(Station::Assembly, "now.alloy.json", &recipe("now", 0));
    let work = bench.layout.work_root().join("now");
    fs::create_dir_all(&work).unwrap();
    fs::write(work.join("worker.log"), "first attempt\n").unwrap();
    let child = bench.command(&["logs", "-f"]).stdout(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    fs::rename(work.join("worker.log"), work.join("worker.1.log")).unwrap();
    fs::write(work.join("worker.log"), "second attempt\n").unwrap();
    let (from, to) = (Station::Assembly, Station::Finished);
    let at = |station: Station| bench.layout.station(station).join("now.alloy.json");
    fs::rename(at(from), at(to)).unwrap();
    let ended = said(child.wait_with_output().unwrap());
    assert_eq!((ended.code, ended.out.as_str()), (0, "first attempt\nsecond attempt\n"));
}

#[test]
fn the_top_level_help() {
    let bench = Bench::new();
    let said = bench.foreman(&["-h"]);
    reads!(bench, said.all(), @r#"
    exit 0
    --- stdout
    Run a model-compression line: put recipes in, watch them being built, get measured models out

    Usage: foreman [OPTIONS] [COMMAND]

    Commands:
      init         Make a folder into a line: its stations and a commented factory_node.toml
      enqueue      Put recipes into intake
      seed         Put the catalogue's recipes into intake
      check        Check recipes as admission would, one line per finding
      plan         Show the resolved plan of a recipe: inputs found and hashed, defaults, predictions
      run          Work the line in the foreground, with live progress
      demo         Make a line in a new folder and build the demo part on it
      status       Show the line at a glance: being built, waiting and why, finished
      doctor       Examine the line and its machine: what is wrong, why, and what mends it
      list         List the parts of a station, numbered
      show         Show everything the disk knows about one part
      explain      Say why a part stands where it stands, and what to do next
      wait         Wait until parts are finished, and fail if one is not
      retry        Put parts back into intake
      defer        Park waiting parts until `foreman retry`
      cancel       Take parts off the line, with a reason that stays with them
      reorder      Give a waiting part another place in the queue
      pause        Start nothing more until `foreman resume`
      resume       End a pause: parts are started again
      recover      Bring the line back to order after a crash
      tail         Show the audit log: finished, sent back, recovered, retried
      events       Show the event stream
      logs         Show what the worker of a part wrote to its log
      storage      Show where things lie: tiers, caches, pins, the biggest work folders
      gc           Make room: move work folders nobody needs to cold tiers
      pin          Keep a part's work, a path or a model where it is, whatever `gc` would do
      unpin        Take a pin away
      demote       Move the artifact of a finished part to a cold tier
      assay        Measure a model on a text, or on lists of token ids
      inspect      Show what a model is: family, layers, experts, parameters, bytes by type
      verify       Hash an artifact again and open its models, and compare with what its result says
      frontier     Check artifacts against the contracts of ternary and binary frontiers
      stages       List the recipe stages this build executes
      families     List the model families this build can run and compress
      runners      List the runners that can measure a model
      completions  Write a shell's completion script to stdout
      man          Write the manual page to stdout, or all pages into a folder
      help         Print this message or the help of the given subcommand(s)

    Options:
          --root <DIR>    Folder of the line [default: the current folder if it is a line, else
                          .factory] [env: FACTORY_ROOT]
          --json          Write one JSON document to stdout (streams: one object per line)
          --color <WHEN>  When to colour the output [default: auto] [possible values: auto, always,
                          never]
      -h, --help          Print help (see more with '--help')
      -V, --version       Print version

    Without a command: status.

    Example:
      foreman demo
      foreman enqueue my.alloy.json && foreman run --drain

    Exit codes: 0 ok, 1 unexpected, 2 usage, 3 not found, 4 nothing matched, 5 part failed,
    6 timed out, 7 node not running, 8 lock held, 9 refused,
    10 and 11 what doctor found. See docs/OPERATOR.md.
    --- stderr
    "#);
    let page = bench.foreman(&["man"]).out;
    assert!(page.contains(".TH foreman") && page.contains("enqueue"));
    for shell in ["bash", "zsh", "fish"] {
        assert!(bench.foreman(&["completions", shell]).out.contains("enqueue"), "{shell}");
    }
}
