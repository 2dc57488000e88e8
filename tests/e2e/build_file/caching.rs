//! What a build remembers, and what makes it do something anew.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use super::base::{self, arguments, build, build_text, config, containerfile, context, read};
use crate::support::needs_root;
use crate::support::sandbox::Sandbox;

/// Whether each layer that a build says it added was remembered, in order.
fn remembered(said: &str) -> Vec<bool> {
    let lines = said.lines().filter(|line| line.starts_with("--> "));
    lines.map(|line| line.contains("Using cache")).collect()
}

const TEXT: &str = "FROM base
COPY a.txt /a
RUN cat /a > /ran && date +%N >> /ran
COPY dir /dir
RUN cat /dir/one > /ran2
ENV x=1
";

#[test]
fn the_second_build_does_nothing() {
    needs_root!();
    let sandbox = Sandbox::new("cached");
    let lamina = base::with_base(&sandbox);
    let (context, file) = (context(&sandbox), containerfile(&sandbox, TEXT));
    let first = build(&lamina, &file, &context, "one", &[]);
    assert_eq!(remembered(&first), [false; 4], "{first}");
    let second = build(&lamina, &file, &context, "two", &[]);
    assert_eq!(remembered(&second), [true; 4], "{second}");
    let id = |name| config(&lamina, name)["id"].clone();
    assert_eq!(id("one"), id("two"), "the same file gave another image");

    // Times of files are not what they are.
    let touched = context.join("a.txt");
    let file_times = fs::FileTimes::new().set_modified(std::time::SystemTime::UNIX_EPOCH);
    fs::File::options()
        .write(true)
        .open(&touched)
        .unwrap()
        .set_times(file_times)
        .unwrap();
    let third = build(&lamina, &file, &context, "three", &[]);
    assert_eq!(remembered(&third), [true; 4], "{third}");
    assert_eq!(id("one"), id("three"));

    let anew = build(&lamina, &file, &context, "four", &["--no-cache"]);
    assert_eq!(remembered(&anew), [false; 4], "{anew}");
}

#[test]
fn what_changes_invalidates_what_comes_after() {
    needs_root!();
    let sandbox = Sandbox::new("changed");
    let lamina = base::with_base(&sandbox);
    let (context, file) = (context(&sandbox), containerfile(&sandbox, TEXT));
    let build = || build(&lamina, &file, &context, "image", &[]);
    build();
    fs::write(context.join("dir/one"), "changed\n").unwrap();
    let said = build();
    assert_eq!(remembered(&said), [true, true, false, false], "{said}");
    assert_eq!(read(&sandbox, &lamina, "image", "ran2"), "changed\n");
    // Permissions are a part of a file.
    fs::set_permissions(context.join("a.txt"), fs::Permissions::from_mode(0o600)).unwrap();
    let said = build();
    assert_eq!(remembered(&said), [false; 4], "{said}");
    // What is not copied is not asked for.
    fs::write(context.join("b.txt"), "changed\n").unwrap();
    let said = build();
    assert_eq!(remembered(&said), [true; 4], "{said}");
}

#[test]
fn arguments_and_the_environment_count() {
    needs_root!();
    let sandbox = Sandbox::new("arguments");
    let lamina = base::with_base(&sandbox);
    let context = sandbox.dir("context");
    let text =
        "FROM base\nRUN echo before > /before\nARG x=1\nRUN echo $x > /x\nUSER user\nRUN true\n";
    let file = containerfile(&sandbox, text);
    let build = |more: &[&str]| remembered(&build(&lamina, &file, &context, "image", more));
    assert_eq!(build(&[]), [false, false, false]);
    assert_eq!(build(&["--build-arg", "x=1"]), [true, true, true]);
    assert_eq!(build(&["--build-arg", "x=2"]), [true, false, false]);
    assert_eq!(read(&sandbox, &lamina, "image", "x"), "2\n");
    // A proxy changes nothing in the image; the command sees it all the same.
    let proxy = [
        "--build-arg",
        "x=2",
        "--build-arg",
        "http_proxy=http://127.0.0.1:1",
    ];
    assert_eq!(build(&proxy), [true, true, true]);
    let text = "FROM base\nRUN echo $http_proxy > /proxy\n";
    containerfile(&sandbox, text);
    build(&proxy);
    assert_eq!(
        read(&sandbox, &lamina, "image", "proxy"),
        "http://127.0.0.1:1\n"
    );
    let described = config(&lamina, "image").to_string();
    assert!(!described.contains("127.0.0.1"), "{described}");
    // What the file itself says counts, whatever its name.
    for asking in ["ENV http_proxy=", "ARG http_proxy="] {
        for value in ["one", "two"] {
            let text = format!("FROM base\n{asking}{value}\nRUN echo $http_proxy > /proxy\n");
            containerfile(&sandbox, &text);
            build(&[]);
            let seen = read(&sandbox, &lamina, "image", "proxy");
            assert_eq!(seen.trim(), value, "{asking}");
        }
    }
}

#[test]
fn a_layer_that_is_gone_is_made_again() {
    needs_root!();
    let sandbox = Sandbox::new("gone");
    let lamina = base::with_base(&sandbox);
    let text = "FROM base\nRUN echo x > /x\n";
    build_text(&sandbox, &lamina, text, "image");
    let layers = config(&lamina, "image")["layers"].clone();
    let last = layers
        .as_array()
        .unwrap()
        .last()
        .unwrap()
        .as_str()
        .unwrap()
        .to_owned();
    lamina.ok(["image", "rm", "image"]);
    lamina.ok(["gc"]);
    assert!(
        !lamina.ok(["layer", "ls", "--json"]).contains(&last),
        "the layer stayed"
    );
    let said = build_text(&sandbox, &lamina, text, "image");
    assert_eq!(remembered(&said), [false], "{said}");
    assert_eq!(read(&sandbox, &lamina, "image", "x"), "x\n");
}

#[test]
fn a_time_that_is_given_makes_images_the_same_everywhere() {
    needs_root!();
    let sandbox = Sandbox::new("reproducible");
    let text = "FROM base\nCOPY a.txt /made/here/\nRUN echo x > /x && mkdir /dir\nWORKDIR /work\nENV x=1\n";
    let (context, file) = (context(&sandbox), containerfile(&sandbox, text));
    let base = base::base_layer(&sandbox);
    let image = |number: u32| {
        let lamina = crate::support::lamina::Lamina::new(&sandbox)
            .with_store(&sandbox.join(format!("store-{number}")));
        lamina.build("base", std::slice::from_ref(&base));
        let mut command = lamina.command(arguments(&file, &context, "image", &[]));
        command.env("SOURCE_DATE_EPOCH", "1600000000");
        let id = crate::support::run(&mut command);
        let described = config(&lamina, "image");
        assert_eq!(
            described["config"]["created"], "2020-09-13T12:26:40Z",
            "{described}"
        );
        let mount = lamina.mount(&["--read-only", "image"], &sandbox.join("mnt"));
        let latest = |path: &str| {
            fs::metadata(mount.path().join(path))
                .unwrap()
                .modified()
                .unwrap()
        };
        for path in ["made/here/a.txt", "made", "x", "dir", "work"] {
            let since = latest(path).duration_since(std::time::UNIX_EPOCH).unwrap();
            assert!(
                since.as_secs() <= 1_600_000_000,
                "{path} is younger: {since:?}"
            );
        }
        mount.unmount();
        id
    };
    assert_eq!(image(1), image(2));
}

#[test]
fn four_hundred_instructions() {
    needs_root!();
    let sandbox = Sandbox::new("many-steps");
    let lamina = base::with_base(&sandbox);
    let context = context(&sandbox);
    let step = |number: u32| match number % 4 {
        0 => format!("COPY a.txt /copied/{number}\n"),
        1 => format!("ENV n=$n.{number}\n"),
        2 => format!("WORKDIR /work/{number}\n"),
        _ if number % 40 == 3 => format!("RUN echo {number} >> /ran\n"),
        _ => format!("LABEL l{number}=x\n"),
    };
    let steps: Vec<_> = (0..400).map(step).collect();
    let text = format!("FROM base\nENV n=0\n{}", steps.concat());
    let file = containerfile(&sandbox, &text);
    build(&lamina, &file, &context, "image", &[]);
    assert_eq!(read(&sandbox, &lamina, "image", "copied/396"), "a\n");
    assert_eq!(read(&sandbox, &lamina, "image", "ran").lines().count(), 10);
    let second = build(&lamina, &file, &context, "again", &[]);
    assert!(remembered(&second).iter().all(|cached| *cached), "{second}");
    // Nothing is kept of the stacks in between.
    let merged = fs::read_dir(lamina.store().join("merged")).unwrap().count();
    assert!(merged <= 2, "{merged} merged indexes");
}
