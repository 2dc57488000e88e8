//! What goes wrong between a registry and a pull: what is said, what is left, and that the next pull
//! goes on from there.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::{Setting, pull};
use crate::support::lamina::wait_until;
use crate::support::layers::{Archive, noise};
use crate::support::proxy::Fault;
use crate::support::registry::Registry;
use crate::support::{describe, needs_root, output, run};

fn answer(status: u16, fields: &[(&'static str, &str)], text: &'static str) -> Fault {
    let fields = fields
        .iter()
        .map(|(name, value)| (*name, (*value).to_owned()));
    Fault::Answer(status, fields.collect(), text)
}

fn assert_says(said: &str, parts: &[&str]) {
    for part in parts {
        assert!(said.contains(part), "'{part}' is missing: {said}");
    }
}

#[test]
fn a_broken_connection_goes_on_where_it_was() {
    let setting = Setting::new("resume");
    let blob = format!("blobs/{}", setting.image.layers[0]);
    setting
        .proxy
        .on("GET", &blob, 1, Fault::BreakAfter(300_000));
    setting
        .proxy
        .on("GET", &blob, 1, Fault::BreakAfter(500_001));
    assert!(setting.pull(&["-q"]).contains(&setting.image.manifest));
    let seen = setting.proxy.take_seen();
    let ranges: Vec<_> = seen
        .iter()
        .filter(|seen| seen.path.contains(&blob))
        .collect();
    let ranges: Vec<_> = ranges.iter().map(|seen| seen.range.as_deref()).collect();
    assert_eq!(ranges, [None, Some("bytes=300000-"), Some("bytes=800001-")]);
}

#[test]
fn a_registry_that_knows_no_ranges_starts_anew() {
    let setting = Setting::new("no-range");
    let blob = format!("blobs/{}", setting.image.layers[0]);
    setting
        .proxy
        .on("GET", &blob, 1, Fault::BreakAfter(300_000));
    setting.proxy.on("GET", &blob, 1, Fault::IgnoreRange);
    assert!(setting.pull(&["-q"]).contains(&setting.image.manifest));
    assert_eq!(setting.asked(0), 2);
}

#[test]
fn a_connection_that_always_breaks_is_given_up() {
    let setting = Setting::new("broken");
    let blob = format!("blobs/{}", setting.image.layers[0]);
    setting.proxy.on("GET", &blob, 9, Fault::BreakAfter(1000));
    let said = setting.fails(&["--retry", "1"]);
    assert_says(
        &said,
        &[
            &setting.image.layers[0],
            "broke off 2 times",
            "after 2000 of",
        ],
    );
    setting.proxy.heal();
    setting.pull(&[]);
}

#[test]
fn blobs_that_are_not_what_they_should_be() {
    let setting = Setting::new("lies");
    let layer = setting.image.layers[0].clone();
    let blob = format!("blobs/{layer}");
    for (fault, parts) in [
        (Fault::Flip, &["is damaged: its digest is sha256:"][..]),
        (Fault::Shorten(7), &["bytes there, and", "by the manifest"]),
        (Fault::Lengthen(7), &["bytes there, and", "by the manifest"]),
        (
            Fault::Unmeasured(7),
            &["more than the", "bytes that the manifest says"],
        ),
    ] {
        setting.proxy.on("GET", &blob, 1, fault);
        let said = setting.fails(&["--retry", "0"]);
        assert_says(&said, parts);
        assert_says(&said, &[&layer]);
        setting.proxy.heal();
    }
    setting.pull(&[]);
}

#[test]
fn manifests_that_are_not_what_they_should_be() {
    let setting = Setting::new("manifests");
    let config = setting.image.config.clone();
    let manifest = "manifests/1";
    let html = "text/html; charset=utf-8";
    let page = answer(
        200,
        &[("content-type", html)],
        "<html>log in to the wifi</html>",
    );
    let empty = answer(200, &[("content-type", "application/json")], "{}");
    let old = r#"{"schemaVersion": 1, "fsLayers": []}"#;
    let old = answer(200, &[("content-type", "application/json")], old);
    for (path, fault, parts) in [
        (
            manifest,
            Fault::Flip,
            &["something else than the manifest of", "sha256:"][..],
        ),
        (
            manifest,
            page,
            &["does not answer like a registry", "text/html"],
        ),
        (
            manifest,
            empty,
            &["is neither that of an image nor an index"],
        ),
        (manifest, old, &["schema 1"]),
        (
            manifest,
            Fault::Lengthen(5 << 20),
            &["more than 4194304 bytes"],
        ),
        (
            &config,
            Fault::Flip,
            &["something else than the configuration", &config],
        ),
        (&config, Fault::Shorten(2), &["bytes there, and", &config]),
    ] {
        setting.proxy.on("GET", path, 1, fault);
        let said = setting.fails(&["--retry", "0"]);
        assert_says(&said, parts);
        assert_says(&said, &[&setting.proxy.address()]);
        setting.proxy.heal();
    }
    // What only says that it is something else is taken for what it is.
    setting
        .proxy
        .on("GET", manifest, 1, Fault::ContentType("application/json"));
    setting.pull(&[]);
}

#[test]
fn answers_that_mean_no() {
    let setting = Setting::new("no");
    let host = setting.proxy.address();
    let denied = r#"{"errors":[{"code":"DENIED","message":"requested access is denied"}]}"#;
    let login = format!("lamina login {host}");
    for (status, fields, text, parts) in [
        (
            401,
            &[][..],
            denied,
            &[login.as_str(), "requested access is denied"][..],
        ),
        (
            403,
            &[],
            denied,
            &["forbids access to", "(403: requested access is denied)"],
        ),
        (404, &[], "", &["does not have", "(404)"]),
        (
            418,
            &[],
            "I am\na teapot",
            &["refuses", "with 418: I am a teapot"],
        ),
        (
            429,
            &[("retry-after", "1000")],
            "",
            &["gives no more of", "ask again in 1000 s"],
        ),
        (
            503,
            &[],
            "<html>",
            &["failed 2 times to serve", "with 503", "Try again later"],
        ),
    ] {
        setting
            .proxy
            .on("GET", "manifests/1", 9, answer(status, fields, text));
        let said = setting.fails(&["--retry", "1"]);
        assert_says(&said, parts);
        assert_says(&said, &[&host, &setting.reference()]);
        setting.proxy.heal();
    }
    setting.pull(&[]);
}

#[test]
fn what_passes_is_waited_for() {
    let setting = Setting::new("passes");
    let blob = format!("blobs/{}", setting.image.layers[1]);
    setting
        .proxy
        .on("GET", "manifests/1", 2, answer(503, &[], ""));
    setting
        .proxy
        .on("GET", &blob, 1, answer(429, &[("retry-after", "1")], ""));
    setting.proxy.on("GET", &blob, 1, answer(500, &[], ""));
    setting.proxy.on("GET", &blob, 1, Fault::BreakAfter(0));
    setting.proxy.on(
        "GET",
        &blob,
        1,
        Fault::Slow(20_000, Duration::from_millis(5)),
    );
    setting.pull(&[]);
    assert_eq!(setting.asked(1), 4);
}

#[test]
fn a_silent_connection_counts_as_broken() {
    let setting = Setting::new("silent");
    let blob = format!("blobs/{}", setting.image.layers[0]);
    setting
        .proxy
        .on("GET", &blob, 1, Fault::StallAfter(200_000));
    setting.pull(&["--timeout", "1"]);
    assert_eq!(setting.asked(0), 2);
}

#[test]
fn layers_that_arrived_stay_when_another_fails() {
    let setting = Setting::new("arrived");
    let last = format!("blobs/{}", setting.image.layers[2]);
    setting.proxy.on("GET", &last, 1, answer(404, &[], ""));
    let said = setting.fails(&["--jobs", "1"]);
    assert_says(&said, &[&setting.image.layers[2], "(404)"]);
    assert_eq!(setting.entries("layers").len(), 2);
    setting.proxy.take_seen();
    setting.pull(&[]);
    assert_eq!([0, 1, 2].map(|layer| setting.asked(layer)), [0, 0, 1]);
}

#[test]
fn a_killed_pull_is_continued() {
    let setting = Setting::new("killed-pull");
    let last = format!("blobs/{}", setting.image.layers[0]);
    setting
        .proxy
        .on("GET", &last, 1, Fault::StallAfter(900_000));
    let mut command = setting.command(&[]);
    let mut child = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("two layers to arrive", || {
        setting.entries("layers").len() == 2
    });
    // The store's owner may clear up meanwhile: it waits for the pull, or leaves its layers.
    child.kill().unwrap();
    child.wait().unwrap();
    setting.proxy.take_seen();
    assert!(setting.pull(&["-q"]).contains(&setting.image.manifest));
    assert_eq!([0, 1, 2].map(|layer| setting.asked(layer)), [1, 0, 0]);
    assert_eq!(setting.entries("staging"), Vec::<String>::new());
}

#[test]
fn two_pulls_of_an_image_at_once_fetch_it_once() {
    let setting = Setting::new("twice");
    for layer in &setting.image.layers {
        let slow = Fault::Slow(50_000, Duration::from_millis(10));
        setting.proxy.on("GET", &format!("blobs/{layer}"), 9, slow);
    }
    let start = || {
        let mut command = setting.command(&["--json"]);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let pulls = [start(), start(), start()];
    for pull in pulls {
        let output = pull.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", describe(&output));
    }
    assert_eq!([0, 1, 2].map(|layer| setting.asked(layer)), [1, 1, 1]);
    assert_eq!(setting.entries("staging"), Vec::<String>::new());
}

#[test]
fn a_full_disk_leaves_nothing_half_written() {
    needs_root!();
    let setting = Setting::new("full-pull");
    let disk = setting.sandbox.dir("disk");
    run(Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=2m", "tmpfs"])
        .arg(&disk));
    let lamina = setting.lamina.with_store(&disk.join("store"));
    let output = output(&mut pull(
        &setting.sandbox,
        &lamina,
        &setting.reference(),
        &[],
    ));
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_says(
        &said,
        &["No space left on device", disk.to_str().unwrap(), "--store"],
    );
    for part in ["staging", "images", "refs"] {
        let left = fs::read_dir(disk.join("store").join(part)).unwrap().count();
        assert_eq!(left, 0, "{part}");
    }
    run(Command::new("mount")
        .args(["-o", "remount,size=64m"])
        .arg(&disk));
    run(&mut pull(
        &setting.sandbox,
        &lamina,
        &setting.reference(),
        &[],
    ));
}

#[test]
fn a_layer_that_expands_to_too_much_is_refused() {
    let setting = Setting::new("bomb");
    let said = setting.fails(&["--max-size", "1M", "--jobs", "1"]);
    assert_says(&said, &["expands to more than 1048576 bytes", "--max-size"]);
    setting.pull(&[]);
}

#[test]
fn memory_is_bounded_whatever_the_size_of_a_layer() {
    let setting = Setting::new("pull-memory");
    let registry = Registry::start(&setting.sandbox);
    let mut archive = Archive::new(&setting.sandbox, "huge.tar");
    for number in 0..64_u8 {
        archive = archive.file(&format!("{number}"), &noise(number, 4 << 20));
    }
    let mut layout = crate::support::layout::Layout::new(&setting.sandbox, "huge");
    layout.image("huge", &[archive.finish()], "none", "amd64");
    let name = format!("{}/huge", registry.address());
    layout.push("huge", &name, &[]);
    let lamina = setting.lamina.under(&["prlimit", "--data=200000000"]);
    run(&mut pull(&setting.sandbox, &lamina, &name, &[]));
}

#[test]
fn credentials_do_not_follow_to_another_host() {
    let setting = Setting::new("elsewhere");
    // Another registry has the blob; the first sends there.
    let blob = format!("blobs/{}", setting.image.layers[0]);
    let path = format!("/v2/team/app/{blob}");
    let other = crate::support::proxy::Proxy::start(setting.registry.address());
    let port = other.address().rsplit_once(':').unwrap().1.to_owned();
    let place = format!("http://localhost:{port}{path}");
    let fields = vec![("location", place)];
    setting
        .proxy
        .on("GET", &blob, 1, Fault::Answer(307, fields.clone(), ""));
    setting.proxy.want_tokens("Basic YWxpOm9wZW4gc2VzYW1l", 100);
    let auth = format!(
        r#"{{"auths": {{"{}": {{"auth": "YWxpOm9wZW4gc2VzYW1l"}}}}}}"#,
        setting.proxy.address()
    );
    let auth = setting.sandbox.file("auth.json", auth);
    let again = setting.lamina.with_store(&setting.sandbox.join("again"));
    setting.pull(&["--authfile", auth.to_str().unwrap()]);
    let seen = other.take_seen();
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert_eq!(seen[0].authorization, None);

    // Nor when it asks for them.
    let realm = format!(r#"Bearer realm="http://localhost:{port}/token",service="other""#);
    let asks = Fault::Answer(401, vec![("www-authenticate", realm)], "");
    other.on("GET", &blob, 5, asks);
    setting
        .proxy
        .on("GET", &blob, 5, Fault::Answer(307, fields, ""));
    let options = ["--authfile", auth.to_str().unwrap()];
    let failed = output(&mut pull(
        &setting.sandbox,
        &again,
        &setting.reference(),
        &options,
    ));
    assert_eq!(failed.status.code(), Some(1), "{}", describe(&failed));
    let seen = other.take_seen();
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert_eq!(seen[0].authorization, None);
}

#[test]
fn a_request_is_not_sent_around_for_ever() {
    let setting = Setting::new("around");
    let blob = format!("blobs/{}", setting.image.layers[0]);
    // Relative addresses, which lead to the same again.
    let fields = vec![("location", format!("/v2/team/app/{blob}"))];
    setting
        .proxy
        .on("GET", &blob, 1, Fault::Answer(302, fields.clone(), ""));
    setting.pull(&[]);
    let again = setting.lamina.with_store(&setting.sandbox.join("again"));
    setting
        .proxy
        .on("GET", &blob, 1000, Fault::Answer(302, fields, ""));
    let reference = setting.reference();
    let failed = output(&mut pull(&setting.sandbox, &again, &reference, &[]));
    let said = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert_eq!(failed.status.code(), Some(1), "{said}");
    assert!(said.contains("from one address to the next"), "{said}");
}
