//! `gristmill bench`: that it measures and leaves nothing behind; what it measures is nobody's promise.

use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::cli::{command, run};
use crate::postgres::fresh_database;
use crate::world::World;

async fn figures(arguments: &[&str]) -> Vec<Value> {
    let database = fresh_database().await;
    let mut command = command(arguments);
    command.arg("--json").env("DATABASE_URL", &database.url);
    run(command).await.ok().json().as_array().expect("it is a list").clone()
}

#[tokio::test]
async fn a_small_run_stands_beside_its_floor() {
    let figures = figures(&["bench", "end-to-end", "--quick", "--rows", "30"]).await;
    let names: Vec<&str> = figures.iter().map(|figure| figure["name"].as_str().unwrap()).collect();
    assert_eq!(
        names,
        [
            "end-to-end",
            "end-to-end: worker's processor time",
            "end-to-end: worker's peak memory",
            "end-to-end: inputs of a request",
        ]
    );
    let rate = figures[0].as_object().unwrap();
    let keys: Vec<&String> = rate.keys().collect();
    assert_eq!(keys, ["name", "value", "unit", "floor", "ratio", "target", "met"]);
    assert!(["value", "floor", "ratio"].iter().all(|key| rate[*key].as_f64().unwrap() > 0.0), "{rate:?}");
    assert_eq!((&rate["unit"], &rate["target"]), (&"rows/s".into(), &"at least 0.7 of the floor".into()));
    assert!(rate["met"].is_boolean());
    assert!(figures[3]["value"].as_f64().unwrap() >= 1.0 && figures[3]["floor"].is_null());
}

#[tokio::test]
async fn rows_opened_again_are_paid_for_where_they_changed() {
    let figures = figures(&["bench", "again", "--quick", "--rows", "200"]).await;
    let paid: Vec<f64> = figures[..2].iter().map(|figure| figure["value"].as_f64().unwrap()).collect();
    assert_eq!(paid, [0.0, 1.0]);
    assert!(figures[..2].iter().all(|figure| figure["met"] == true));
}

#[tokio::test]
async fn every_bench_is_listed_with_what_it_measures() {
    let listed = run(command(&["bench", "--list", "--json"])).await.ok().json();
    let listed = listed.as_array().unwrap();
    assert_eq!(listed.len(), 12);
    assert!(listed.iter().all(|bench| !bench["name"].as_str().unwrap().is_empty() && bench["what"] != ""));
}

#[tokio::test]
async fn peers_that_nobody_names_are_a_mistake() {
    let ran = run(command(&["bench", "peers", "--quick"])).await;
    assert!(ran.code == 2 && ran.err.contains("--peer PROGRAM"), "{} {}", ran.code, ran.err);
}

#[tokio::test]
async fn a_peer_that_is_not_there_is_named() {
    let ran = run(command(&["bench", "peers", "--quick", "--rows", "30", "--peer", "/nonexistent"])).await;
    assert!(ran.code == 1 && ran.err.contains("--peer /nonexistent: No such file"), "{} {}", ran.code, ran.err);
}

#[tokio::test]
async fn a_peer_is_measured_on_the_same_rows() {
    let folder = tempfile::tempdir().unwrap();
    let peer = folder.path().join("nobody.sh");
    // Asks the provider once, and says that it has made them all.
    let script = "#!/bin/sh\ncase $1 in\nrun) curl -s -o /dev/null -d '{\"input\": [\"x\"]}' \"$OPENAI_BASE_URL/embeddings\" ;;\ncount) echo 3 ;;\nesac\n";
    std::fs::write(&peer, script).unwrap();
    std::fs::set_permissions(&peer, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let told = figures(&["bench", "peers", "--quick", "--rows", "30", "--peer", peer.to_str().unwrap()]).await;
    let names: Vec<&str> = told.iter().map(|figure| figure["name"].as_str().unwrap()).collect();
    let of = |what: &str| format!("nobody{what}, beside Gristmill");
    assert_eq!(names, [of(""), of(": processor time"), of(": peak memory")]);
    assert!(told[0]["floor"].as_f64().unwrap() > 0.0);
}

/// The worker of a bench, and the database that both work on.
async fn worker_of(bench: u32) -> (String, String) {
    let found = async {
        loop {
            // Children are listed with the thread that made them.
            let tasks = std::fs::read_dir(format!("/proc/{bench}/task")).expect("it runs");
            let listed = tasks.flatten().map(|task| task.path().join("children"));
            let children: Vec<String> = listed.filter_map(|path| std::fs::read_to_string(path).ok()).collect();
            let children = children.join(" ");
            for child in children.split_whitespace() {
                let command = std::fs::read_to_string(format!("/proc/{child}/cmdline")).unwrap_or_default();
                let config = command.split('\0').skip_while(|argument| *argument != "--config").nth(1);
                let config = config.and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
                if let Some(at) = config.find("gristmill_demo_") {
                    return (child.to_owned(), config[at..][.."gristmill_demo_01234567".len()].to_owned());
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_mins(1), found).await.expect("it starts a worker")
}

#[tokio::test]
async fn neither_an_interrupted_bench_nor_a_killed_one_leaves_a_worker_behind() {
    let world = World::new().await;
    for signal in ["-TERM", "-KILL"] {
        let mut bench = command(&["bench", "freshness", "--rows", "5000"]);
        let mut bench = bench.env("DATABASE_URL", &world.database.url).stderr(Stdio::null()).spawn().unwrap();
        let (worker, database) = worker_of(bench.id()).await;
        Command::new("kill").args([signal, &bench.id().to_string()]).status().unwrap();
        tokio::task::spawn_blocking(move || bench.wait()).await.unwrap().unwrap();
        if signal == "-TERM" {
            let left = format!("select count(*) from pg_database where datname = '{database}'");
            assert_eq!(world.value::<i64>(&left).await, 0);
        } else {
            let gone = format!("select not exists (select from pg_stat_activity where datname = '{database}')");
            world.wait_for(&gone).await;
            world.sql(&format!("drop database {database}")).await;
        }
        let command = std::fs::read_to_string(format!("/proc/{worker}/cmdline")).unwrap_or_default();
        assert!(!command.contains("--tethered"), "{command}");
    }
}
