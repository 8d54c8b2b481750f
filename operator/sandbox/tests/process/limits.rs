//! What a sandbox may use, and that one that wants more hurts nobody.

use ash_sandbox::measure_disk;

use crate::support::{Place, SMALL, until, until_there};

fn in_force(place: &Place, name: &str) -> bool {
    place.backend.protections().iter().any(|protection| protection.name == name && protection.in_force)
}

#[tokio::test]
async fn a_fork_bomb_stays_within_its_bound_and_can_be_killed() {
    let place = Place::new().await;
    assert!(in_force(&place, "process limit"));
    let mut spec = place
        .spec("forks", "perl -e 'while (1) { if (!defined fork) { open F, \">\", \"/workspace/refused\"; close F } }'");
    spec.limits = SMALL;
    let bomb = place.backend.start(spec).await.unwrap();
    until_there(&place.top.path().join("forks/workspace/refused")).await;
    let used = bomb.usage().await.unwrap().processes;
    assert!(used <= u64::from(SMALL.processes), "{used}");
    assert!(bomb.bounds_met(SMALL.open_files).await.unwrap().refused_processes > 0);
    // Its neighbour, under the same user of the host, starts and forks.
    let output = place.run("neighbour", "for n in 1 2 3; do (echo $n); done").await;
    assert_eq!(output, "1\n2\n3");
    bomb.kill().await.unwrap();
    assert!(!bomb.is_alive());
}

#[tokio::test]
async fn a_memory_bomb_dies_within_its_bound() {
    let place = Place::new().await;
    let mut spec = place.spec(
        "memory",
        "perl -e 'my @x; push @x, \"x\" x 1000000 while 1'; echo ended $? > /workspace/ended; sleep 600",
    );
    spec.limits = SMALL;
    let bomb = place.backend.start(spec).await.unwrap();
    until_there(&place.top.path().join("memory/workspace/ended")).await;
    if in_force(&place, "memory limit") {
        until("the kernel counts the kill", || async { bomb.usage().await.unwrap().memory_kills > 0 }).await;
        assert!(bomb.usage().await.unwrap().memory_bytes <= SMALL.memory_bytes);
        assert!(bomb.bounds_met(SMALL.open_files).await.unwrap().memory_kills > 0);
    }
    assert!(bomb.is_alive(), "the shell around the bomb goes on");
    bomb.kill().await.unwrap();
}

#[tokio::test]
async fn temporary_files_are_bounded() {
    let place = Place::new().await;
    let mut spec = place.spec(
        "tmp",
        "for d in /tmp /dev/shm /var/tmp; do for n in 1 2 3 4 5 6 7 8; do head -c 1000000 /dev/zero > $d/$n 2>/dev/null; \
         done; cat $d/* | wc -c; done; for d in / /dev /run /usr /etc /opt /home /run/ash; do echo x > $d/x && echo \
         wrote $d; done 2>/dev/null",
    );
    spec.limits = SMALL;
    let output = place.run_spec(spec).await;
    let sizes: Vec<u64> = output.lines().map(|line| line.parse().expect("nothing else is writable")).collect();
    assert_eq!(sizes.len(), 3);
    assert!(sizes.iter().all(|&size| size <= SMALL.tmp_bytes), "{sizes:?}");
}

#[tokio::test]
async fn a_disk_filler_is_seen_and_ends_with_its_sandbox() {
    let place = Place::new().await;
    let mut spec = place.spec(
        "disk",
        "(head -c 5000000 /dev/zero > /workspace/large); n=0; while [ $n -lt 20 ]; do n=$((n+1)); head -c 500000 /dev/zero \
         > /workspace/$n; done; touch /workspace/ended; sleep 600",
    );
    spec.limits = SMALL;
    let filler = place.backend.start(spec).await.unwrap();
    let workspace = place.top.path().join("disk/workspace");
    until("the measurement sees it", || async {
        // The files appear while they are counted.
        measure_disk(&workspace, SMALL.workspace_bytes).await.is_ok_and(|found| found.over_bound)
    })
    .await;
    until_there(&workspace.join("ended")).await;
    assert!(workspace.join("large").metadata().unwrap().len() <= SMALL.workspace_bytes, "no file is over the quota");
    filler.kill().await.unwrap();
}

#[tokio::test]
async fn open_files_are_bounded() {
    let place = Place::new().await;
    let mut spec = place.spec("files", "ulimit -Hn; ulimit -Hc");
    spec.limits = SMALL;
    assert_eq!(place.run_spec(spec).await, "256\n0");
}

#[tokio::test]
async fn a_sandbox_without_room_or_files_is_seen() {
    let place = Place::new().await;
    let hoard = "my @f; while (open my $f, \"<\", \"/dev/null\") { push @f, $f } sleep 600";
    let script =
        format!("perl -e '{hoard}' & for n in 1 2 3 4 5; do cat /dev/zero > /tmp/$n 2>/dev/null; done; sleep 600");
    let mut spec = place.spec("greedy", &script);
    spec.limits = SMALL;
    let greedy = place.backend.start(spec).await.unwrap();
    until("/tmp is full", || async { greedy.bounds_met(SMALL.open_files).await.unwrap().temporary_full }).await;
    if in_force(&place, "process limit") {
        until("a process has all its files", || async {
            greedy.bounds_met(SMALL.open_files).await.unwrap().processes_without_files == 1
        })
        .await;
    }
    greedy.kill().await.unwrap();
}

#[tokio::test]
async fn a_log_without_end_is_cut_back() {
    let place = Place::new().await;
    let sandbox = place.start("talker", "yes a line of the log").await;
    let log = place.top.path().join("talker/program.log");
    until("the log is large", || async { log.metadata().unwrap().len() > 1024 * 1024 }).await;
    sandbox.freeze().await.unwrap();
    until("the log is cut back", || async {
        sandbox.bounds_met(SMALL.open_files).await.unwrap();
        log.metadata().unwrap().len() <= 1024 * 1024
    })
    .await;
    sandbox.thaw().await.unwrap();
    assert_eq!(sandbox.log_tail(1).await.unwrap().len(), 1);
    sandbox.kill().await.unwrap();
}
