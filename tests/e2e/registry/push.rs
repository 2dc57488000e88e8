//! What is pushed, pulled by others, and what is not sent because it is there.

use std::fs;
use std::process::Command;

use serde_json::Value;

use super::{Setting, alone, pull, some_layers};
use crate::support::containers::Containers;
use crate::support::fixture::{debian_layers, unpack_by_hand};
use crate::support::lamina::Lamina;
use crate::support::layers::Archive;
use crate::support::layout::Layout;
use crate::support::proxy::{Fault, Proxy};
use crate::support::registry::Registry;
use crate::support::sandbox::Sandbox;
use crate::support::tree::{Ignore, Tree};
use crate::support::{needs_root, output, run};

/// A push over plain HTTP.
fn push(sandbox: &Sandbox, lamina: &Lamina, arguments: &[&str]) -> Command {
    let mut command = lamina.command(["push", "--plain-http"]);
    command.args(arguments);
    alone(sandbox, &mut command);
    command
}

/// The manifest that a registry has.
fn remote(name: &str) -> Value {
    let mut skopeo = Command::new("skopeo");
    skopeo.args(["inspect", "--raw", "--tls-verify=false"]);
    let raw = run(skopeo.arg(format!("docker://{name}")));
    serde_json::from_str(&raw).unwrap()
}

fn states(said: &str) -> Vec<String> {
    let said: Value = serde_json::from_str(said).unwrap();
    let layers = said["layers"].as_array().unwrap().iter();
    layers
        .map(|layer| layer["state"].as_str().unwrap().to_owned())
        .collect()
}

/// The tree of an image, unpacked by umoci from what skopeo makes of it.
fn by_skopeo_and_umoci(sandbox: &Sandbox, name: &str, dir: &str) -> Tree {
    let layout = sandbox.join(format!("{dir}-layout"));
    let mut skopeo = Command::new("skopeo");
    skopeo.args(["--insecure-policy", "copy", "-q", "--src-tls-verify=false"]);
    skopeo.args(["--dest-oci-accept-uncompressed-layers"]);
    skopeo
        .arg(format!("docker://{name}"))
        .arg(format!("oci:{}:it", layout.display()));
    run(&mut skopeo);
    let bundle = sandbox.join(dir);
    let mut umoci = Command::new("umoci");
    umoci.args(["unpack", "--keep-dirlinks", "--image"]);
    run(umoci.arg(format!("{}:it", layout.display())).arg(&bundle));
    Tree::read(&bundle.join("rootfs"))
}

#[test]
fn what_is_pushed_is_unpacked_by_others() {
    needs_root!();
    let sandbox = Sandbox::new("push-out");
    let registry = Registry::start(&sandbox);
    let lamina = Lamina::new(&sandbox);
    let layers = debian_layers();
    let by_hand = sandbox.dir("by-hand");
    unpack_by_hand(&layers, &by_hand);
    let expected = Tree::read(&by_hand);
    lamina.build("debian", &layers);

    let name = format!("{}/team/debian:1", registry.address());
    let digest = run(&mut push(&sandbox, &lamina, &["-q", "debian", &name]));
    let manifest = remote(&name);
    assert_eq!(
        manifest["mediaType"],
        "application/vnd.oci.image.manifest.v1+json"
    );
    let first = &manifest["layers"][0]["mediaType"];
    assert_eq!(first, "application/vnd.oci.image.layer.v1.tar+gzip");
    let ignore = Ignore::OTHER_FILESYSTEM;
    let theirs = by_skopeo_and_umoci(&sandbox, &name, "umoci");
    expected.assert_same("tar -x", &theirs, "umoci", ignore);

    // podman takes it by its digest, and has the same tree.
    let by_digest = format!("{}/team/debian@{}", registry.address(), digest.trim());
    let containers = Containers::new(&sandbox);
    containers.podman_ok(&["pull", "-q", "--tls-verify=false", &by_digest]);
    let theirs = containers.tree(&by_digest);
    // podman gives directories that it adds to, and times before 1970, others.
    let ignore = Ignore {
        mtime: true,
        ..ignore
    };
    expected.assert_same("tar -x", &theirs, "podman", ignore);

    // What comes back is the image that went out.
    let other = lamina.with_store(&sandbox.join("other"));
    assert_eq!(run(&mut pull(&sandbox, &other, &name, &["-q"])), digest);
    let again = run(&mut push(&sandbox, &other, &["--json", &name]));
    assert_eq!(states(&again), ["present"; 3]);
    assert!(again.contains(digest.trim()), "{again}");
}

#[test]
fn both_kinds_of_manifest_are_pulled_by_podman_and_buildah() {
    needs_root!();
    let sandbox = Sandbox::new("push-both");
    let registry = Registry::start(&sandbox);
    let lamina = Lamina::new(&sandbox);
    let mut layers = some_layers(&sandbox);
    // Where no layer says anything of the root, they have their own idea of it.
    layers.push(Archive::new(&sandbox, "root.tar").dir(".", 0o755).finish());
    lamina.build("app", &layers);
    let mount = lamina.mount(&["--read-only", "app"], &sandbox.join("mnt"));
    let expected = Tree::read(mount.path());
    mount.unmount();
    for kind in ["oci", "docker"] {
        let name = format!("{}/team/app:{kind}", registry.address());
        let arguments = ["-q", "--format", kind, "app", &name];
        run(&mut push(&sandbox, &lamina, &arguments));
        for program in ["podman", "buildah"] {
            let place = sandbox.join(format!("{kind}-{program}"));
            let containers = Containers::at(&place);
            let pull = ["pull", "-q", "--tls-verify=false", &name];
            if program == "podman" {
                containers.podman_ok(&pull);
            } else {
                containers.buildah_ok(&pull);
            }
            let ignore = Ignore {
                // Theirs of directories that a layer adds to.
                mtime: true,
                ..Ignore::OTHER_FILESYSTEM
            };
            expected.assert_same("the image", &containers.tree(&name), program, ignore);
        }
    }
}

#[test]
fn formats_and_compressions() {
    let sandbox = Sandbox::new("push-kinds");
    let registry = Registry::start(&sandbox);
    let lamina = Lamina::new(&sandbox);
    lamina.build("app", &some_layers(&sandbox));
    let layer = |end: &str| format!("application/vnd.oci.image.layer.v1.tar{end}");
    let docker = |end: &str| format!("application/vnd.docker.image.rootfs.diff.tar{end}");
    let list = |name: &str| {
        let manifest = remote(name);
        let layers = manifest["layers"].as_array().unwrap().iter();
        let kinds: Vec<_> = layers
            .map(|layer| layer["mediaType"].as_str().unwrap().to_owned())
            .collect();
        assert!(kinds.windows(2).all(|pair| pair[0] == pair[1]), "{kinds:?}");
        kinds[0].clone()
    };
    for (number, (options, kind)) in [
        (&[][..], layer("+gzip")),
        (&["--compression", "zstd"], layer("+zstd")),
        (&["--compression", "none"], layer("")),
        (&["--format", "docker"], docker(".gzip")),
        (&["--format", "docker", "--compression", "none"], docker("")),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("{}/kinds:{number}", registry.address());
        let file = sandbox.join(format!("digest-{number}"));
        let mut arguments = vec!["app", &name, "--digestfile", file.to_str().unwrap()];
        arguments.extend(options);
        let said = run(&mut push(&sandbox, &lamina, &arguments));
        assert_eq!(list(&name), kind);
        let digest = fs::read_to_string(&file).unwrap();
        assert!(said.ends_with(&digest), "{said}");
        // Pulled, it is the same image, and its layers are there.
        let other = lamina.with_store(&sandbox.join(format!("store-{number}")));
        let id = run(&mut pull(&sandbox, &other, &name, &["-q"]));
        assert_eq!(id, digest);
        // Pushed elsewhere as it is, it stays the same: what it was packed by is known.
        let fresh = Registry::start(&sandbox);
        let there = format!("{}/kinds", fresh.address());
        let pushed = run(&mut push(&sandbox, &other, &["-q", &name, &there]));
        assert_eq!(pushed, digest, "{options:?}");
    }
    for (options, part) in [
        (
            &["--format", "docker", "--compression", "zstd"][..],
            "--format oci",
        ),
        (&["--compression", "lzma"], "lzma"),
        (
            &[
                "127.0.0.1:1/a@sha256:0000000000000000000000000000000000000000000000000000000000000000",
            ],
            "digest",
        ),
    ] {
        let mut arguments = vec!["push", "app"];
        arguments.extend(options);
        assert!(lamina.fails(2, arguments).contains(part), "{part}");
    }
    assert!(lamina.fails(1, ["push", "nothing"]).contains("nothing"));
}

#[test]
fn kept_blobs_go_out_as_they_came() {
    let sandbox = Sandbox::new("push-kept");
    let (from, to) = (Registry::start(&sandbox), Registry::start(&sandbox));
    let mut layout = Layout::new(&sandbox, "layout");
    // gzip at its highest level, which is not what we pack by.
    let image = layout.image("app", &some_layers(&sandbox), "gzip", "amd64");
    let name = format!("{}/app", from.address());
    layout.push("app", &name, &[]);
    let lamina = Lamina::new(&sandbox);
    run(&mut pull(&sandbox, &lamina, &name, &["--keep-blobs"]));
    let there = format!("{}/other/app", to.address());
    let pushed = run(&mut push(&sandbox, &lamina, &["-q", &name, &there]));
    assert_eq!(pushed.trim(), image.manifest);
    // Without its blobs it is packed anew: another manifest, but the same image.
    let other = lamina.with_store(&sandbox.join("without"));
    run(&mut pull(&sandbox, &other, &name, &[]));
    let fresh = Registry::start(&sandbox);
    let there = format!("{}/app", fresh.address());
    let pushed = run(&mut push(&sandbox, &other, &["-q", &name, &there]));
    run(&mut pull(&sandbox, &other, &there, &[]));
    let chain = |name: &str| {
        let said: Value = serde_json::from_str(&other.ok(["image", "inspect", name])).unwrap();
        (said["chain_id"].clone(), said["config"].clone())
    };
    assert_eq!(chain(&name), chain(&there));
    assert_ne!(pushed.trim(), image.manifest);
}

#[test]
fn layers_of_another_repository_are_mounted() {
    let setting = Setting::new("push-mount");
    setting.pull(&[]);
    setting.proxy.take_seen();
    let there = format!("{}/other/copy:2", setting.proxy.address());
    let reference = setting.reference();
    let arguments = ["--json", reference.as_str(), there.as_str()];
    let said = run(&mut push(&setting.sandbox, &setting.lamina, &arguments));
    assert_eq!(states(&said), ["mounted"; 3]);
    assert!(said.contains(&setting.image.manifest), "{said}");
    let seen = setting.proxy.take_seen();
    let mounts = seen
        .iter()
        .filter(|seen| seen.path.contains("from=team%2Fapp"))
        .count();
    let uploads = seen
        .iter()
        .filter(|seen| seen.method == "PUT" && seen.path.contains("uploads"));
    // The configuration is sent: nobody knows where else it is.
    assert_eq!((mounts, uploads.count()), (3, 1), "{seen:?}");
    assert_eq!(
        states(&run(&mut push(
            &setting.sandbox,
            &setting.lamina,
            &arguments
        ))),
        ["present"; 3]
    );
}

#[test]
fn what_is_built_on_a_pulled_image_shares_its_blobs() {
    let setting = Setting::new("push-built");
    setting.pull(&[]);
    let context = setting.sandbox.dir("context");
    let from = format!("FROM {}\nCOPY new /new\n", setting.reference());
    fs::write(context.join("Containerfile"), from).unwrap();
    fs::write(context.join("new"), "new").unwrap();
    let context = context.to_str().unwrap();
    setting.lamina.ok(["build", "-q", "-t", "built", context]);
    let push = |place: &str| {
        let there = format!("{}/{place}", setting.proxy.address());
        let arguments = ["--json", "built", &there];
        states(&run(&mut push(
            &setting.sandbox,
            &setting.lamina,
            &arguments,
        )))
    };
    let expected = ["mounted", "mounted", "mounted", "sent"];
    assert_eq!(push("other/built:1"), expected);
    assert_eq!(push("other/built:2"), ["present"; 4]);
    let manifest = remote(&format!("{}/other/built:1", setting.registry.address()));
    for (layer, digest) in setting.image.layers.iter().enumerate() {
        assert_eq!(manifest["layers"][layer]["digest"], digest.as_str());
    }
    // Where it was pulled from, it is there already.
    let expected = ["present", "present", "present", "sent"];
    assert_eq!(push("team/app:built"), expected);
}

#[test]
fn docker_gets_no_layers_by_zstd() {
    let sandbox = Sandbox::new("push-zstd");
    let registry = Registry::start(&sandbox);
    let mut layout = Layout::new(&sandbox, "layout");
    layout.image("app", &some_layers(&sandbox), "zstd", "amd64");
    let name = |tag: &str| format!("{}/app:{tag}", registry.address());
    layout.push("app", &name("oci"), &[]);
    let lamina = Lamina::new(&sandbox);
    run(&mut pull(&sandbox, &lamina, &name("oci"), &[]));
    let arguments = ["--format", "docker", &name("oci"), &name("docker")];
    run(&mut push(&sandbox, &lamina, &arguments));
    let manifest = remote(&name("docker"));
    for layer in manifest["layers"].as_array().unwrap() {
        assert_eq!(
            layer["mediaType"],
            "application/vnd.docker.image.rootfs.diff.tar.gzip"
        );
    }
}

#[test]
fn a_push_goes_on_after_what_passes() {
    let setting = Setting::new("push-faults");
    let lamina = setting.lamina.with_store(&setting.sandbox.join("built"));
    lamina.build("built", &some_layers(&setting.sandbox));
    let there = format!("{}/built:1", setting.proxy.address());
    let fails = |options: &[&str]| {
        let mut arguments = vec!["built", &there];
        arguments.extend(options);
        let output = output(&mut push(&setting.sandbox, &lamina, &arguments));
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let denied = r#"{"errors":[{"code":"DENIED","message":"you may only look"}]}"#;
    for (method, path, fault, part) in [
        (
            "POST",
            "uploads",
            Fault::Answer(403, Vec::new(), denied),
            "(403: you may only look)",
        ),
        (
            "POST",
            "uploads",
            Fault::Answer(401, Vec::new(), ""),
            "lamina login",
        ),
        (
            "PUT",
            "uploads",
            Fault::Answer(503, Vec::new(), ""),
            "failed 2 times",
        ),
        ("PUT", "uploads", Fault::BreakUpload(1000), "cannot reach"),
        (
            "PUT",
            "manifests",
            Fault::Answer(400, Vec::new(), ""),
            "400",
        ),
    ] {
        setting.proxy.on(method, path, 99, fault);
        let said = fails(&["--retry", "1", "--jobs", "1"]);
        assert!(
            said.contains(part) && said.contains(&setting.proxy.address()),
            "{said}"
        );
        setting.proxy.heal();
    }
    setting
        .proxy
        .on("PUT", "uploads", 1, Fault::BreakUpload(100_000));
    setting
        .proxy
        .on("PUT", "uploads", 1, Fault::Answer(502, Vec::new(), ""));
    setting
        .proxy
        .on("PUT", "manifests", 1, Fault::Answer(500, Vec::new(), ""));
    let digest = run(&mut push(
        &setting.sandbox,
        &lamina,
        &["-q", "built", &there],
    ));
    let pulled = run(&mut pull(&setting.sandbox, &lamina, &there, &["-q"]));
    assert_eq!(pulled, digest);
}

#[test]
fn tokens_for_a_push_allow_it() {
    let sandbox = Sandbox::new("push-token");
    let registry = Registry::start(&sandbox);
    let proxy = Proxy::start(registry.address());
    proxy.want_tokens("Basic YWxpOm9wZW4gc2VzYW1l", 3);
    let auth = format!(
        r#"{{"auths": {{"{}": {{"auth": "YWxpOm9wZW4gc2VzYW1l"}}}}}}"#,
        proxy.address()
    );
    let auth = sandbox.file("auth.json", auth);
    let lamina = Lamina::new(&sandbox);
    lamina.build("app", &some_layers(&sandbox));
    let name = format!("{}/team/app", proxy.address());
    let arguments = ["app", &name, "--authfile", auth.to_str().unwrap()];
    run(&mut push(&sandbox, &lamina, &arguments));
    let scopes = proxy.scopes();
    let wanted = ["repository:team/app:pull,push".to_owned()];
    assert!(scopes.iter().all(|scopes| *scopes == wanted), "{scopes:?}");
}

#[test]
fn a_damaged_store_does_not_push() {
    let setting = Setting::new("push-damaged");
    setting.pull(&[]);
    let objects = setting.lamina.store().join("objects");
    // Any object will do.
    let dir = fs::read_dir(&objects)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let object = fs::read_dir(dir).unwrap().next().unwrap().unwrap().path();
    let size = fs::metadata(&object).unwrap().len();
    fs::remove_file(&object).unwrap();
    fs::write(&object, vec![0; size as usize]).unwrap();
    let fresh = Registry::start(&setting.sandbox);
    let there = format!("{}/app", fresh.address());
    let output = output(&mut push(
        &setting.sandbox,
        &setting.lamina,
        &[&setting.reference(), &there],
    ));
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("is damaged"), "{said}");
}
