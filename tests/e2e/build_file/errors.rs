//! Builds that fail say where and why, and leave nothing behind.

use std::fs;
use std::process::{Command, Stdio};

use super::base::{self, arguments, build, build_text, containerfile, context, read};
use crate::support::lamina::Lamina;
use crate::support::listing::mounts;
use crate::support::sandbox::Sandbox;
use crate::support::{describe, needs_root};

/// What a build of a text says when it fails; nothing is left of it.
fn failure(sandbox: &Sandbox, lamina: &Lamina, text: &str, more: &[&str]) -> String {
    let file = containerfile(sandbox, text);
    let context = sandbox.join("context");
    let result = lamina.output(arguments(&file, &context, "failed", more));
    let said = describe(&result);
    assert_eq!(result.status.code(), Some(1), "{text}\n{said}");
    let error = String::from_utf8(result.stderr).unwrap();
    let last = error.lines().last().unwrap_or_default().to_owned();
    assert!(last.starts_with("lamina: "), "{said}");
    assert!(!lamina.store().join("refs/failed").exists());
    let staging = fs::read_dir(lamina.store().join("staging"))
        .unwrap()
        .count();
    assert_eq!(staging, 0, "{text} left something in staging");
    assert_eq!(mounts(lamina, sandbox).len(), 0);
    last
}

/// Containerfiles, and what the message says of each.
const FAILURES: &[(&str, &[&str])] = &[
    (
        "FROM base\nRUN echo x && exit 3\n",
        &["Containerfile:2: RUN echo x && exit 3:", "status 3"],
    ),
    ("FROM base\nRUN no-such-program\n", &[":2:", "status 127"]),
    ("FROM base\nRUN [\"/no/such\"]\n", &[":2:"]),
    (
        "FROM base\n\nNONSENSE x\n",
        &["Containerfile:3:", "NONSENSE"],
    ),
    (
        "FROM base\nCOPY nowhere /x\n",
        &[
            ":2: COPY nowhere /x:",
            "'nowhere' is not in the build context",
        ],
    ),
    (
        "FROM base\nCOPY no*where /x\n",
        &[":2:", "'no*where' is not in"],
    ),
    (
        "FROM base\nCOPY no*where not?either /x/\n",
        &[":2:", "'no*where' is not in"],
    ),
    (
        "FROM base\nCOPY a.txt nowhere /x/\n",
        &[":2:", "'nowhere' is not in"],
    ),
    (
        "FROM base\nCOPY a.txt b.txt /x\n",
        &[":2:", "must end with '/'"],
    ),
    (
        "FROM base\nCOPY a.txt /etc/passwd/\n",
        &[":2:", "'/etc/passwd/' in the image is not a directory"],
    ),
    (
        "FROM base\nCOPY a.txt /etc/passwd/x\n",
        &[":2:", "leads through a file"],
    ),
    (
        "FROM base\nCOPY dir /etc/passwd\n",
        &[":2:", "is not a directory"],
    ),
    (
        "FROM base\nCOPY --from=nobody /x /x\n",
        &[":2:", "image 'nobody' is not in the store"],
    ),
    (
        "FROM base\nCOPY --chown=nobody a.txt /x\n",
        &[":2:", "no user 'nobody' in the image's /etc/passwd"],
    ),
    (
        "FROM base\nCOPY --chmod=u+x a.txt /x\n",
        &[":2:", "--chmod=u+x", "octal"],
    ),
    (
        "FROM base\nCOPY --nothing a.txt /x\n",
        &[":2:", "no option --nothing"],
    ),
    (
        "FROM nobody\n",
        &[
            ":1: FROM nobody:",
            "'nobody' is not in the store",
            "import or pull",
        ],
    ),
    ("FROM $nothing\n", &[":1:", "no values"]),
    (
        "FROM --platform=linux/s390x base\n",
        &[":1:", "linux/s390x", "linux/"],
    ),
    (
        "FROM base\nUSER nobody\nRUN true\n",
        &[":3: RUN true:", "no user 'nobody'"],
    ),
    (
        "FROM base\nWORKDIR /etc/passwd\n",
        &[":2:", "is not a directory"],
    ),
    (
        "FROM base\nENV alone\n",
        &[":2:", "'alone' is not NAME=value"],
    ),
    ("FROM base\nENV a=\"open\n", &[":2:", "never closed"]),
    ("FROM base\nENV a=\"${b:?say it}\"\n", &[":2:", "b: say it"]),
    ("FROM base\nEXPOSE many\n", &[":2:", "'many' is not a port"]),
    ("FROM base\nSTOPSIGNAL x\n", &[":2:", "'x' is not a signal"]),
    (
        "FROM base\nHEALTHCHECK --interval=soon CMD true\n",
        &[":2:", "--interval=soon"],
    ),
    (
        "FROM base\nRUN --mount=type=ssh true\n",
        &[":2:", "type=ssh"],
    ),
    (
        "FROM base\nRUN --mount=type=cache true\n",
        &[":2:", "it needs target="],
    ),
    (
        "FROM base\nRUN --mount=type=cache,target=/c,sharing=somehow true\n",
        &[":2:", "shared, private or locked"],
    ),
    (
        "FROM base\nRUN --mount=from=base,source=/no/such,target=/x true\n",
        &[":2:", "'/no/such' is not in image 'base'"],
    ),
    (
        "FROM base\nRUN --mount=type=secret,id=s,required true\n",
        &[":2:", "secret 's'", "--secret"],
    ),
    (
        "FROM base\nRUN --network=mine true\n",
        &[":2:", "host or none"],
    ),
    ("FROM scratch\nRUN true\n", &[":2:", "empty image"]),
    ("FROM base\nRUN cat <<EOF\nx\n", &["Containerfile:", "EOF"]),
];

#[test]
fn messages_name_file_line_and_instruction() {
    needs_root!();
    let sandbox = Sandbox::new("build-errors");
    let lamina = base::with_base(&sandbox);
    context(&sandbox);
    for (text, parts) in FAILURES {
        let message = failure(&sandbox, &lamina, text, &["--pull=never"]);
        for part in *parts {
            assert!(
                message.contains(part),
                "{text}\nwanted {part:?} in: {message}"
            );
        }
    }
    let message = failure(&sandbox, &lamina, "FROM base\n", &["--target", "nobody"]);
    assert!(message.contains("no stage is named 'nobody'"), "{message}");
    let message = failure(
        &sandbox,
        &lamina,
        "FROM base\nRUN true\n",
        &["--runtime", "/no/such"],
    );
    assert!(message.contains("no OCI runtime '/no/such'"), "{message}");
}

#[test]
fn large_files_are_not_read_into_memory() {
    needs_root!();
    let sandbox = Sandbox::new("build-large");
    let lamina = base::with_base(&sandbox);
    let context = context(&sandbox);
    let large = fs::File::create(context.join("passwd")).unwrap();
    large.set_len((16 << 20) + 1).unwrap();
    let text = "FROM base\nCOPY passwd /etc/\nCOPY --chown=user a.txt /a\n";
    let message = failure(&sandbox, &lamina, text, &[]);
    assert!(
        message.contains("/etc/passwd") && message.contains("is larger than 16 MiB"),
        "{message}"
    );
}

#[test]
fn wrong_usage() {
    let sandbox = Sandbox::new("build-usage");
    let lamina = Lamina::new(&sandbox);
    let empty = sandbox.dir("empty");
    let empty = empty.to_str().unwrap();
    let message = lamina.fails(1, ["build", empty]);
    assert!(
        message.contains("no Containerfile or Dockerfile"),
        "{message}"
    );
    fs::write(sandbox.join("empty/Dockerfile"), "FROM scratch\n").unwrap();
    for wrong in [
        ["build", "--label", "alone", empty],
        ["build", "--secret", "x", empty],
        ["build", "--platform", "windows/amd64", empty],
        ["build", "--network", "mine", empty],
    ] {
        lamina.fails(2, wrong);
    }
    let message = lamina.fails(1, ["build", "-t", "No Name", empty]);
    assert!(message.contains("No Name"), "{message}");
    let message = lamina.fails(1, ["build", "-f", "/no/such/file", empty]);
    assert!(message.contains("/no/such/file"), "{message}");
}

#[test]
fn nothing_outside_of_the_context_is_read() {
    let sandbox = Sandbox::new("build-hostile");
    let lamina = Lamina::new(&sandbox);
    let context = base::outside(&sandbox);
    for source in [
        "absolute",
        "relative",
        "up/outside-secret",
        "../outside-secret",
        "*/outside-secret",
        "loop",
        "/../outside-secret",
        "up/../../outside-secret",
    ] {
        let text = format!("FROM scratch\nCOPY {source} /x\n");
        let file = containerfile(&sandbox, &text);
        let result = lamina.output(arguments(&file, &context, "image", &[]));
        assert_eq!(
            result.status.code(),
            Some(1),
            "{source}: {}",
            describe(&result)
        );
    }
    // In a directory a link is copied as a link, wherever it leads.
    let file = containerfile(&sandbox, "FROM scratch\nCOPY . /x/\n");
    build(&lamina, &file, &context, "image", &[]);
    let found = Command::new("grep")
        .args(["-rq", "outside$"])
        .arg(lamina.store())
        .status();
    assert_eq!(
        found.unwrap().code(),
        Some(1),
        "what is outside is in the store"
    );
    crate::support::needs_root!();
    let mount = lamina.mount(&["--read-only", "image"], &sandbox.join("mnt"));
    let link = fs::read_link(mount.path().join("x/relative")).unwrap();
    assert_eq!(link.to_str(), Some("../outside-secret"));
    mount.unmount();
}

#[test]
fn links_of_the_image_lead_nowhere_else() {
    needs_root!();
    let sandbox = Sandbox::new("build-links");
    let lamina = base::with_base(&sandbox);
    let context = context(&sandbox);
    let victim = sandbox.dir("victim");
    let text = format!(
        "FROM base\nRUN ln -s {0} /out && ln -s ../../../../../..{0} /up-out && ln -s loop /loop\n\
         COPY a.txt /out/\nCOPY a.txt /up-out/\nWORKDIR /out/deeper\nRUN echo x > y\n",
        victim.display()
    );
    let file = containerfile(&sandbox, &text);
    build(&lamina, &file, &context, "image", &[]);
    assert_eq!(
        fs::read_dir(&victim).unwrap().count(),
        0,
        "something was written outside"
    );
    // A directory of the context that is a symbolic link to one in the image goes where that leads, and
    // the link stays: buildah replaces it, BuildKit refuses.
    let text = format!("{text}COPY onto-links /\n");
    containerfile(&sandbox, &text);
    build(&lamina, &file, &context, "image", &[]);
    assert_eq!(read(&sandbox, &lamina, "image", "usr/share/onto"), "onto\n");
    assert_eq!(read(&sandbox, &lamina, "image", "lnk/data/file"), "data\n");
    let inside = format!("{}/deeper/y", victim.display());
    assert_eq!(read(&sandbox, &lamina, "image", &inside), "x\n");
    let message = failure(
        &sandbox,
        &lamina,
        &format!("{text}COPY a.txt /loop/x\n"),
        &[],
    );
    assert!(message.contains("symbolic links"), "{message}");
}

#[test]
fn a_failed_command_shows_its_output() {
    needs_root!();
    let sandbox = Sandbox::new("build-output");
    let lamina = base::with_base(&sandbox);
    let file = containerfile(&sandbox, "FROM base\nRUN echo out; echo err >&2; exit 9\n");
    let context = sandbox.dir("empty");
    for more in [&[][..], &["-q"]] {
        let result = lamina.output(arguments(&file, &context, "image", more));
        let said = String::from_utf8(result.stderr).unwrap();
        assert!(said.contains("out\n") && said.contains("err\n"), "{said}");
        assert!(result.stdout.is_empty());
    }
    let said = build_text(&sandbox, &lamina, "FROM base\nRUN echo out; cat\n", "image");
    assert!(said.contains("out\n"), "{said}");
    let file = containerfile(&sandbox, "FROM base\nRUN echo quiet\n");
    let mut command = lamina.command(arguments(&file, &context, "image", &["-q"]));
    let result = command.stdin(Stdio::null()).output().unwrap();
    assert!(result.stderr.is_empty(), "{}", describe(&result));
}
