//! Against servers of this process, which behave as a hub and its content servers do, or worse.

mod server;

use super::*;
use server::{Reply, Request, Server};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use std::{iter, thread};
use tempfile::TempDir;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const REPOSITORY: &str = "timm/resnet18.a1_in1k";

const PACE: Pace = Pace {
    connect: Duration::from_secs(5),
    silence: Duration::from_secs(2),
    attempts: 3,
    pause: Duration::from_millis(1),
    grace: Duration::from_secs(60),
    slowest: 1 << 20,
};

fn hex(digest: impl AsRef<[u8]>) -> String {
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn sha256(bytes: &[u8]) -> String {
    hex(Sha256::digest(bytes))
}

fn git_hash(bytes: &[u8]) -> String {
    hex(Sha1::new().chain_update(format!("blob {}\0", bytes.len())).chain_update(bytes).finalize())
}

/// Three MiB that differ from each other.
fn weights() -> Vec<u8> {
    (0..3u32 << 20).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

fn config() -> Vec<u8> {
    let json = r#"{"architecture": "resnet18", "num_classes": 1000,
        "pretrained_cfg": {"input_size": [3, 224, 288], "mean": [0.485, 0.456, 0.406], "std": [0.5, 0.5, 0.25]}}"#;
    json.into()
}

fn repository() -> HashMap<&'static str, Vec<u8>> {
    HashMap::from([("model.safetensors", weights()), ("config.json", config()), ("README.md", b"text".to_vec())])
}

/// The part of `body` that a range asks for.
fn ranged(request: &Request, body: &[u8]) -> Reply {
    let Some(range) = request.header("range") else { return Reply::new(200, body) };
    let from: usize = range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap();
    let range = format!("bytes {from}-{}/{}", body.len() - 1, body.len());
    Reply::new(206, &body[from..]).with("Content-Range", range)
}

/// The list of a repository's files.
fn listing<'a>(files: impl IntoIterator<Item = &'a str>) -> Reply {
    let files: Vec<_> = files.into_iter().map(|file| serde_json::json!({"rfilename": file})).collect();
    Reply::new(200, serde_json::json!({"sha": COMMIT, "siblings": files}).to_string())
}

/// A hub of one repository, whose large files are on another server, and that server. `hub` and `cdn` may answer in
/// their place.
fn servers(
    hub: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static,
    cdn: impl Fn(&Request, &[u8]) -> Option<Reply> + Send + Sync + 'static,
) -> (Server, Server) {
    let files = Arc::new(repository());
    let content = Server::start(move |request| {
        let body = weights();
        cdn(request, &body).unwrap_or_else(|| ranged(request, &body))
    });
    let address = content.address.clone();
    let hub = Server::start(move |request| {
        if let Some(reply) = hub(request) {
            return reply;
        }
        if request.path == format!("/api/models/{REPOSITORY}/revision/main") {
            return listing(files.keys().copied());
        }
        let file = request.path.strip_prefix(&format!("/{REPOSITORY}/resolve/{COMMIT}/"));
        match file.and_then(|file| Some((file, files.get(file)?))) {
            None => Reply::new(404, ""),
            Some(("model.safetensors", body)) => Reply::new(302, "")
                .with("Location", format!("{address}/blob?sig=1"))
                .with("X-Linked-ETag", format!("\"{}\"", sha256(body)))
                .with("X-Linked-Size", body.len()),
            Some((_, body)) => ranged(request, body).with("ETag", format!("W/\"{}\"", git_hash(body))),
        }
    });
    (hub, content)
}

fn usual() -> (Server, Server) {
    servers(|_| None, |_, _| None)
}

/// A hub whose cache is in `home`.
fn hub(server: &Server, home: &TempDir, token: Option<&str>) -> Hub {
    let vars = HashMap::from([
        ("HF_ENDPOINT", Some(server.address.clone())),
        ("HF_HOME", Some(home.path().to_str().unwrap().to_owned())),
        ("HF_TOKEN", token.map(str::to_owned)),
    ]);
    Hub::new(|name| vars.get(name).cloned().flatten().map(OsString::from), None, PACE).unwrap()
}

fn reference(text: &str) -> Reference {
    text.parse().unwrap()
}

fn fetch(hub: &Hub) -> Result<Fetched, HubError> {
    hub.fetch(&reference("hf:timm/resnet18.a1_in1k"), &mut |_| ())
}

/// The error of a fetch from a fresh cache, whose blobs must hold nothing afterwards.
#[track_caller]
fn fails(server: &Server, expected: &str) -> TempDir {
    let home = TempDir::new().unwrap();
    let error = fetch(&hub(server, &home, None)).unwrap_err().to_string();
    assert!(error.contains(expected), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(!blob(&home).exists());
    home
}

/// The folder of the repository in the cache.
fn folder(home: &TempDir) -> PathBuf {
    home.path().join("hub/models--timm--resnet18.a1_in1k")
}

fn blob(home: &TempDir) -> PathBuf {
    folder(home).join("blobs").join(sha256(&weights()))
}

fn incomplete(home: &TempDir) -> PathBuf {
    blob(home).with_extension("incomplete")
}

fn downloads(cdn: &Server) -> Vec<Option<String>> {
    cdn.requests().iter().map(|request| request.header("range").map(str::to_owned)).collect()
}

#[test]
fn a_download_lies_where_other_libraries_look_for_it() {
    let (server, cdn) = usual();
    let home = TempDir::new().unwrap();
    let hub = hub(&server, &home, Some("hf_secret"));
    let mut told = Vec::new();
    let fetched = hub
        .fetch(&reference("hf:timm/resnet18.a1_in1k"), &mut |Progress { file, done, total }| {
            told.push((file.to_owned(), done, total));
        })
        .unwrap();

    let root = folder(&home);
    assert_eq!(fetched.path, root.join("snapshots").join(COMMIT).join("model.safetensors"));
    assert_eq!(fs::read(&fetched.path).unwrap(), weights());
    assert_eq!(fs::read_to_string(root.join("refs/main")).unwrap(), COMMIT);
    assert_eq!(fs::read(root.join("blobs").join(git_hash(&config()))).unwrap(), config());
    #[cfg(unix)]
    assert_eq!(fs::read_link(&fetched.path).unwrap(), Path::new("../../blobs").join(sha256(&weights())));
    assert!(!incomplete(&home).exists());

    let size = weights().len() as u64;
    assert_eq!(told.last().unwrap(), &("model.safetensors".into(), size, size));
    assert!(told.iter().any(|(file, ..)| file == "config.json"));
    let pinned = format!("hf:{REPOSITORY}@{COMMIT}:model.safetensors");
    assert_eq!(fetched.reference.to_string(), pinned);
    assert_eq!(fs::read(fetched.path.with_file_name("config.json")).unwrap(), config());

    let asked = server.requests();
    assert!(asked.iter().all(|request| request.header("authorization") == Some("Bearer hf_secret")));
    assert!(cdn.requests().iter().all(|request| request.header("authorization").is_none()), "the token is the hub's");

    // What is there is not downloaded again: the hub is asked for the commit, or not even that.
    assert_eq!(fetch(&hub).unwrap().path, fetched.path);
    let paths: Vec<String> = server.requests().into_iter().map(|request| request.path).collect();
    assert_eq!(paths, [format!("/api/models/{REPOSITORY}/revision/main")]);
    assert_eq!(hub.fetch(&reference(&pinned), &mut |_| ()).unwrap().path, fetched.path);
    assert_eq!(fetch(&hub.offline(true)).unwrap().path, fetched.path);
    assert!(server.requests().is_empty() && cdn.requests().is_empty());
}

#[test]
fn a_download_that_breaks_off_goes_on_where_it_ended() {
    let count = AtomicUsize::new(0);
    let (server, cdn) = servers(
        |_| None,
        move |request, body| {
            let first = count.fetch_add(1, Ordering::Relaxed) == 0;
            first.then(|| Reply { cut: Some(1 << 20), ..ranged(request, body) })
        },
    );
    let home = TempDir::new().unwrap();
    assert_eq!(fs::read(fetch(&hub(&server, &home, None)).unwrap().path).unwrap(), weights());
    assert_eq!(downloads(&cdn), [None, Some("bytes=1048576-".into())]);
}

#[test]
fn a_server_that_falls_silent_is_asked_again() {
    let count = AtomicUsize::new(0);
    let (server, cdn) = servers(
        |_| None,
        move |request, body| {
            let first = count.fetch_add(1, Ordering::Relaxed) == 0;
            first.then(|| Reply { stall: PACE.silence * 4, ..ranged(request, body) })
        },
    );
    let home = TempDir::new().unwrap();
    assert_eq!(fs::read(fetch(&hub(&server, &home, None)).unwrap().path).unwrap(), weights());
    assert_eq!(downloads(&cdn).len(), 2);
}

#[test]
fn a_slow_server_is_waited_for() {
    let slow = |request: &Request, body: &[u8]| Some(Reply { stall: PACE.silence / 10, ..ranged(request, body) });
    let (server, cdn) = servers(|_| None, slow);
    fetch(&hub(&server, &TempDir::new().unwrap(), None)).unwrap();
    assert_eq!(downloads(&cdn).len(), 1);
}

#[test]
fn a_transfer_ends_in_time_and_keeps_what_has_come() {
    let (server, cdn) = usual();
    let home = TempDir::new().unwrap();
    let impatient = Pace { grace: Duration::ZERO, slowest: u64::MAX, ..PACE };
    let vars = [("HF_ENDPOINT", server.address.clone()), ("HF_HOME", home.path().to_str().unwrap().to_owned())];
    let var = |name: &str| vars.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value));
    // The list of files comes too late already.
    let error = fetch(&Hub::new(var, None, impatient).unwrap()).unwrap_err();
    assert!(matches!(error, HubError::TooSlow { .. }), "{error}");
    assert!(error.to_string().contains("try again"), "{error}");

    // The content, after its first piece.
    let hub = hub(&server, &home, None);
    let deadline = Hub::new(var, None, impatient).unwrap().client.deadline(0);
    let facts = Facts { etag: sha256(&weights()), size: weights().len() as u64 };
    make_parent(&incomplete(&home)).unwrap();
    let out = OpenOptions::new().read(true).write(true).create_new(true).open(incomplete(&home)).unwrap();
    let what = what(REPOSITORY, "model.safetensors");
    let path = incomplete(&home);
    let mut partial = Partial { path, out, what, facts, deadline, furthest: 0, restarted: false };
    let content = |from| hub.client.content(REPOSITORY, COMMIT, "model.safetensors", from);
    let ended = partial.go_on(&hub.client, &content, &mut |_, _| (), &mut false);
    assert!(matches!(ended, Err(Failure::Final(HubError::TooSlow { .. }))));
    drop(partial);
    let come = fs::metadata(incomplete(&home)).unwrap().len();
    assert!(come > 0 && come < weights().len() as u64);
    assert_eq!(fs::read(fetch(&hub).unwrap().path).unwrap(), weights());
    assert_eq!(downloads(&cdn).last(), Some(&Some(format!("bytes={come}-"))));
}

#[test]
fn what_an_earlier_process_left_is_gone_on_with() {
    let (server, cdn) = usual();
    let home = TempDir::new().unwrap();
    make_parent(&incomplete(&home)).unwrap();
    fs::write(incomplete(&home), &weights()[..1000]).unwrap();
    fetch(&hub(&server, &home, None)).unwrap();
    assert_eq!(fs::read(blob(&home)).unwrap(), weights());
    assert_eq!(downloads(&cdn), [Some("bytes=1000-".into())]);
}

#[test]
fn what_an_earlier_process_left_may_be_whole_or_too_long() {
    for (left, asked) in [(weights(), 0), (iter::repeat_n(7, weights().len() + 1).collect(), 1)] {
        let (server, cdn) = usual();
        let home = TempDir::new().unwrap();
        make_parent(&incomplete(&home)).unwrap();
        fs::write(incomplete(&home), left).unwrap();
        fetch(&hub(&server, &home, None)).unwrap();
        assert_eq!(fs::read(blob(&home)).unwrap(), weights());
        assert_eq!(downloads(&cdn).len(), asked);
    }
}

#[test]
fn what_an_earlier_process_left_may_be_damaged() {
    let (server, cdn) = usual();
    let home = TempDir::new().unwrap();
    make_parent(&incomplete(&home)).unwrap();
    fs::write(incomplete(&home), [9; 1000]).unwrap();
    fetch(&hub(&server, &home, None)).unwrap();
    assert_eq!(fs::read(blob(&home)).unwrap(), weights());
    assert_eq!(downloads(&cdn), [Some("bytes=1000-".into()), None]);
}

#[test]
fn a_server_without_ranges_sends_everything_again() {
    let whole = |_: &Request, body: &[u8]| Some(Reply::new(200, body));
    let refused = |request: &Request, _: &[u8]| request.header("range").map(|_| Reply::new(416, ""));
    for (server, _cdn) in [servers(|_| None, whole), servers(|_| None, refused)] {
        let home = TempDir::new().unwrap();
        make_parent(&incomplete(&home)).unwrap();
        fs::write(incomplete(&home), &weights()[..1000]).unwrap();
        fetch(&hub(&server, &home, None)).unwrap();
        assert_eq!(fs::read(blob(&home)).unwrap(), weights());
    }
}

/// The second attempt is no further than the first one was.
#[test]
fn a_server_that_begins_anew_each_time_is_left_in_the_end() {
    let count = AtomicUsize::new(0);
    let (server, cdn) = servers(
        |_| None,
        move |_, body| {
            let endless = count.fetch_add(1, Ordering::Relaxed) > 20;
            let reply = Reply { cut: Some(3 << 19), ..Reply::new(200, body) };
            Some(if endless { Reply::new(418, "") } else { reply })
        },
    );
    let home = fails(&server, "broke off after 1572864 of 3145728 bytes");
    assert_eq!(downloads(&cdn).len(), PACE.attempts as usize);
    // With what is there already, it is the same.
    let error = fetch(&hub(&server, &home, None)).unwrap_err().to_string();
    assert!(error.contains("broke off after 1572864"), "{error}");
    assert_eq!(downloads(&cdn).len(), PACE.attempts as usize);
}

#[test]
fn a_config_too_large_to_be_one_is_left_out() {
    let (server, _cdn) = servers(
        |request| {
            let config = request.path.ends_with("config.json");
            config.then(|| Reply::new(200, vec![b' '; (1 << 20) + 1]).with("ETag", "0123456789"))
        },
        |_, _| None,
    );
    let home = TempDir::new().unwrap();
    let path = fetch(&hub(&server, &home, None)).unwrap().path;
    assert_eq!(fs::read(&path).unwrap(), weights());
    assert!(!path.with_file_name(CONFIG).exists());
    assert_eq!(fetch(&hub(&server, &home, None).offline(true)).unwrap().path, path);
}

#[test]
fn content_of_another_hash_is_thrown_away() {
    let (server, _cdn) = servers(|_| None, |_, body| Some(Reply::new(200, vec![0; body.len()])));
    let home = fails(&server, "its SHA-256 is");
    assert!(!incomplete(&home).exists());
    let other = |request: &Request| {
        let content = request.method == "GET" && request.path.ends_with("config.json");
        content.then(|| Reply::new(200, vec![b' '; config().len()]))
    };
    let (server, _cdn) = servers(other, |_, _| None);
    fails(&server, "config.json of timm/resnet18.a1_in1k came damaged");
}

#[test]
fn content_of_another_size_is_an_error() {
    let (server, _cdn) = servers(|_| None, |_, body| Some(Reply::new(200, [body, b"more"].concat())));
    let home = fails(&server, "more than 3145728 bytes come");
    assert!(!incomplete(&home).exists());

    // Short each time, and always from the same place, though it says that it is whole.
    let (server, cdn) = servers(|_| None, |_, body| Some(Reply::new(200, &body[..1000])));
    let home = fails(&server, "ended after 1000 of 3145728 bytes");
    assert_eq!(downloads(&cdn).len(), PACE.attempts as usize);
    assert!(incomplete(&home).exists(), "it is of use to the next attempt");

    let wrong = |_: &Request, body: &[u8]| Some(Reply::new(206, body).with("Content-Range", "bytes 5-9/10"));
    let (server, _cdn) = servers(|_| None, wrong);
    fails(&server, "another part of the file");
}

#[test]
fn a_server_in_trouble_is_asked_again() {
    let count = AtomicUsize::new(0);
    let twice = move |_: &Request| (count.fetch_add(1, Ordering::Relaxed) < 2).then(|| Reply::new(500, "sorry"));
    let (server, _cdn) = servers(twice, |_, _| None);
    fetch(&hub(&server, &TempDir::new().unwrap(), None)).unwrap();

    let (server, _cdn) = servers(|_| Some(Reply::new(503, "")), |_, _| None);
    fails(&server, "it answers with the status 503");
    assert_eq!(server.requests().len(), PACE.attempts as usize);
}

#[test]
fn the_cache_serves_where_the_hub_does_not() {
    let (server, _cdn) = usual();
    let home = TempDir::new().unwrap();
    let path = fetch(&hub(&server, &home, None)).unwrap().path;
    let (broken, _cdn) = servers(|_| Some(Reply::new(500, "")), |_, _| None);
    assert_eq!(fetch(&hub(&broken, &home, None)).unwrap().path, path);
    assert_eq!(broken.requests().len(), 1);
    let nobody = Server { address: "http://127.0.0.1:1".into(), ..server };
    assert_eq!(fetch(&hub(&nobody, &home, None)).unwrap().path, path);
    fails(&nobody, "cannot reach 127.0.0.1 for timm/resnet18.a1_in1k");
}

#[test]
fn refusals_say_what_to_do() {
    let always = |status| servers(move |_| Some(Reply::new(status, "no")), |_, _| None).0;
    fails(&always(401), "or set HF_TOKEN to a token that may read it");
    fails(&always(404), "has no timm/resnet18.a1_in1k at main");
    fails(&always(418), "with the status 418");
    let page = fails(&always(403), "conditions to accept at http://127.0.0.1");
    let error = fetch(&hub(&always(401), &page, Some("hf_wrong"))).unwrap_err().to_string();
    assert!(error.contains("the token that was sent") && !error.contains("hf_wrong"), "{error}");

    let offline = hub(&usual().0, &TempDir::new().unwrap(), None).offline(true);
    let error = fetch(&offline).unwrap_err().to_string();
    assert!(error.contains("hf:timm/resnet18.a1_in1k is not in the cache"), "{error}");
}

#[test]
fn a_repository_that_moved_is_followed_and_a_loop_is_not() {
    let moved = |request: &Request| {
        let here = request.path.starts_with(&format!("/{REPOSITORY}"));
        let api = request.path.starts_with("/api");
        (here || api).then(|| Reply::new(307, "").with("Location", format!("/new{}", request.path)))
    };
    let (_server, cdn) = usual();
    let address = cdn.address.clone();
    let new = Server::start(move |request| {
        if let Some(reply) = moved(request) {
            return reply;
        }
        match request.path.rsplit('/').next().unwrap() {
            "main" => listing(["config.json", "model.safetensors"]),
            "config.json" => ranged(request, &config()).with("ETag", git_hash(&config())),
            _ => Reply::new(302, "")
                .with("Location", &address)
                .with("X-Linked-ETag", sha256(&weights()))
                .with("X-Linked-Size", weights().len()),
        }
    });
    fetch(&hub(&new, &TempDir::new().unwrap(), Some("hf_secret"))).unwrap();
    let with_token = |request: &Request| request.header("authorization").is_some();
    assert!(new.requests().iter().all(with_token), "it is the same server before and behind");
    assert!(!cdn.requests().iter().any(with_token));

    let (server, _cdn) = servers(|request| Some(Reply::new(302, "").with("Location", &request.path)), |_, _| None);
    fails(&server, "it redirects without end");
    let (server, _cdn) = servers(|_| Some(Reply::new(302, "").with("Location", "file:///etc/passwd")), |_, _| None);
    fails(&server, "it redirects to nowhere");
}

#[test]
fn nothing_that_a_server_says_is_believed() {
    for (etag, size, expected) in [
        ("\"../../../../evil\"", "10", "is not a hash"),
        ("\"..\"", "10", "is not a hash"),
        ("", "10", "is not a hash"),
        ("0123456789", "18446744073709551615", "more than it can have"),
        ("0123456789", "-1", "does not tell the file's size"),
        ("0123456789", "18446744073709551616", "does not tell the file's size"),
    ] {
        let lie = Server::start(move |request| match request.path.starts_with("/api") {
            true => listing(["model.safetensors"]),
            false => Reply::new(302, "")
                .with("Location", "http://127.0.0.1:1/")
                .with("X-Linked-ETag", etag)
                .with("X-Linked-Size", size),
        });
        fails(&lie, expected);
    }
    for (list, expected) in [
        (r#"{"sha": "../../x", "siblings": [{"rfilename": "model.safetensors"}]}"#, "does not tell the commit"),
        (r#"{"siblings": 3}"#, "is not the JSON that it should be"),
        ("[[[[", "is not the JSON that it should be"),
    ] {
        fails(&Server::start(move |_| Reply::new(200, list)), expected);
    }
    let long = Server::start(|_| Reply::new(200, vec![b' '; (16 << 20) + 1]));
    fails(&long, "longer than 16 MiB");
    fails(&Server::start(|_| listing(["../../x.safetensors", "/etc/x.pth", "a\\b.h5"])), "its files are none");
}

#[test]
fn two_at_a_time_download_once() {
    let (server, cdn) =
        servers(|_| None, |request, body| Some(Reply { stall: PACE.silence / 10, ..ranged(request, body) }));
    let home = TempDir::new().unwrap();
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| assert_eq!(fs::read(fetch(&hub(&server, &home, None)).unwrap().path).unwrap(), weights()));
        }
    });
    assert_eq!(downloads(&cdn).len(), 1);
}

/// `/dev/full` stands for a file on a full disk.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_said_to_be_full() {
    let (server, _cdn) = usual();
    let home = TempDir::new().unwrap();
    make_parent(&incomplete(&home)).unwrap();
    std::os::unix::fs::symlink("/dev/full", incomplete(&home)).unwrap();
    let error = fetch(&hub(&server, &home, None)).unwrap_err().to_string();
    assert!(error.contains("no space is left for model.safetensors") && error.contains("3145728 bytes"), "{error}");
    assert!(fs::symlink_metadata(incomplete(&home)).is_err(), "nothing stays");
}

#[test]
fn references_say_what_they_mean() {
    let all = reference("hf:owner/na.me-1@refs/pr/1:folder/model.h5");
    assert_eq!((all.repository().as_str(), all.revision.as_str()), ("owner/na.me-1", "refs/pr/1"));
    assert_eq!(all.file.as_deref(), Some("folder/model.h5"));
    for text in ["hf:a/b", "hf:a/b@v1.0", "hf:a/b:c.h5", "hf:owner/na.me-1@refs/pr/1:folder/model.h5"] {
        assert_eq!(reference(text).to_string(), text);
    }
    assert_eq!(reference("hf:a/b").revision, "main");
}

#[test]
fn references_that_lead_elsewhere_are_refused() {
    let long = format!("hf:a/{}", "b".repeat(97));
    for text in [
        "hf:",
        "hf:a",
        "hf:a/",
        "hf:/b",
        "hf:a/b/c",
        "hf:../b",
        "hf:a/..",
        "hf:a/.b",
        "hf:a/b.",
        "hf:a--b/c",
        "hf:a/b c",
        "hf:a\\b/c",
        "hf:a/b@",
        "hf:a/b@..",
        "hf:a/b@../x",
        "hf:a/b@/x",
        "hf:a/b@x//y",
        "hf:a/b@x\\y",
        "hf:a/b:",
        "hf:a/b:../x",
        "hf:a/b:x/../../y",
        "hf:a/b:/etc/passwd",
        "hf:a/b:x/",
        "hf:a/b:./x",
        "hf:a/b:x\\y",
        "hf:a/b:c:d",
        "hf:a/b:x\ny",
        "hf:a/b:x\0",
        "hf:a/b:x.",
        "hf:ü/b",
        &long,
    ] {
        let error = text.parse::<Reference>().expect_err(text).to_string();
        assert!(
            error.contains("is not a reference of the form hf:owner/name") && error.lines().count() == 1,
            "{error}"
        );
    }
}

#[test]
fn weights_are_chosen_by_name() {
    let chosen = |text: &str, files: &[&str]| {
        let files: Vec<String> = files.iter().map(|&file| file.to_owned()).collect();
        choose(&reference(text), &files).map_err(|error| error.to_string())
    };
    let all = ["a.h5", "model.safetensors", "pytorch_model.bin"];
    assert_eq!(chosen("hf:a/b", &all).unwrap(), "model.safetensors");
    assert_eq!(chosen("hf:a/b", &["a.h5", "pytorch_model.bin"]).unwrap(), "pytorch_model.bin");
    assert_eq!(chosen("hf:a/b", &["README.md", "x/a.keras"]).unwrap(), "x/a.keras");
    assert_eq!(chosen("hf:a/b:a.h5", &all).unwrap(), "a.h5");
    let error = chosen("hf:a/b", &["a.h5", "b.keras", "README.md"]).unwrap_err();
    assert!(error.contains("hf:a/b:FILE with one of a.h5, b.keras"), "{error}");
    let error = chosen("hf:a/b", &["README.md"]).unwrap_err();
    assert!(error.contains("its files are README.md"), "{error}");
    let many: Vec<String> = (0..20).map(|n| format!("{n}.txt")).collect();
    let error = choose(&reference("hf:a/b@v1:c.h5"), &many).unwrap_err().to_string();
    assert!(error.contains("no file `c.h5` at v1") && error.ends_with("and 8 more"), "{error}");
}

#[test]
fn the_environment_is_read_as_by_other_libraries() {
    let hub = |vars: &[(&str, &str)]| {
        let vars: HashMap<&str, &str> = vars.iter().copied().collect();
        Hub::new(|name| vars.get(name).map(OsString::from), Some("/home/me".into()), PACE)
    };
    let cache = |vars: &[(&str, &str)]| hub(vars).unwrap().cache;
    assert_eq!(cache(&[]), Path::new("/home/me/.cache/huggingface/hub"));
    assert_eq!(cache(&[("HF_HOME", "")]), Path::new("/home/me/.cache/huggingface/hub"));
    assert_eq!(cache(&[("XDG_CACHE_HOME", "/x")]), Path::new("/x/huggingface/hub"));
    assert_eq!(cache(&[("XDG_CACHE_HOME", "/x"), ("HF_HOME", "~/y")]), Path::new("/home/me/y/hub"));
    assert_eq!(cache(&[("HF_HOME", "/y"), ("HF_HUB_CACHE", "/z")]), Path::new("/z"));
    assert_eq!(cache(&[("HF_HOME", "/y"), ("HUGGINGFACE_HUB_CACHE", "/z")]), Path::new("/z"));
    assert_eq!(cache(&[("HUGGINGFACE_HUB_CACHE", "/y"), ("HF_HUB_CACHE", "/z")]), Path::new("/z"));
    for (value, offline) in [("1", true), ("True", true), ("on", true), ("0", false), ("", false)] {
        assert_eq!(hub(&[("HF_HUB_OFFLINE", value)]).unwrap().offline, offline);
        assert_eq!(hub(&[("TRANSFORMERS_OFFLINE", value)]).unwrap().offline, offline);
        let both = [("HF_HUB_OFFLINE", value), ("TRANSFORMERS_OFFLINE", if offline { "0" } else { "" })];
        assert_eq!(hub(&both).unwrap().offline, offline);
    }
    for (name, value) in [
        ("HF_ENDPOINT", "huggingface.co"),
        ("HF_ENDPOINT", "ftp://huggingface.co"),
        ("HF_ENDPOINT", "https://"),
        ("HF_TOKEN", "hf_a\r\nHost: evil"),
    ] {
        let error = hub(&[(name, value)]).map(drop).unwrap_err().to_string();
        assert!(error.contains(name) && error.lines().count() == 1, "{error}");
    }
    assert!(Hub::new(|_| None, None, PACE).is_err());
}

#[test]
fn the_token_may_be_in_a_file() {
    let home = TempDir::new().unwrap();
    fs::write(home.path().join("token"), "hf_saved\n").unwrap();
    let (server, _cdn) = usual();
    fetch(&hub(&server, &home, None)).unwrap();
    assert!(server.requests().iter().all(|request| request.header("authorization") == Some("Bearer hf_saved")));
}
