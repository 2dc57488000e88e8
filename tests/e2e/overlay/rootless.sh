# What an ordinary user does with podman and buildah. $1: a directory of his; $2: one for sockets, with a short
# name; $3: the mount program; $4: the archive of the base image.
home=$1 runtime=$2 program=$3 archive=$4
export HOME=$home XDG_RUNTIME_DIR=$runtime
cd "$home"
storage="--root $home/s --runroot $runtime/r --storage-driver=overlay --storage-opt=overlay.mount_program=$program"
podman="podman $storage --runtime=crun --cgroup-manager=cgroupfs --events-backend=none --tmpdir $runtime/t"
buildah="buildah $storage"
run="$podman run --cgroups=disabled --network=none --ulimit=nofile=1024:1024 --ulimit=nproc=1024:1024"
end() {
    $podman system reset --force >/dev/null 2>&1 || true
    for pid in "$runtime"/*/pause.pid "$runtime"/*/*/pause.pid; do
        [ ! -e "$pid" ] || kill -9 "$(cat "$pid")" 2>/dev/null || true
    done
}
trap end EXIT

changes='echo new > /etc/new; rm /etc/removed; rm -r /etc/removed-dir /etc/again; mkdir /etc/again
echo x > /etc/again/new; mv /usr/share/data /usr/share/moved; chmod 4755 /filelink-target
chown 1000:100 /etc/replaced; ln /etc/passwd /etc/linked; mkfifo /pipe; echo more >> /etc/group'
list='ls -lnR / 2> /dev/null | grep -v "^total\|^/\(proc\|sys\|dev\|run\|tmp\)" | awk "{print \$1, \$2, \$3, \$4, \$NF}"'

$podman import --quiet "$archive" base >/dev/null
echo "== run, diff, commit"
$run --name one base /bin/sh -ec "$changes"
$podman diff one | sort
$podman commit --quiet one committed >/dev/null
$run --rm committed /bin/sh -c 'cat /etc/new /etc/group; ls -ln /etc /usr/share /filelink-target; test -p /pipe'
echo "== keep-id"
$run --rm --userns=keep-id base /bin/sh -c 'id -u; echo x > /tmp/x; stat -c "%u %g %n" /tmp/x /etc /etc/passwd /home/user'
echo "== another map"
$run --rm --uidmap=0:1:1000 --uidmap=1000:0:1 --gidmap=0:1:1000 --gidmap=1000:0:1 base /bin/sh -c \
    'id -u; stat -c "%u %g %n" /etc /etc/passwd /home/user; echo x > /etc/x; chown 1000:100 /etc/x; stat -c "%u %g" /etc/x'
echo "== read-only"
$run --rm --read-only base /bin/sh -c 'touch /x 2> /dev/null || echo refused'
echo "== build"
mkdir context
printf 'FROM base\nRUN echo one > /one && rm /etc/removed\nRUN mv /usr/share/data /data && chown 1000:100 /one\n' >context/Containerfile
$podman build --quiet --isolation=chroot --network=host -t built context >/dev/null
$run --rm built /bin/sh -c 'ls -ln / /data; cat /one'
$buildah bud --quiet --isolation=chroot --layers -t bud context >/dev/null
$run --rm bud /bin/sh -c 'ls -ln / /data; cat /one'
echo "== buildah unshare"
container=$($buildah from --pull-never localhost/base)
$buildah unshare sh -ec '
    root=$('"$buildah"' mount '"$container"')
    echo outside > "$root/etc/outside"; chown 5:6 "$root/etc/outside"; rm "$root/etc/replaced"
    stat -c "%u %g %n" "$root/etc/outside" "$root/etc/passwd" | sed "s|$root||"
    '"$buildah"' umount '"$container"' > /dev/null'
$buildah commit --quiet --rm "$container" localhost/unshared >/dev/null
$run --rm unshared /bin/sh -c 'ls -ln /etc'
echo "== save and load"
$podman save --quiet -o saved.tar built
$podman rmi --force built >/dev/null
$podman load --quiet -i saved.tar
$run --rm built cat /one
